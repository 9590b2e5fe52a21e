// What people see while a run works.
#include "launcher/console.h"

#include <gtest/gtest.h>

#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/terminal_text.h"

namespace carousel {
namespace {

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

Console::StepLine StepOf(int64_t step, int64_t total) {
  return {.step = step,
          .total_steps = total,
          .loss = 2.5,
          .grad_norm = 1.25,
          .lr = 1e-3,
          .tokens = 1000,
          .seconds = 0.5};
}

TEST(Console, WritesOnePlainLinePerIntervalAndTheFirstAndTheLast) {
  std::ostringstream out;
  Console console(out, {.terminal = {}, .log_every_steps = 10});
  for (int64_t step = 1; step <= 25; ++step) console.Step(StepOf(step, 25));
  const std::vector<std::string> lines = Lines(out.str());
  ASSERT_EQ(lines.size(), 4u);  // 1, 10, 20, 25
  EXPECT_EQ(lines[0].find("step  1/25  loss  2.5000  grad_norm   1.250  lr 1.00e-03  tok/s    2000  mem"), 0u)
      << lines[0];
  EXPECT_NE(lines[1].find("step 10/25"), std::string::npos);
  EXPECT_NE(lines[1].find("eta 0:00:08"), std::string::npos) << lines[1];  // 15 steps of half a second
  EXPECT_NE(lines[3].find("step 25/25"), std::string::npos);
  EXPECT_NE(lines[3].find("eta 0:00:00"), std::string::npos);
  for (const std::string& line : lines) {
    EXPECT_EQ(line.find_first_of("\r\033"), std::string::npos);
    // Constant columns: every field begins where it does in the first line.
    for (const char* field : {"loss", "grad_norm", "lr ", "tok/s", "mem", "eta"}) {
      EXPECT_EQ(line.find(field), lines[0].find(field)) << line;
    }
  }
}

TEST(Console, EndsWithTheScoresOnceTheyAreKnown) {
  std::ostringstream out;
  Console console(out, {.terminal = {}, .log_every_steps = 1});
  console.Step(StepOf(1, 2));
  Console::StepLine line = StepOf(2, 2);
  line.loss_z = 0.28;
  line.grad_norm_z = -12.34;
  console.Step(line);
  const std::vector<std::string> lines = Lines(out.str());
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].find("_z"), std::string::npos) << lines[0];
  EXPECT_NE(lines[1].find("eta 0:00:00  loss_z  +0.3  norm_z -12.3"), std::string::npos) << lines[1];
}

TEST(Console, TokensPerSecondAreThoseOfTheInterval) {
  std::ostringstream out;
  Console console(out, {.terminal = {}, .log_every_steps = 2});
  Console::StepLine line = StepOf(1, 4);
  line.seconds = 100;  // a slow first step does not stay in later lines
  console.Step(line);
  console.Step(StepOf(2, 4));
  console.Step(StepOf(3, 4));
  console.Step(StepOf(4, 4));
  const std::vector<std::string> lines = Lines(out.str());
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_NE(lines[0].find("tok/s      10 "), std::string::npos) << lines[0];
  EXPECT_NE(lines[1].find("tok/s    2000 "), std::string::npos) << lines[1];
  EXPECT_NE(lines[2].find("tok/s    2000 "), std::string::npos) << lines[2];
  EXPECT_NE(lines[1].find("eta 0:00:01"), std::string::npos) << lines[1];
}

TEST(Console, TheTimeLeftIsNotToldFromTheFirstStepAndIsRightFromTheSecondOn) {
  // As after a resume: the first step of the process is slow, and so is another one now and then.
  for (const bool live : {false, true}) {
    std::ostringstream out;
    {
      Console console(out, {.terminal = {.live = live, .columns = 200}, .log_every_steps = 1});
      for (int64_t step = 501; step <= 504; ++step) {
        Console::StepLine line = StepOf(step, 1000);
        line.seconds = step == 501 ? 60 : step == 503 ? 3 : 1;
        console.Step(line);
        if (step == 501) {
          EXPECT_NE(out.str().find("eta -"), std::string::npos) << out.str();
        }
        if (step == 502) {
          EXPECT_NE(out.str().find("eta 0:08:18"), std::string::npos) << out.str();
        }
        if (step == 503) {  // (1 + 3) / 2 = 2 s
          EXPECT_NE(out.str().find("eta 0:16:34"), std::string::npos) << out.str();
        }
        if (step == 504) {  // (1 + 3 + 1) / 3 s
          EXPECT_NE(out.str().find("eta 0:13:47"), std::string::npos) << out.str();
        }
      }
    }
  }
}

