// metrics.jsonl: every step once, whatever happened to the run in between.
#include "launcher/report/metrics_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/temp_dir.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

std::string Read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}
void Write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}
// Every line, which must be JSON.
std::vector<Json> Lines(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream in(Read(path));
  for (std::string line; std::getline(in, line);) {
    lines.push_back(Json::parse(line, nullptr, false));
    EXPECT_TRUE(lines.back().is_object()) << line;
  }
  return lines;
}
std::vector<int64_t> Steps(const std::string& path) {
  std::vector<int64_t> steps;
  for (const Json& line : Lines(path)) {
    if (line.contains("step")) steps.push_back(line["step"].get<int64_t>());
  }
  return steps;
}
std::unique_ptr<MetricsFile> MustOpen(const std::string& path, int64_t finished_steps) {
  absl::StatusOr<std::unique_ptr<MetricsFile>> file = MetricsFile::Open(path, finished_steps);
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? std::move(*file) : nullptr;
}
void AppendSteps(MetricsFile& file, int64_t first, int64_t last) {
  for (int64_t step = first; step <= last; ++step) {
    EXPECT_TRUE(
        file.Append({.step = step, .tokens = 10 * step, .loss = 1.0 / static_cast<double>(step)}).ok());
  }
}

TEST(MetricsFile, KeepsNumbersToTheLastBit) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  const double loss = std::nextafter(2.0 / 3.0, 1.0);
  const std::unique_ptr<MetricsFile> file = MustOpen(path, 0);
  ASSERT_TRUE(file->Append({.step = 1,
                            .tokens = 4096,
                            .loss = loss,
                            .grad_norm = 1e-300,
                            .lr = 0.1,
                            .data_digest = 0xfedcba9876543210u})
                  .ok());
  ASSERT_TRUE(
      file->Append({.step = 2, .loss = std::numeric_limits<double>::quiet_NaN(), .skipped = true}).ok());
  const std::vector<Json> lines = Lines(path);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["loss"].get<double>(), loss);
  EXPECT_EQ(lines[0]["grad_norm"].get<double>(), 1e-300);
  EXPECT_EQ(lines[0]["tokens"].get<int64_t>(), 4096);
  EXPECT_EQ(lines[0]["data_digest"], "fedcba9876543210");
  EXPECT_FALSE(lines[0]["skipped"].get<bool>());
  EXPECT_TRUE(lines[1]["loss"].is_null());
  EXPECT_TRUE(lines[1]["skipped"].get<bool>());
}

TEST(MetricsFile, ARunThatGoesBackToACheckpointRepeatsNoStep) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  {
    const std::unique_ptr<MetricsFile> file = MustOpen(path, 0);
    AppendSteps(*file, 1, 4);
    ASSERT_TRUE(file->AppendEvaluation({.step = 4, .loss = 3}).ok());
    AppendSteps(*file, 5, 7);
    ASSERT_TRUE(file->AppendEvaluation({.step = 6, .loss = 2}).ok());
    ASSERT_TRUE(file->AppendSample(6, "text").ok());
  }
  const std::unique_ptr<MetricsFile> file = MustOpen(path, 5);
  EXPECT_EQ(file->num_dropped_lines(), 4);  // steps 6 and 7, the evaluation and the sample of step 6
  EXPECT_EQ(Steps(path), (std::vector<int64_t>{1, 2, 3, 4, 5}));
  AppendSteps(*file, 6, 8);
  ASSERT_TRUE(file->AppendEvaluation({.step = 6, .loss = 2.5}).ok());
  EXPECT_EQ(Steps(path), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  const std::vector<Json> lines = Lines(path);
  EXPECT_EQ(lines.size(), 10u);
  EXPECT_EQ(lines.back()["evaluation"]["loss"].get<double>(), 2.5);
}

TEST(MetricsFile, AnEvaluationThatStandsThereIsNotRepeated) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  {
    const std::unique_ptr<MetricsFile> file = MustOpen(path, 0);
    AppendSteps(*file, 1, 2);
    ASSERT_TRUE(file->AppendEvaluation({.step = 2, .loss = 3}).ok());
    ASSERT_TRUE(file->AppendSample(2, "a").ok());
  }
  const std::string before = Read(path);
  const std::unique_ptr<MetricsFile> file = MustOpen(path, 2);
  ASSERT_TRUE(file->AppendEvaluation({.step = 2, .loss = 3}).ok());
  ASSERT_TRUE(file->AppendSample(2, "a").ok());
  EXPECT_EQ(Read(path), before);
}

