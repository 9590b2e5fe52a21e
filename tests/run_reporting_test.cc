// What shows a run apart from metrics.jsonl and TensorBoard: sinks that fail, the Prometheus file, who is
// slow, and the profile of a few steps.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/base/log.h"
#include "core/comm/comm_time.h"
#include "launcher/config_leaves.h"
#include "launcher/plan/device_peak.h"
#include "launcher/report/metrics_sinks.h"
#include "launcher/report/prometheus_sink.h"
#include "launcher/report/rank_timings.h"
#include "launcher/report/run_profiler.h"
#include "parallel/local_communicator.h"
#include "tests/layer_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

std::string Read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// ---- the list of sinks

class FlakySink final : public MetricsSink {
 public:
  explicit FlakySink(std::vector<int64_t>* steps, std::set<int64_t> failing = {})
      : steps_(*steps), failing_(std::move(failing)) {}
  std::string name() const override { return "flaky"; }
  absl::Status Append(const StepMetrics& m) override {
    if (failing_.count(m.step) > 0) return absl::ResourceExhaustedError("no space");
    steps_.push_back(m.step);
    return absl::OkStatus();
  }
  absl::Status AppendEvaluation(const EvaluationReport&) override { return absl::OkStatus(); }
  absl::Status AppendSample(int64_t, const std::string&) override { return absl::OkStatus(); }
  absl::Status AppendCheckpoint(const CheckpointMetrics&) override { return absl::OkStatus(); }

 private:
  std::vector<int64_t>& steps_;
  const std::set<int64_t> failing_;
};