// What a terminal shows: the text after the last carriage return of each line, erasures honoured.
std::vector<std::string> Screen(const std::string& bytes, size_t columns) {
  std::vector<std::string> rows(1);
  size_t column = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\n') {
      rows.emplace_back();
      column = 0;
    } else if (bytes[i] == '\r') {
      column = 0;
    } else if (bytes.compare(i, 3, "\033[K") == 0) {
      rows.back().resize(column);
      i += 2;
    } else {
      EXPECT_LT(column, columns) << "the line wraps";
      rows.back().resize(std::max(rows.back().size(), column + 1), ' ');
      rows.back()[column++] = bytes[i];
    }
  }
  return rows;
}

TEST(Console, KeepsOneLiveLineOnATerminalBelowTheMessages) {
  std::ostringstream out;
  {
    Console console(out, {.terminal = {.live = true, .columns = 60}, .log_every_steps = 10});
    console.Message("begin");
    for (int64_t step = 1; step <= 3; ++step) console.Step(StepOf(step, 100));
    console.Message("validation loss 2.0");
    console.Step(StepOf(4, 100));
  }
  const std::vector<std::string> rows = Screen(out.str(), 60);
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0], "begin");
  EXPECT_EQ(rows[1], "validation loss 2.0");
  EXPECT_EQ(rows[2].find("4/100 loss 2.500 norm 1.25 lr 1.0e-03 2000 tok/s "), 0u) << rows[2];
  EXPECT_EQ(rows[2].size(), 59u);  // cut, so that it cannot wrap
  EXPECT_EQ(rows[3], "");
}

TEST(Console, ShowsEveryFieldOnTerminalsOfAllUsualWidths) {
  for (const int64_t columns : {80, 100, 120, 200}) {
    std::ostringstream out;
    Console console(out, {.terminal = {.live = true, .columns = columns}, .log_every_steps = 10});
    Console::StepLine line = StepOf(123456, 999999);
    line.loss = 10.8258;
    line.grad_norm = 12.5;
    line.tokens = 100000;
    line.seconds = 0.1;
    --line.step;
    console.Step(line);
    ++line.step;
    console.Step(line);
    const std::string row = Screen(out.str(), static_cast<size_t>(columns))[0];
    for (const char* field : {"123456/999999", "loss ", "norm ", "lr ", "tok/s", "iB ", "eta 24:20:54"}) {
      EXPECT_NE(row.find(field), std::string::npos) << columns << " columns: " << row;
    }
  }
}

TEST(Console, ShowsWhatIsNotANumber) {
  std::ostringstream out;
  Console console(out, {});
  Console::StepLine line = StepOf(1, 2);
  line.loss = line.grad_norm = std::numeric_limits<double>::quiet_NaN();
  line.seconds = 0;
  console.Step(line);
  EXPECT_NE(out.str().find("loss     nan"), std::string::npos) << out.str();
}

TEST(Console, TextOfAModelCannotCommandTheTerminal) {
  std::ostringstream out;
  Console console(out, {});
  console.Message("a\033[2Jb\r\x07\x7f \xc2\x9b tab\t\xc3\xa4\n\xe2\x82\xac");
  EXPECT_EQ(out.str(), "a?[2Jb??? ?? tab\t\xc3\xa4\n\xe2\x82\xac\n");
}

TEST(EscapeControls, ShowsThemAndLeavesAllElse) {
  EXPECT_EQ(EscapeControls("runs/\033[31mred\x07\r\x7f"), "runs/\\x1b[31mred\\x07\\r\\x7f");
  EXPECT_EQ(EscapeControls(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(EscapeControls("\xc2\x80 \xc2\x9f \xc2\xa0"), "\\xc2\\x80 \\xc2\\x9f \xc2\xa0");
  // Tabs, line breaks, other characters, and bytes that are none.
  const std::string plain = "a\tb\n\xc3\xa4\xe2\x82\xac\xff\xc2";
  EXPECT_EQ(EscapeControls(plain), plain);
  EXPECT_EQ(ControlLength("\xc2\x9b", 0), 2u);
  EXPECT_EQ(ControlLength("\xc2\x9b", 1), 0u);
}

TEST(Console, FormatsDurations) {
  EXPECT_EQ(FormatDuration(0), "0:00:00");
  EXPECT_EQ(FormatDuration(61.4), "0:01:01");
  EXPECT_EQ(FormatDuration(27 * 3600 + 605), "27:10:05");
  EXPECT_EQ(FormatDuration(3 * 86400.0 + 4 * 3600), "3d 04:00:00");
  EXPECT_EQ(FormatDuration(-1), "-");
  EXPECT_EQ(FormatDuration(std::numeric_limits<double>::infinity()), "-");
  EXPECT_EQ(FormatDuration(std::numeric_limits<double>::quiet_NaN()), "-");
}

TEST(Console, ResidentMemoryGrowsWithWhatIsTouched) {
  const int64_t before = ResidentBytes();
  EXPECT_GT(before, 1 << 20);
  std::vector<char> memory(64 << 20, 1);
  EXPECT_GT(ResidentBytes(), before + (48 << 20));
  EXPECT_EQ(memory[memory.size() / 2], 1);
}
}  // namespace
}  // namespace carousel