TEST(MetricsFile, ALastLineCutShortAnywhereIsDroppedAndTheRestStays) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  { AppendSteps(*MustOpen(path, 0), 1, 3); }
  const std::string whole = Read(path);
  const size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  for (size_t size = last; size < whole.size(); size += size + 9 < whole.size() ? 9 : 1) {
    Write(path, whole.substr(0, size));
    {
      const std::unique_ptr<MetricsFile> file = MustOpen(path, 2);
      AppendSteps(*file, 3, 3);
    }
    ASSERT_EQ(Read(path), whole) << "cut at byte " << size;
  }
}

TEST(MetricsFile, LinesThatAreNotOursAreDroppedOrKeptButNeverHarm) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  Write(
      path,
      "{\"step\":1}\n\n[1]\n{\"step\":\"x\"}\n{\"note\":1}\n\xff\xfe\n{\"step\":1e300}\n{\"evaluation\":7}\n"
      "{\"step\":2}\n");
  const std::unique_ptr<MetricsFile> file = MustOpen(path, 1);
  EXPECT_EQ(Read(path),
            "{\"step\":1}\n{\"step\":\"x\"}\n{\"note\":1}\n{\"step\":1e300}\n{\"evaluation\":7}\n");
}

TEST(MetricsFile, AFileOfManyPiecesLosesTheSameLinesInItsMiddleAndAtItsEnd) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  std::string kept, old;
  // Lines of all lengths, so that their ends fall anywhere into what is read at once.
  for (int step = 1; old.size() < (9 << 20); ++step) {
    const std::string line =
        "{\"step\":" + std::to_string(step) + ",\"x\":\"" + std::string(step % 977, 'x') + "\"}\n";
    kept += line;
    old += line;
  }
  const int64_t last = std::count(kept.begin(), kept.end(), '\n');
  const std::string later = "{\"step\":" + std::to_string(last + 1) + "}\n";
  for (const bool middle : {false, true}) {
    const size_t place = middle ? old.rfind('\n', old.size() / 2) + 1 : old.size();
    const std::string repeated = old.substr(0, old.find('\n') + 1);
    Write(path, old.substr(0, place) + repeated + later + old.substr(place) + later);
    EXPECT_EQ(MustOpen(path, last)->num_dropped_lines(), 3);
    EXPECT_TRUE(Read(path) == kept) << middle;
    Write(path, old.substr(0, old.size() - 1));
    EXPECT_EQ(MustOpen(path, last)->num_dropped_lines(), 0);
    EXPECT_TRUE(Read(path) == kept) << middle;
  }
}

TEST(MetricsFile, NothingIsTouchedWhenNothingIsDropped) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  { AppendSteps(*MustOpen(path, 0), 1, 3); }
  const auto before = std::filesystem::last_write_time(path);
  EXPECT_EQ(MustOpen(path, 3)->num_dropped_lines(), 0);
  EXPECT_EQ(std::filesystem::last_write_time(path), before);
}

TEST(MetricsFile, TextThatIsNotUtf8IsWrittenAsValidJson) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  const std::unique_ptr<MetricsFile> file = MustOpen(path, 0);
  ASSERT_TRUE(file->AppendSample(1, "a\xff\"\n\x01 b\xc3").ok());
  const std::vector<Json> lines = Lines(path);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["sample"]["text"], "a\xef\xbf\xbd\"\n\x01 b\xef\xbf\xbd");
}

TEST(MetricsFile, AWriteThatFailsIsReportedAndTakenBack) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  const std::unique_ptr<MetricsFile> file = MustOpen(path, 0);
  AppendSteps(*file, 1, 2);
  const std::string before = Read(path);
  // The file may grow by ten bytes only, as on a disk that is nearly full.
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = old;
  limit.rlim_cur = before.size() + 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const absl::Status status = file->Append({.step = 3});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(status.ok());
  EXPECT_NE(std::string(status.message()).find(path), std::string::npos) << status;
  EXPECT_EQ(Read(path), before);
  AppendSteps(*file, 3, 3);
  EXPECT_EQ(Steps(path), (std::vector<int64_t>{1, 2, 3}));
}

TEST(MetricsFile, ADirectoryThatIsNotThereIsNamed) {
  const absl::StatusOr<std::unique_ptr<MetricsFile>> file =
      MetricsFile::Open("/nonexistent/metrics.jsonl", 0);
  ASSERT_FALSE(file.ok());
  EXPECT_NE(std::string(file.status().message()).find("/nonexistent/metrics.jsonl"), std::string::npos);
}
}  // namespace
}  // namespace carousel