TEST(MetricsSinks, OneThatFailsIsWarnedAboutOncePerOccurrenceAndHarmsNothing) {
  std::vector<int64_t> good, flaky;
  MetricsSinks sinks;
  sinks.Add(std::make_unique<FlakySink>(&flaky, std::set<int64_t>{2, 3, 4, 7}));
  sinks.Add(std::make_unique<FlakySink>(&good));
  ::testing::internal::CaptureStderr();
  for (int64_t step = 1; step <= 8; ++step) EXPECT_TRUE(sinks.Append({.step = step}).ok());
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(good, (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(flaky, (std::vector<int64_t>{1, 5, 6, 8}));
  const auto count = [&](const std::string& text) {
    int found = 0;
    for (size_t at = log.find(text); at != std::string::npos; at = log.find(text, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count("no space"), 2) << log;
  EXPECT_EQ(count("written again; 3 records are missing"), 1) << log;
  EXPECT_EQ(count("written again; 1 records are missing"), 1) << log;
}

TEST(MetricsSinks, StepsAreCompletedBeforeTheyAreGivenOut) {
  std::vector<int64_t> steps;
  MetricsSinks sinks;
  sinks.Add(std::make_unique<FlakySink>(&steps));
  sinks.CompleteSteps([](StepMetrics* m) { m->step *= 10; });
  EXPECT_TRUE(sinks.Append({.step = 4}).ok());
  EXPECT_EQ(steps, std::vector<int64_t>{40});
}

// ---- Prometheus

// Every line as the text format 0.0.4 wants it; the value of each sample by name and labels.
std::map<std::string, std::string> Samples(const std::string& text) {
  std::map<std::string, std::string> samples;
  std::set<std::string> typed, helped;
  const std::regex help("# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) [^\n]+");
  const std::regex type("# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge)");
  const std::string label = R"re([a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*")re";
  const std::regex sample("([a-zA-Z_:][a-zA-Z0-9_:]*)(\\{" + label + "(?:," + label + ")*\\}) ([^ ]+)");
  EXPECT_EQ(text.back(), '\n');
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    std::smatch match;
    if (std::regex_match(line, match, help)) {
      EXPECT_TRUE(helped.insert(match[1]).second) << line;
    } else if (std::regex_match(line, match, type)) {
      EXPECT_TRUE(typed.insert(match[1]).second) << line;
    } else if (std::regex_match(line, match, sample)) {
      EXPECT_TRUE(typed.count(match[1]) && helped.count(match[1])) << line;
      EXPECT_TRUE(samples.emplace(match[1].str() + match[2].str(), match[3].str()).second) << line;
      const std::string value = match[3];
      if (value != "NaN" && value != "+Inf" && value != "-Inf") {
        char* end = nullptr;
        std::strtod(value.c_str(), &end);
        EXPECT_EQ(*end, 0) << line;
      }
    } else {
      ADD_FAILURE() << "not the format: " << line;
    }
  }
  return samples;
}

StepMetrics Logged(int64_t step) {
  StepMetrics m = {
      .step = step, .tokens = 100 * step, .loss = 2.5, .grad_norm = 1, .lr = 1e-3, .seconds = 0.5};
  m.logged = true;
  m.memory_bytes = 1000;
  m.ranks = RankTimings{
      .num_ranks = 2, .min_seconds = 1, .median_seconds = 1, .max_seconds = 2, .worst = {}, .chronic = {}};
  m.ranks->worst.push_back({.rank = 1, .host = "b\"\\\n", .seconds = 2, .percent_over = 100});
  return m;
}

TEST(PrometheusSink, WritesTheFormatWithEscapedLabels) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.prom";
  PrometheusSink sink(path, "runs/\"a\\b\"\n");
  ASSERT_TRUE(
      sink.Start({.attempt = 2, .step = 7, .total_steps = 50, .build = "1.0 \"x\"", .num_parameters = 9})
          .ok());
  std::map<std::string, std::string> samples = Samples(Read(path));
  const std::string run = R"(run="runs/\"a\\b\"\n")";
  EXPECT_EQ(samples["carousel_running{" + run + "}"], "1");
  EXPECT_EQ(samples["carousel_steps_total{" + run + "}"], "7");
  ASSERT_TRUE(sink.Append(Logged(8)).ok());
  StepMetrics nan = Logged(9);
  nan.loss = std::nan("");
  ASSERT_TRUE(sink.Append(nan).ok());
  ASSERT_TRUE(sink.AppendEvaluation({.step = 9, .loss = 1.5}).ok());
  ASSERT_TRUE(sink.AppendCheckpoint({.step = 9, .outcome = "saved", .seconds = 3}).ok());
  ASSERT_TRUE(sink.AppendCheckpoint({.step = 9, .outcome = "failed"}).ok());
  ASSERT_TRUE(sink.AppendHealth({.step = 9, .kind = "spike", .message = "m"}).ok());
  ASSERT_TRUE(sink.End(9, "finished").ok());
  samples = Samples(Read(path));
  EXPECT_EQ(samples["carousel_running{" + run + "}"], "0");
  EXPECT_EQ(samples["carousel_steps_total{" + run + "}"], "9");
  EXPECT_EQ(samples["carousel_loss{" + run + "}"], "NaN");
  EXPECT_EQ(samples["carousel_tokens_per_second{" + run + "}"], "200");
  EXPECT_EQ(samples["carousel_validation_loss{" + run + "}"], "1.5");
  EXPECT_EQ(samples["carousel_checkpoints_total{" + run + ",outcome=\"failed\"}"], "1");
  EXPECT_EQ(samples["carousel_checkpoint_step{" + run + "}"], "9");
  EXPECT_EQ(samples["carousel_slow_rank_busy_seconds{" + run + R"(,rank="1",host="b\"\\\n"})"], "2");
  EXPECT_EQ(samples["carousel_health_events_total{" + run + ",kind=\"spike\"}"], "1");
}

TEST(PrometheusSink, ReplacesTheFileInOneStepAndLeavesNoOther) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.prom";
  PrometheusSink sink(path, "r");
  ASSERT_TRUE(sink.Start({}).ok());
  std::ifstream before(path);  // a reader that has the file open keeps the whole old one
  ASSERT_TRUE(sink.Append(Logged(10)).ok());
  std::ostringstream old;
  old << before.rdbuf();
  EXPECT_EQ(old.str().find("carousel_loss"), std::string::npos);
  Samples(old.str());
  EXPECT_NE(Read(path).find("carousel_loss"), std::string::npos);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
  StepMetrics unlogged = {.step = 11};
  const std::string text = Read(path);
  ASSERT_TRUE(sink.Append(unlogged).ok());
  EXPECT_EQ(Read(path), text);
}

