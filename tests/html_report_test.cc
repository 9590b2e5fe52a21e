// The report of a run: bounded however long the run is, spikes stay visible, and nothing that a model or a
// file says becomes HTML.
#include "launcher/report/html_report.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launcher/report/appended_file.h"
#include "launcher/report/html_report_sink.h"
#include "launcher/report/metrics_file.h"
#include "launcher/report/svg_chart.h"
#include "tests/report_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

using testing::Count;
using testing::ExpectOnlyOwnHtml;
using testing::Read;
using testing::Render;
using testing::StepLine;
using testing::Write;

// ---- the page

TEST(HtmlReport, IsWholeForARunWithoutAnything) {
  const std::string page = Render(RunHistory());
  EXPECT_EQ(page.find("<!DOCTYPE html>"), 0u);
  EXPECT_NE(page.find("nothing yet"), std::string::npos);
  EXPECT_NE(page.find("not started"), std::string::npos);
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, AsksNobodyForAnythingAndAllowsItsOwnScriptOnly) {
  RunHistory h;
  for (int64_t step = 1; step <= 50; ++step) h.AddLine(StepLine(step, 2));
  const std::string page = Render(h);
  EXPECT_NE(page.find("http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
                      "'unsafe-inline'; script-src 'sha256-"),
            std::string::npos);
  std::string without = std::regex_replace(page, std::regex("http://www\\.w3\\.org/2000/svg"), "");
  for (const char* address : {"http:", "https:", "//cdn", "src=\"", "@import", "url("}) {
    EXPECT_EQ(without.find(address), std::string::npos) << address;
  }
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, NothingFromOutsideBecomesHtml) {
  const std::string evil =
      "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=\"x\" "
      "&amp;<!--\x01\xff\xc2\x85";
  RunHistory h;
  const auto add = [&](const nlohmann::json& line) {
    h.AddLine(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  };
  h.AddLine(StepLine(1, 2));
  add({{"step", 2},
       {"loss", 2},
       {"seconds", 1},
       {"ranks",
        {{"num_ranks", 2},
         {"num_steps", 3},
         {"worst", {{{"rank", 1}, {"host", evil}, {"percent_over", 9}}}},
         {"chronic", {{{"rank", 1}, {"host", evil}, {"percent_over", 9}}}}}}});
  add({{"sample", {{"step", 2}, {"text", evil}}}});
  add({{"checkpoint", {{"step", 2}, {"outcome", evil}, {"message", evil}}}});
  add({{"health", {{"step", 2}, {"kind", evil}, {"message", evil}}}});
  ReportInput input = {.run_dir = evil};
  RecordedStart start;
  start.start = {.hosts = {evil}, .mesh = evil, .device = evil, .build = evil, .command = evil};
  start.ended = true;
  start.why = evil;
  input.starts = {start};
  input.attempts = {{.attempt = 1, .reason = evil, .host = evil, .next = evil}};
  input.config = {{evil, evil}, {"a", evil}};
  input.default_config = {{"a", "<b>"}};
  const std::string page = Render(h, input);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_EQ(page.find("alert(1)</script>"), std::string::npos);
  EXPECT_GT(Count(page, "&lt;script&gt;alert(1)&lt;/script&gt;"), 10);
  EXPECT_EQ(page.find('\x01'), std::string::npos);
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, NumbersOfAnySizeAreDrawnAsNumbers) {
  RunHistory h;
  const std::vector<std::string> values = {
      "1e308", "-1e308", "1e199", "5e-324", "null", "-1e199", "0", "1e15", "1.0000000000000002"};
  for (int64_t step = 1; step <= 300; ++step) {
    const std::string& v = values[static_cast<size_t>(step) % values.size()];
    h.AddLine(absl::StrCat("{\"step\":", step, ",\"tokens\":", v, ",\"loss\":", v,
                           ",\"grad_norm\":", step % 2 == 0 ? "5e-324" : "1e199", ",\"lr\":", v,
                           ",\"seconds\":", v, ",\"wall_seconds\":", v, ",\"data_wait_seconds\":", v,
                           ",\"communication_seconds\":", v, ",\"memory_bytes\":", v,
                           ",\"flops_per_second\":", v, ",\"ranks\":{\"num_ranks\":2,\"min_seconds\":", v,
                           ",\"max_seconds\":", v, ",\"worst\":[{\"rank\":", v, ",\"percent_over\":", v,
                           "}],\"chronic\":[{\"rank\":", v, ",\"percent_over\":", v, "}]}}"));
    h.AddLine(absl::StrCat("{\"evaluation\":{\"step\":", v, ",\"loss\":", v,
                           ",\"accuracy_by_length\":[{\"length_to\":", v, ",\"accuracy\":", v, "}]}}"));
    h.AddLine(absl::StrCat("{\"checkpoint\":{\"step\":", v, ",\"outcome\":\"saved\",\"bytes\":", v, "}}"));
    h.AddLine(absl::StrCat("{\"health\":{\"step\":", v, ",\"kind\":\"rollback\"}}"));
    h.AddLine(absl::StrCat("{\"gates\":{\"step\":", v, ",\"blocks\":[{\"block\":", v, ",\"input\":{\"mean\":",
                           v, ",\"beyond\":", v, "}}],\"logits\":{\"max\":", v, "}}}"));
  }
  EXPECT_EQ(h.num_not_understood, 0);
  const std::string page = Render(h);
  ExpectOnlyOwnHtml(page);
  // In a drawing every coordinate is a number.
  const std::regex attribute(" (d|x|y|cx|cy|data-x|data-y|viewBox)=\"([^\"]*)\"");
  int drawn = 0;
  for (std::sregex_iterator match(page.begin(), page.end(), attribute), end; match != end; ++match) {
    ++drawn;
    EXPECT_FALSE(std::regex_search(match->str(2), std::regex("nan|inf"))) << match->str(0).substr(0, 200);
  }
  EXPECT_GT(drawn, 50);
}

TEST(HtmlReport, StepsWithoutAFiniteLossAreOnTheAxisAndBreakTheLine) {
  RunHistory h;
  for (int64_t step = 1; step <= 40; ++step) {
    const bool finite = step <= 10 || step == 15 || (step >= 21 && step <= 30);
    std::string line = StepLine(step, 2);
    if (!finite) line.replace(line.find("\"loss\":2"), 8, "\"loss\":null");
    h.AddLine(line);
  }
  h.AddLine("{\"health\":{\"step\":20,\"kind\":\"rollback\",\"message\":\"\"}}");
  const std::string page = Render(h);
  const size_t loss = page.find("aria-label=\"Loss\"");
  ASSERT_NE(loss, std::string::npos);
  const std::string svg = page.substr(loss, page.find("</svg>", loss) - loss);
  EXPECT_NE(svg.find("data-x=\"1 40 "), std::string::npos) << svg.substr(0, 300);
  const size_t line = svg.find("<path class=\"line c1\"");
  ASSERT_NE(line, std::string::npos);
  EXPECT_EQ(Count(svg.substr(line, svg.find("/>", line) - line), "M"), 3);  // three pieces
  EXPECT_NE(svg.find("rolled back to step 20"), std::string::npos);
  EXPECT_NE(page.find("</i>rolled back"), std::string::npos);  // in the legend
  EXPECT_NE(page.find("newest not finite"), std::string::npos);
}

TEST(HtmlReport, TicksOfANarrowRangeDifferFromEachOther) {
  RunHistory h;
  for (int64_t step = 1'234'500; step <= 1'234'600; ++step) {
    std::string line = StepLine(step, 5.76831 + 1e-6 * static_cast<double>(step % 100));
    h.AddLine(line);
  }
  const std::string page = Render(h);
  for (const char* title : {"Loss", "Gradient norm"}) {
    const size_t begin = page.find(absl::StrCat("aria-label=\"", title, "\""));
    const std::string svg = page.substr(begin, page.find("</svg>", begin) - begin);
    for (const char* axis : {"ty", "tx"}) {
      std::set<std::string> labels;
      int count = 0;
      const std::regex text(absl::StrCat("<text class=\"", axis, "\"[^>]*>([^<]*)<"));
      for (std::sregex_iterator match(svg.begin(), svg.end(), text), end; match != end; ++match, ++count) {
        labels.insert(match->str(1));
      }
      EXPECT_GE(count, 2) << title << " " << axis;
      EXPECT_EQ(static_cast<int>(labels.size()), count) << title << " " << axis;
    }
  }
}

TEST(HtmlReport, SaysWhereRanksShareCores) {
  RunHistory h;
  h.AddLine(StepLine(1, 2, ",\"ranks\":{\"num_ranks\":4,\"num_steps\":1,\"crowded_hosts\":[\"<n>\",5]}"));
  ASSERT_EQ(h.ranks.crowded_hosts, std::vector<std::string>{"<n>"});
  const std::string page = Render(h);
  EXPECT_NE(page.find("Ranks share cores on &lt;n&gt;"), std::string::npos);
  EXPECT_EQ(page.find("No rank has been too slow"), std::string::npos);
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, IsSmallAndShowsASpikeAmongMillionsOfSteps) {
  RunHistory h;
  constexpr int64_t kSteps = 1'000'000;
  for (int64_t step = 1; step <= kSteps; ++step) {
    h.AddLine(StepLine(step, step == 654'321 ? 50 : 3));
    if (step % 10'000 == 0) {
      h.AddLine(absl::StrCat("{\"sample\":{\"step\":", step, ",\"text\":\"", std::string(6000, 'x'), "\"}}"));
      h.AddLine(absl::StrCat("{\"evaluation\":{\"step\":", step, ",\"loss\":3}}"));
      h.AddLine(absl::StrCat("{\"checkpoint\":{\"step\":", step,
                             ",\"outcome\":\"saved\",\"seconds\":1,\"bytes\":1}}"));
      h.AddLine(absl::StrCat("{\"health\":{\"step\":", step, ",\"kind\":\"spike\",\"message\":\"m\"}}"));
    }
  }
  const std::string page = Render(h);
  EXPECT_LT(page.size(), size_t{1} << 20);
  EXPECT_NE(page.find("1,000,000"), std::string::npos);
  // Far outside: cut at the border, where a triangle tells its value.
  EXPECT_TRUE(std::regex_search(page, std::regex("class=\"cut\"[^>]*><title>step 65[0-9],[0-9]{3}: 50<")));
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, DrawsReferenceLinesEventsAndDifferencesFromDefaults) {
  RunHistory h;
  for (int64_t step = 1; step <= 100; ++step)
    h.AddLine(StepLine(step, 5.0 - 0.04 * static_cast<double>(step)));
  h.AddLine("{\"evaluation\":{\"step\":50,\"loss\":3.1,\"source_entropy\":1.0}}");
  h.AddLine("{\"evaluation\":{\"step\":100,\"loss\":1.4,\"source_entropy\":1.0}}");
  h.AddLine("{\"checkpoint\":{\"step\":80,\"outcome\":\"saved\",\"seconds\":1}}");
  h.AddLine(
      "{\"gates\":{\"step\":100,\"blocks\":[{\"block\":0,\"cell\":\"mLSTM\",\"input\":{\"mean\":-9,\"min\":-"
      "10,\"max\":-8,\"beyond\":0.1},\"forget\":{\"mean\":4}}]}}");
  ReportInput input = {.run_dir = "runs/x"};
  RecordedStart start;
  start.start = {.attempt = 1,
                 .total_steps = 200,
                 .num_ranks = 2,
                 .hosts = {"n1"},
                 .mesh = "replicate 2",
                 .device = "cpu",
                 .vocab_size = 64,
                 .unigram_entropy = 2.9};
  RecordedStart second = start;
  second.start.attempt = 2;
  second.start.step = 60;
  input.starts = {start, second};
  input.config = {{"model.num_blocks", "4"}, {"train.steps", "200"}};
  input.default_config = {{"model.num_blocks", "4"}, {"train.steps", "1000"}};
  const std::string page = Render(h, input);
  for (const char* text :
       {"entropy of the source 1.0000", "single tokens 2.9000", "guessing 4.1589", "checkpoint of step 80",
        "start 2 went on from step 60", "data-name=\"validation\"", "Input gate, mean",
        "class=\"set\"><code>train.steps</code>", "<s>1000</s>", "replicate 2", "no orderly end"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(Count(page, "class=\"set\""), 1);
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, AJsonFileAndAConfigMakeItLaterToo) {
  const TempDir dir;
  EXPECT_TRUE(absl::IsNotFound(WriteReport(dir.path(), dir.path() + "/r.html")));
  Write(dir.path() + "/config.textproto", "train {\n  steps: 7\n}\n");
  ASSERT_TRUE(WriteReport(dir.path(), dir.path() + "/r.html").ok());
  Write(dir.path() + "/metrics.jsonl", StepLine(1, 3) + "\n");
  ASSERT_TRUE(WriteReport(dir.path(), dir.path() + "/r.html").ok());
  EXPECT_NE(Read(dir.path() + "/r.html").find("train.steps"), std::string::npos);
  const absl::Status status = WriteReport(dir.path(), "/nonexistent/r.html");
  EXPECT_NE(std::string(status.message()).find("/nonexistent/r.html"), std::string::npos);
}

TEST(HtmlReport, KnowsTheDefaultsOfAConfig) {
  const std::string text = DefaultConfigText(
      "model {\n  family: XLSTM_LARGE\n  embedding_dim: 64\n  num_blocks: 2\n  num_heads: 2\n}\ndata {\n  "
      "tokenizer: BYTES\n}\ntrain {\n  steps: 7\n}\n");
  EXPECT_NE(text.find("steps: 1000"), std::string::npos) << text;
  EXPECT_EQ(DefaultConfigText("nonsense"), "");
}

// ---- the sink

TEST(HtmlReportSink, KeepsThePageUpToDateWhileARunGoesOnAndSaysHowItEnded) {
  const TempDir dir;
  const std::string metrics = dir.path() + "/metrics.jsonl", page = ReportPath(dir.path());
  Write(metrics, StepLine(1, 3) + "\n");
  HtmlReportSink sink(dir.path(), true, 0.05);
  ASSERT_TRUE(sink.Start({.attempt = 1, .total_steps = 10, .unix_seconds = 1e9}).ok());
  const auto wait_for = [&](const std::string& text) {
    for (int i = 0; i < 600; ++i) {
      if (Read(page).find(text) != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  };
  EXPECT_TRUE(wait_for("running"));
  EXPECT_TRUE(wait_for("http-equiv=\"refresh\""));
  std::ofstream(metrics, std::ios::app) << StepLine(2, 3) << "\n" << StepLine(3, 3) << "\n";
  EXPECT_TRUE(wait_for("of 10, 30.0 %"));
  ASSERT_TRUE(sink.End(3, "stopped by a signal").ok());
  EXPECT_NE(Read(page).find("stopped by a signal"), std::string::npos);
  EXPECT_EQ(Read(page).find("http-equiv=\"refresh\""), std::string::npos);
  const std::vector<RecordedStart> starts = ReadRunStarts(dir.path());
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_TRUE(starts[0].ended);
  EXPECT_EQ(starts[0].end_step, 3);
  // Nothing but whole files.
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  }
}

TEST(RunStarts, AreReadBackAndSurviveWhatIsNotTheirs) {
  const TempDir dir;
  EXPECT_TRUE(ReadRunStarts(dir.path()).empty());
  ASSERT_TRUE(RecordRunStart(dir.path(), {.attempt = 1, .hosts = {"a", "b"}, .command = "x\"y"}).ok());
  std::ofstream(StartsPath(dir.path()), std::ios::app)
      << "garbage\n{\"end\":{\"attempt\":9}}\n[]\n{\"start\":3}\n";
  ASSERT_TRUE(RecordRunEnd(dir.path(), 1, 5, "failed: \xff", 2e9).ok());
  ASSERT_TRUE(RecordRunStart(dir.path(), {.attempt = 2, .step = 5}).ok());
  const std::vector<RecordedStart> starts = ReadRunStarts(dir.path());
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts[0].start.hosts, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(starts[0].start.command, "x\"y");
  EXPECT_EQ(starts[0].end_step, 5);
  EXPECT_FALSE(starts[1].ended);
  std::filesystem::create_directories(dir.path() + "/attempts/10");
  std::filesystem::create_directories(dir.path() + "/attempts/9");
  std::filesystem::create_directories(dir.path() + "/attempts/x");
  Write(dir.path() + "/attempts/10/exit.json",
        "{\"exit_code\":71,\"reason\":\"hang\",\"rank\":3,\"host\":\"n\",\"step\":7}");
  Write(dir.path() + "/attempts/9/exit.json", "not json");
  const std::vector<RecordedAttempt> attempts = ReadAttempts(dir.path());
  ASSERT_EQ(attempts.size(), 1u);
  EXPECT_EQ(attempts[0].attempt, 10);
  EXPECT_EQ(attempts[0].exit_code, 71);
  EXPECT_EQ(attempts[0].rank, 3);
}

TEST(RemoveOldTemporaries, TakesOnlyThoseOfThisFileThatNobodyWritesAnyMore) {
  const TempDir dir;
  const std::string path = dir.path() + "/report.html";
  const auto old = std::filesystem::file_time_type::clock::now() - std::chrono::minutes(11);
  for (const char* name : {".tmp.12", ".tmp.13", ".tmp.x1", ".tmp.", "2.tmp.5", ""}) {
    Write(path + name, "x");
    if (std::string(name) != ".tmp.13") std::filesystem::last_write_time(path + name, old);
  }
  RemoveOldTemporaries(path);
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp.12"));
  for (const char* name : {".tmp.13", ".tmp.x1", ".tmp.", "2.tmp.5", ""}) {
    EXPECT_TRUE(std::filesystem::exists(path + name)) << name;
  }
  RemoveOldTemporaries("no/such/directory/report.html");
}

TEST(EscapedHtml, LeavesNothingThatMeansSomething) {
  EXPECT_EQ(EscapedHtml("<a b=\"c\">&'\t\n"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;\t\n");
  EXPECT_EQ(EscapedHtml(std::string("\0\x1b\x7f", 3)), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(EscapedHtml("\xc2\x9b\xc3\xa9\xff"), "\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd");
  EXPECT_EQ(EscapedHtml("cut short \xe2\x82"), "cut short \xef\xbf\xbd");
}

TEST(ShortNumber, HasFewDigits) {
  EXPECT_EQ(ShortNumber(0), "0");
  EXPECT_EQ(ShortNumber(2.71828), "2.718");
  EXPECT_EQ(ShortNumber(12345), "12.35k");
  EXPECT_EQ(ShortNumber(3e6), "3M");
  EXPECT_EQ(ShortNumber(1e-5), "1e-05");
  EXPECT_EQ(ShortNumber(std::nan("")), "-");
  EXPECT_EQ(Thousands(1234567), "1,234,567");
  EXPECT_EQ(Thousands(-1234), "-1,234");
  EXPECT_EQ(Thousands(999), "999");
}
}  // namespace
}  // namespace carousel
