// `carousel data` as a user calls it, and the script that extracts the novels.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <sstream>

#include "launcher/commands.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {

struct Outcome {
  int exit_code = 0;
  std::string out, err;
};

// What main() does with these arguments after the program's name.
Outcome Call(std::vector<std::string> arguments) {
  CLI::App app;
  std::function<int()> run;
  AddDataCommand(app, &run);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants a vector
  Outcome outcome;
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    outcome.exit_code = app.exit(error, out, err) == 0 ? kExitOk : kExitUsage;
    outcome.out = out.str();
    outcome.err = err.str();
    return outcome;
  }
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  outcome.exit_code = run();
  std::fflush(stdout);
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

void ExpectPrints(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
}

TEST(DataCommand, BuildsAndInspects) {
  const TemporaryFolder folder;
  WriteFile(folder / "a.txt", "one\n\ntwo\n\nthree");
  Outcome outcome = Call({"data", "build", "--input", folder / "a.txt", "--output", folder / "out",
                          "--document_separator", "\\n\\n"});
  EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  ExpectPrints(outcome.out, {"14 tokens", "3 documents", "11 bytes of text", "MB/s"});
  EXPECT_EQ(outcome.err, "");  // no progress line where there is no terminal

  outcome = Call({"data", "inspect", folder / "out", "--sample", "20", "--verify"});
  EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  ExpectPrints(outcome.out,
               {"documents  3", "\"one\"", "\"three\"", "below 258", "checksums of .bin and .idx are right"});

  outcome = Call({"data", "inspect", folder / "out", "--vocab_size", "100"});
  EXPECT_EQ(outcome.exit_code, kExitFailure);
  ExpectPrints(outcome.err, {"out.bin", "token id 111 at position 0", ">= the vocabulary of 100"});

  outcome = Call({"data", "build", "--input", folder / "a.txt", "--output", folder / "out"});
  EXPECT_EQ(outcome.exit_code, kExitFailure);
  ExpectPrints(outcome.err, {"exists already", "--force"});
}

TEST(DataCommand, FindsDamage) {
  const TemporaryFolder folder;
  WriteDocuments(folder / "a", {"text"});
  std::string bin = ReadFile(folder / "a.bin");
  bin[0] ^= 1;
  WriteFile(folder / "a.bin", bin);
  EXPECT_EQ(Call({"data", "inspect", folder / "a"}).exit_code, kExitOk);
  const Outcome outcome = Call({"data", "inspect", folder / "a", "--verify"});
  EXPECT_EQ(outcome.exit_code, kExitFailure);
  ExpectPrints(outcome.err, {"a.bin has CRC-32C"});
}