TEST(PrometheusSink, ADirectoryThatIsNotThereIsNamed) {
  PrometheusSink sink("/nonexistent/metrics.prom", "r");
  const absl::Status status = sink.Start({});
  ASSERT_FALSE(status.ok());
  EXPECT_NE(std::string(status.message()).find("/nonexistent/metrics.prom"), std::string::npos);
  EXPECT_NE(std::string(status.message()).find("; log.prometheus_path must name a file in a folder"),
            std::string::npos)
      << status;
}

// ---- who is slow

std::vector<RankPlace> Places(const std::vector<std::pair<std::string, int64_t>>& places) {
  std::vector<RankPlace> result;
  for (const auto& [host, stage] : places) result.push_back({.host = host, .stage = stage});
  return result;
}

TEST(RankTimings, NamesTheSlowestRankOfTheThreeSlowestHosts) {
  const std::vector<RankPlace> places = Places({{"a", 0}, {"a", 0}, {"b", 0}, {"b", 0}, {"c", 0}, {"d", 0}});
  const RankTimings t = CompareRanks({1.0, 1.5, 1.0, 1.2, 1.1, 1.0}, places, 10);
  EXPECT_EQ(t.num_ranks, 6);
  EXPECT_EQ(t.min_seconds, 1.0);
  EXPECT_EQ(t.median_seconds, 1.0);
  EXPECT_EQ(t.max_seconds, 1.5);
  ASSERT_EQ(t.worst.size(), 3u);
  EXPECT_EQ(t.worst[0].host, "a");
  EXPECT_EQ(t.worst[0].rank, 1);
  EXPECT_NEAR(t.worst[0].percent_over, 50, 1e-9);
  EXPECT_EQ(t.worst[1].host, "b");
  EXPECT_EQ(t.worst[1].rank, 3);
  EXPECT_EQ(t.worst[2].host, "c");
}

TEST(RankTimings, ComparesARankWithThoseOfItsStage) {
  // Stage 1 has twice the work; only rank 3 is slow.
  const RankTimings t = CompareRanks({1, 1, 2, 2.4}, Places({{"a", 0}, {"b", 0}, {"c", 1}, {"d", 1}}), 1);
  EXPECT_EQ(t.worst[0].host, "d");
  EXPECT_NEAR(t.worst[0].percent_over, 20, 1e-9);
  EXPECT_EQ(t.worst[1].percent_over, 0);
}

TEST(StragglerWatch, NamesARankOnceWhenItHasBeenSlowForLong) {
  RunLocalRanks(4, [&](Communicator& world) {
    StragglerWatch watch(world, {.host = "host" + std::to_string(world.rank() / 2)}, 8, 50);
    int named = 0;
    for (int interval = 0; interval < 10; ++interval) {
      for (int step = 0; step < 20; ++step) {
        // Rank 2 is 7 % over the others at first, which is not too slow, then 20 %.
        const double own = world.rank() != 2 ? 1.0 : interval < 3 ? 1.07 : 1.2;
        watch.AddStep(own);
      }
      const std::optional<RankTimings> timings = watch.Compare();
      ASSERT_TRUE(timings.has_value());
      EXPECT_EQ(timings->num_steps, 20);
      EXPECT_EQ(timings->chronic.size(), interval >= 5 ? 1u : 0u) << interval;  // 60 steps
      for (const RankTimings::Rank& rank : watch.newly_chronic()) {
        EXPECT_EQ(interval, 5);
        EXPECT_EQ(rank.rank, 2);
        EXPECT_EQ(rank.host, "host1");
        EXPECT_NEAR(rank.percent_over, 20, 1e-9);
        ++named;
      }
    }
    EXPECT_EQ(named, 1);
  });
}

TEST(StragglerWatch, WhereRanksShareCoresNobodyIsNamedAndThatIsSaidOnce) {
  RunLocalRanks(6, [&](Communicator& world) {
    // Ranks 0 and 1 take turns on one core; 2 and 3, and 4 and 5 have cores of their own.
    const int64_t host = world.rank() / 2;
    StragglerWatch watch(world, {.host = "a host " + std::to_string(host), .crowded = world.rank() == 0}, 8,
                         50);
    EXPECT_TRUE(watch.places()[0].crowded);
    EXPECT_FALSE(watch.places()[1].crowded);
    EXPECT_EQ(watch.places()[5].host, "a host 2");
    int named = 0, told = 0;
    for (int interval = 0; interval < 5; ++interval) {
      for (int step = 0; step < 25; ++step) watch.AddStep(world.rank() == 1 || world.rank() == 4 ? 1.5 : 1.0);
      const std::optional<RankTimings> timings = watch.Compare();
      ASSERT_TRUE(timings.has_value());
      EXPECT_EQ(timings->crowded_hosts, std::vector<std::string>{"a host 0"});
      for (const RankTimings::Rank& rank : timings->chronic) EXPECT_EQ(rank.rank, 4);
      for (const RankTimings::Rank& rank : watch.newly_chronic()) named += rank.rank == 4;
      told += watch.newly_crowded() == "a host 0";
    }
    EXPECT_EQ(named, 1);
    EXPECT_EQ(told, 1);
  });
}

TEST(StragglerWatch, MakesOneCallPerIntervalAndNoneAlone) {
  RunLocalRanks(2, [&](Communicator& world) {
    StragglerWatch watch(world, {.host = "h"}, 8, 50);
    const int64_t before = world.recorder().num_calls();
    EXPECT_FALSE(watch.Compare().has_value());  // no step yet
    EXPECT_EQ(world.recorder().num_calls(), before);
    watch.AddStep(1);
    EXPECT_TRUE(watch.Compare().has_value());
    EXPECT_EQ(world.recorder().num_calls(), before + 1);
    EXPECT_EQ(world.recorder().Entries().back().bytes(), 16);  // of both ranks
  });
  RunLocalRanks(1, [&](Communicator& world) {
    StragglerWatch watch(world, {.host = "h"}, 8, 50);
    const int64_t before = world.recorder().num_calls();
    watch.AddStep(1);
    EXPECT_FALSE(watch.Compare().has_value());
    EXPECT_EQ(world.recorder().num_calls(), before);
  });
}

TEST(CollectiveTime, IsThatOfTheWaitingRankNotOfTheSlowOne) {
  RunLocalRanks(2, [&](Communicator& world) {
    world.Barrier();
    const double before = ThreadCollectiveSeconds();
    if (world.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    world.Barrier();
    const double inside = ThreadCollectiveSeconds() - before;
    if (world.rank() == 0) {
      EXPECT_GT(inside, 0.1);
    }
    // A machine under load may delay rank 1, too, but only after both have arrived.
  });
}

TEST(CollectiveTime, CountsACallInsideOfAnotherOnce) {
  const double before = ThreadCollectiveSeconds();
  {
    const CollectiveTimer outer;
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    const CollectiveTimer inner;
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
  }
  const double inside = ThreadCollectiveSeconds() - before;
  EXPECT_GE(inside, 0.06);
  const double later = ThreadCollectiveSeconds();
  EXPECT_EQ(later - before, inside);
}

// ---- profiles

TEST(Profile, ReadsStepsAndRanks) {
  const auto parse = [](const std::string& text) { return **ParseProfile(text); };
  EXPECT_FALSE(ParseProfile("")->has_value());
  EXPECT_EQ(parse("steps:20-23").first_step, 20);
  EXPECT_EQ(parse("steps:20-23").last_step, 23);
  EXPECT_EQ(parse("steps:20-23").ranks, std::vector<int64_t>{0});
  EXPECT_EQ(parse("steps:7").last_step, 7);
  EXPECT_EQ(parse("steps:20-23,ranks:0,8").ranks, (std::vector<int64_t>{0, 8}));
  EXPECT_EQ(parse("ranks:3,3,steps:1").ranks, std::vector<int64_t>{3});
}

TEST(Profile, SaysWhatIsWrong) {
  for (const char* text : {"20-23", "steps:", "steps:0-3", "steps:5-3", "steps:1-2-3", "steps:1,2", "ranks:0",
                           "steps:1,ranks:", "steps:1,ranks:-1", "steps:1,ranks:x", "steps:1,steps:2",
                           "steps:1,ranks:0,ranks:1", "steps:1,", "steps:99999999999999999999"}) {
    const auto parsed = ParseProfile(text);
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status())) << text;
    EXPECT_NE(std::string(parsed.status().message()).find("for example steps:20-23,ranks:0,8"),
              std::string::npos);
  }
  EXPECT_FALSE(CheckProfile({.first_step = 5, .last_step = 11}, 10, 1).ok());
  EXPECT_FALSE(CheckProfile({.first_step = 5, .last_step = 6, .ranks = {2}}, 10, 2).ok());
  EXPECT_TRUE(CheckProfile({.first_step = 5, .last_step = 10, .ranks = {1}}, 10, 2).ok());
  EXPECT_TRUE(CheckProfileIsAhead({.first_step = 5, .last_step = 7}, 4).ok());
  EXPECT_NE(std::string(CheckProfileIsAhead({.first_step = 5, .last_step = 7}, 5).message())
                .find("--profile steps:7-9"),
            std::string::npos);
}