TEST(DataCommand, WritesTextOfKnownEntropyThatCanBeBuilt) {
  const TemporaryFolder folder;
  Outcome outcome = Call({"data", "synth", "--output", folder / "s.txt", "--bytes", "100000"});
  EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  ExpectPrints(outcome.out, {"bits per byte"});
  EXPECT_GE(ReadFile(folder / "s.txt").size(), 100'000u);
  EXPECT_EQ(Call({"data", "synth", "--output", folder / "s.txt", "--bytes", "5"}).exit_code, kExitFailure);
  outcome = Call({"data", "build", "--input", folder / "s.txt", "--output", folder / "s",
                  "--validation_fraction", "0.1"});
  EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_NE(MustOpen(folder / "s_train"), nullptr);
  EXPECT_NE(MustOpen(folder / "s_valid"), nullptr);
}

TEST(DataTaskCommand, MakesEveryTask) {
  const TemporaryFolder folder;
  const std::vector<std::pair<std::string, std::vector<std::string>>> tasks = {
      {"parity", {}},
      {"even_pairs", {}},
      {"cycle_navigation", {"--modulus", "3"}},
      {"modular_arithmetic", {}},
      {"modular_arithmetic", {"--brackets", "--modulus", "7"}},
      {"majority", {"--symbols", "5"}},
      {"mqar",
       {"--context", "32", "--pairs", "4", "--test_context", "64", "--test_pairs", "8", "--vocab", "64"}}};
  int64_t vocabulary[] = {3, 3, 7, 10, 14, 6, 64};
  for (size_t i = 0; i < tasks.size(); ++i) {
    const std::string prefix = folder / ("t" + std::to_string(i));
    std::vector<std::string> arguments = {"data",       "task", tasks[i].first,    "--output", prefix,
                                          "--problems", "50",   "--test_problems", "20",       "--seed",
                                          "4"};
    arguments.insert(arguments.end(), tasks[i].second.begin(), tasks[i].second.end());
    const Outcome outcome = Call(arguments);
    EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
    ExpectPrints(outcome.out,
                 {prefix + "_train.{bin,idx,meta,labels}: 50 problems", "always the most frequent answer",
                  "the first problem, its answers in brackets: ",
                  "model { vocab_size: " + std::to_string(vocabulary[i]) + " }", "tokenizer: TASK"});
    for (const char* split : {"_train", "_valid"}) {
      const auto file = MustOpen(prefix + split);
      ASSERT_NE(file, nullptr);
      EXPECT_EQ(file->task()->name, tasks[i].first);
      EXPECT_EQ(file->meta()->vocab_size, vocabulary[i]);
      const Outcome inspected =
          Call({"data", "inspect", prefix + split, "--sample", "1", "--sample_tokens", "400", "--verify"});
      EXPECT_EQ(inspected.exit_code, kExitOk) << inspected.err;
      ExpectPrints(inspected.out, {"task       " + tasks[i].first + " ", "--seed 4", "(.labels)", "] ",
                                   "checksums of .bin, .idx and .labels are right"});
    }
  }
  EXPECT_EQ(Call({"data", "task", "parity", "--output", folder / "t0"}).exit_code, kExitFailure);
}

TEST(DataTaskCommand, MakesTextOfKnownEntropy) {
  const TemporaryFolder folder;
  const Outcome outcome = Call({"data", "task", "markov", "--out", folder / "m", "--letters", "3000",
                                "--test_letters", "1000", "--alphabet", "4", "--order", "1"});
  EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  ExpectPrints(outcome.out, {"3,001 tokens", "entropy of the source: 0.889858", "tokenizer: BYTES"});
  const Outcome inspected = Call({"data", "inspect", folder / "m_valid", "--sample", "1", "--verify"});
  EXPECT_EQ(inspected.exit_code, kExitOk) << inspected.err;
  ExpectPrints(inspected.out, {"task       markov --alphabet 4 --order 1", "entropy    0.889858"});
}

TEST(DataTaskCommand, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const auto refuse = [&](const std::vector<std::string>& more, const std::vector<std::string>& parts) {
    std::vector<std::string> arguments = {"data", "task"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.insert(arguments.end(), {"--output", folder / "x"});
    const Outcome outcome = Call(arguments);
    EXPECT_EQ(outcome.exit_code, kExitUsage);
    ExpectPrints(outcome.err, parts);
    EXPECT_EQ(folder.NumFiles(), 0);
  };
  refuse({"parity", "--lengths", "40:3"}, {"shortest length 40 is above the longest 3"});
  refuse({"parity", "--lengths", "3-40"}, {"--lengths 3-40", "3:40"});
  refuse({"parity", "--test_lengths", "1:2:3"}, {"--test_lengths 1:2:3"});
  refuse({"parity", "--test_lengths", "99999999999999999999"}, {"--test_lengths"});
  refuse({"parity", "--lengths", "0:7"}, {"0 to 7"});
  refuse({"parity", "--row_tokens", "41"}, {"rows of 41", "42 tokens"});
  refuse({"parity", "--problems", "0"}, {"--problems"});
  refuse({"cycle_navigation", "--modulus", "1"}, {"a modulus of 1"});
  refuse({"mqar", "--context", "16"}, {"16"});
  refuse({"mqar", "--vocab", "-5"}, {"a vocabulary of -5"});
  refuse({"markov", "--alphabet", "27"}, {"27 letters"});
  refuse({"markov", "--order", "9"}, {"order of 9"});
  EXPECT_EQ(Call({"data", "task"}).exit_code, kExitUsage);
  EXPECT_EQ(Call({"data", "task", "parity"}).exit_code, kExitUsage);
}

TEST(DataTaskCommand, HelpsWithExamples) {
  for (const char* name :
       {"parity", "even_pairs", "cycle_navigation", "modular_arithmetic", "majority", "mqar", "markov"}) {
    const Outcome outcome = Call({"data", "task", name, "--help"});
    EXPECT_EQ(outcome.exit_code, kExitOk);
    ExpectPrints(outcome.out, {"Example", std::string("carousel data task ") + name, "--seed"});
  }
}

TEST(DataCommand, SaysWhatIsWrongWithTheCommandLine) {
  const TemporaryFolder folder;
  EXPECT_EQ(Call({"data"}).exit_code, kExitUsage);
  EXPECT_EQ(Call({"data", "build"}).exit_code, kExitUsage);
  EXPECT_EQ(Call({"data", "build", "--input", "a", "--output", "b", "--format", "xml"}).exit_code,
            kExitUsage);
  EXPECT_EQ(Call({"data", "inspect", "a", "--sample", "-1"}).exit_code, kExitUsage);
  WriteFile(folder / "a.txt", "x");
  const auto build = [&](const std::string& option, const std::string& value) {
    return Call({"data", "build", "--input", folder / "a.txt", "--output", folder / "out", option, value});
  };
  Outcome outcome = build("--document_separator", "\\q");
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  ExpectPrints(outcome.err, {"--document_separator \\q"});
  outcome = build("--tokenizer", "words");
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  ExpectPrints(outcome.err, {"\"words\"", "bytes"});
  outcome = build("--validation_fraction", "1.5");
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  ExpectPrints(outcome.err, {"1.5", "0.1"});
}

TEST(DataCommand, HelpsWithExamples) {
  for (const char* name : {"build", "inspect", "synth"}) {
    const Outcome outcome = Call({"data", name, "--help"});
    EXPECT_EQ(outcome.exit_code, kExitOk);
    ExpectPrints(outcome.out, {"Example", std::string("carousel data ") + name});
  }
}

// A chunk of R's lazy-load file: the lines as an XDR character vector (serialisation version 3), in a zlib
// stream of stored blocks (RFC 1950 and 1951), made by hand.
std::string RdbChunk(const std::vector<std::string>& lines) {
  const auto big_endian = [](uint32_t v) {
    return std::string{static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8),
                       static_cast<char>(v)};
  };
  std::string data = "X\n" + big_endian(3) + big_endian(0x040201) + big_endian(0x030500) + big_endian(5) +
                     "UTF-8" + big_endian(16) + big_endian(static_cast<uint32_t>(lines.size()));
  for (const std::string& line : lines) {
    data += big_endian(0x40009) + big_endian(static_cast<uint32_t>(line.size())) + line;
  }
  uint32_t a = 1, b = 0;
  for (const char c : data) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  const uint16_t size = static_cast<uint16_t>(data.size());
  std::string block = "\x78\x01\x01";
  AppendBytes<uint16_t>(&block, size);
  AppendBytes<uint16_t>(&block, static_cast<uint16_t>(~size));
  return big_endian(static_cast<uint32_t>(data.size())) + block + data + big_endian(b << 16 | a);
}

Outcome RunScript(const std::string& options, const std::string& rdb, const TemporaryFolder& folder) {
  WriteFile(folder / "Rdata.rdb", rdb);
  const std::string script = std::string(CAROUSEL_SOURCE_DIR) + "/launcher/scripts/austen_text.pl";
  const int status = std::system(("perl '" + script + "' " + options + " '" + (folder / "Rdata.rdb") +
                                  "' >'" + (folder / "out") + "' 2>'" + (folder / "err") + "'")
                                     .c_str());
  return {WEXITSTATUS(status), ReadFile(folder / "out"), ReadFile(folder / "err")};
}

TEST(AustenText, JoinsTheLinesOfEveryBook) {
  const TemporaryFolder folder;
  const std::string rdb = RdbChunk({"EMMA", "", "by Jane"}) + RdbChunk({"PERSUASION"});
  const Outcome outcome = RunScript("--any-version", rdb, folder);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "EMMA\n\nby Jane\nPERSUASION\n");
}

TEST(AustenText, RefusesAnotherText) {
  const TemporaryFolder folder;
  const Outcome outcome = RunScript("", RdbChunk({"MOBY DICK"}), folder);
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_EQ(outcome.out, "");
  ExpectPrints(outcome.err, {"10 bytes", "expected 4025029 bytes"});
}

TEST(AustenText, RefusesADamagedFileWhereverItIsCut) {
  const TemporaryFolder folder;
  const std::string rdb = RdbChunk({"EMMA", "by Jane"});
  for (size_t size = 1; size < rdb.size(); size += 7) {
    const Outcome outcome = RunScript("--any-version", rdb.substr(0, size), folder);
    EXPECT_NE(outcome.exit_code, 0) << size;
    EXPECT_EQ(outcome.out, "") << size;
  }
}
}  // namespace
}  // namespace carousel