TEST(Profile, CountsTheOpsOfItsStepsAlone) {
  const TempDir dir;
  const std::unique_ptr<Device> device = testing::CpuDevice();
  RunProfiler profiler({.first_step = 2, .last_step = 3}, *device, dir.path(), 0, "ho\"st");
  std::vector<float> y(16), a(16, 1), b(16, 2);
  const auto tensor = [](std::vector<float>& v) { return Tensor(v.data(), DType::kF32, {4, 4}); };
  std::string text;
  for (int64_t step = 1; step <= 4; ++step) {
    profiler.BeforeStep(step);
    {
      Ops& ops = profiler.device().ops();
      const OpsRange range(ops, "block \"0\"");
      ops.Add({.y = tensor(y), .a = tensor(a), .b = tensor(b)});
      ops.Matmul({.c = tensor(y), .a = tensor(a), .b = tensor(b)});
    }
    const absl::StatusOr<std::string> told = profiler.AfterStep(step, Mesh{});
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(told->empty(), step != 3);
    if (step == 3) text = *told;
  }
  EXPECT_EQ(y[0], 8.0f);  // the ops were computed
  EXPECT_NE(text.find("profile of steps 2 to 3 on rank 0"), std::string::npos) << text;
  EXPECT_TRUE(std::regex_search(text, std::regex("\nMatmul +1\\.0 "))) << text;
  EXPECT_TRUE(std::regex_search(text, std::regex("\nAdd +1\\.0 "))) << text;
  const nlohmann::json trace =
      nlohmann::json::parse(Read(dir.path() + "/profile/steps-2-3.rank-0.json"), nullptr, false);
  ASSERT_TRUE(trace.is_object());
  std::map<std::string, int> events;
  double range_end = 0;
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] == "M") continue;
    ASSERT_EQ(event["ph"], "X");
    EXPECT_EQ(event["pid"], 0);
    EXPECT_GE(event["ts"].get<double>(), 0);
    EXPECT_GE(event["dur"].get<double>(), 0);
    ++events[event["name"].get<std::string>()];
    if (event["cat"] == "range") range_end = event["ts"].get<double>() + event["dur"].get<double>();
  }
  EXPECT_EQ(events, (std::map<std::string, int>{{"Add", 2}, {"Matmul", 2}, {"block \"0\"", 2}}));
  EXPECT_GT(range_end, 0);
  EXPECT_NE(Read(dir.path() + "/profile/steps-2-3.rank-0.txt").find("a step"), std::string::npos);
}

TEST(Profile, AStepFromWhichTheRunWentBackIsNotPartOfIt) {
  const TempDir dir;
  const std::unique_ptr<Device> device = testing::CpuDevice();
  RunProfiler profiler({.first_step = 3, .last_step = 4}, *device, dir.path(), 0, "host");
  std::vector<float> y(4);
  const Tensor tensor(y.data(), DType::kF32, {4});
  std::string text;
  const auto end = [&](int64_t step) {
    const absl::StatusOr<std::string> told = profiler.AfterStep(step, Mesh{});
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(told->empty(), step != 4);
    text += *told;
  };
  profiler.BeforeStep(3);  // the run goes back from it to step 2
  profiler.BeforeStep(2);
  profiler.device().ops().Fill({.y = tensor, .value = 1});
  end(2);
  for (const int64_t step : {3, 4}) {
    profiler.BeforeStep(step);
    profiler.device().ops().Add({.y = tensor, .a = tensor, .b = tensor});
    end(step);
  }
  EXPECT_TRUE(std::regex_search(text, std::regex("\nAdd +1\\.0 "))) << text;
  EXPECT_EQ(text.find("\nFill "), std::string::npos) << text;
}

TEST(Profile, TheTableSumsToTheStep) {
  const std::vector<TraceEvent> events = {{.name = "Matmul", .seconds = 0.3, .flops = 6e8},
                                          {.name = "Add", .seconds = 0.1},
                                          {.name = "Matmul", .seconds = 0.3, .flops = 6e8},
                                          {.kind = TraceEvent::Kind::kRange, .name = "step", .seconds = 0.7}};
  const std::string table = FormatOpTable(events, 1.0, 2);
  EXPECT_TRUE(
      std::regex_search(table, std::regex("\nMatmul +1\\.0 +300\\.000 +60\\.0% +300000\\.00 +2\\.0\n")))
      << table;
  EXPECT_TRUE(std::regex_search(table, std::regex("\nAdd +0\\.5 +50\\.000 +10\\.0%"))) << table;
  EXPECT_TRUE(std::regex_search(table, std::regex("\noutside of ops +150\\.000 +30\\.0%"))) << table;
  EXPECT_TRUE(std::regex_search(table, std::regex("\na step +500\\.000 +100\\.0%"))) << table;
}

// ---- small things

TEST(DevicePeak, IsOfAKnownDeviceOrUnknown) {
  EXPECT_EQ(PeakFlops("NVIDIA H100 80GB HBM3", DType::kBF16), 989e12);
  EXPECT_EQ(PeakFlops("NVIDIA H100 PCIe", DType::kBF16), 756e12);
  EXPECT_EQ(PeakFlops("NVIDIA A100-SXM4-80GB", DType::kBF16), 312e12);
  EXPECT_EQ(PeakFlops("NVIDIA L40S", DType::kBF16), 362e12);
  EXPECT_EQ(PeakFlops("NVIDIA RTX A1000", DType::kBF16), 0);
  EXPECT_EQ(PeakFlops("NVIDIA H100 80GB HBM3", DType::kF32), 0);
  EXPECT_EQ(PeakFlops("cpu", DType::kBF16), 0);
}

TEST(ConfigLeaves, AreTheFieldsWithTheirPaths) {
  using Leaves = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(ConfigLeaves("# note: x\nmodel {\n  num_blocks: 4\n  slstm_at: 1\n  slstm_at: 3\n}\n"
                         "data {\n  train {\n    path: \"a \\\"b\\\"\"  \n  }\n  train {\n    path: \"c\"\n  "
                         "}\n}\nrun_dir: \"\"\n"),
            (Leaves{{"model.num_blocks", "4"},
                    {"model.slstm_at[0]", "1"},
                    {"model.slstm_at[1]", "3"},
                    {"data.train.path[0]", "a \"b\""},
                    {"data.train.path[1]", "c"},
                    {"run_dir", ""}}));
  EXPECT_TRUE(ConfigLeaves("}\n}\n{\nx\n").empty());
}
}  // namespace
}  // namespace carousel
