// What is kept of a run's metrics, however long it is and whatever stands between its lines.
#include "launcher/report/run_history.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "launcher/report/curve.h"
#include "launcher/report/metrics_file.h"
#include "tests/report_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {
using testing::ExpectOnlyOwnHtml;
using testing::Render;
using testing::StepLine;
using testing::Write;

// ---- curves

TEST(Curve, KeepsExtremesAndMeansOfAnyNumberOfValuesInBoundedMemory) {
  Curve curve(8);
  double sum = 0;
  for (int64_t step = 1; step <= 100'000; ++step) {
    const double value = step == 77'777 ? 1e6 : step == 5 ? -3 : 1;
    sum += value;
    curve.Add(step, value);
  }
  EXPECT_LE(curve.buckets().size(), 8u);
  EXPECT_GE(curve.buckets().size(), 4u);
  double found = 0, least = 0, largest = 0;
  int64_t count = 0, next = 1;
  for (const Curve::Bucket& b : curve.buckets()) {
    EXPECT_EQ(b.first_step, next);
    next = b.last_step + 1;
    found += b.sum;
    count += b.num_values;
    least = std::min(least, b.min);
    largest = std::max(largest, b.max);
  }
  EXPECT_EQ(next, 100'001);
  EXPECT_EQ(count, 100'000);
  EXPECT_EQ(found, sum);
  EXPECT_EQ(least, -3);
  EXPECT_EQ(largest, 1e6);
}

TEST(Curve, CountsWhatIsNotFiniteApart) {
  Curve curve(4);
  for (const double value : {1.0, std::nan(""), HUGE_VAL, 3.0, 5.0}) curve.Add(1, value);
  int64_t finite = 0, other = 0;
  for (const Curve::Bucket& b : curve.buckets()) finite += b.num_values, other += b.num_non_finite;
  EXPECT_EQ(finite, 3);
  EXPECT_EQ(other, 2);
}

TEST(ThinnedList, KeepsTheFirstTheNewestAndSomeBetween) {
  ThinnedList<int64_t> list(10);
  for (int64_t i = 0; i < 12'345; ++i) {
    list.Add(i);
    ASSERT_LE(list.items().size(), 11u);
    EXPECT_EQ(list.items().back(), i);
    EXPECT_EQ(list.items().front(), 0);
  }
  EXPECT_EQ(list.num_added(), 12'345);
  EXPECT_GE(list.items().size(), 5u);
  for (size_t i = 1; i < list.items().size(); ++i) EXPECT_LT(list.items()[i - 1], list.items()[i]);
}

// ---- reading

TEST(RunHistory, ReadsWhatMetricsFileWrites) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  {
    auto file = *MetricsFile::Open(path, 0);
    StepMetrics m = {
        .step = 1, .tokens = 10, .loss = 3.25, .grad_norm = 0.5, .lr = 1e-4, .seconds = 2, .wall_seconds = 2};
    ASSERT_TRUE(file->Append(m).ok());
    m = {
        .step = 2, .tokens = 20, .loss = std::nan(""), .seconds = 2, .data_wait_seconds = 1, .skipped = true};
    m.communication_seconds = 0.5;
    m.checkpoint_seconds = 0.25;
    m.logged = true;
    m.memory_bytes = 123456;
    m.flops_per_second = 1e12;
    m.mfu = 0.4;
    m.ranks.emplace();
    m.ranks->num_steps = 2;
    m.ranks->num_ranks = 4;
    m.ranks->min_seconds = 1;
    m.ranks->median_seconds = 2;
    m.ranks->max_seconds = 3;
    m.ranks->worst.push_back({.rank = 3, .host = "n3", .seconds = 3, .percent_over = 50});
    m.ranks->chronic = m.ranks->worst;
    ASSERT_TRUE(file->Append(m).ok());
    ASSERT_TRUE(
        file->AppendEvaluation({.step = 2, .loss = 2.5, .accuracy = 0.5, .source_entropy = 1.25}).ok());
    ASSERT_TRUE(file->AppendSample(2, "text").ok());
    ASSERT_TRUE(file->AppendCheckpoint({.step = 2, .outcome = "saved", .seconds = 1}).ok());
    ASSERT_TRUE(file->AppendCheckpoint({.step = 3, .outcome = "failed", .message = "full"}).ok());
    ASSERT_TRUE(file->AppendHealth({.step = 2, .kind = "spike", .message = "big"}).ok());
    GateStats gates;
    gates.step = 2;
    gates.layers.push_back({.block = 0,
                            .slstm = true,
                            .input_gate = {.count = 1, .min = -2, .mean = -1, .max = 0, .beyond = 0.5},
                            .forget_gate = {}});
    ASSERT_TRUE(file->AppendGates(gates).ok());
  }
  MetricsTail tail(path);
  ASSERT_TRUE(tail.Read().ok());
  const RunHistory& h = tail.history();
  EXPECT_EQ(h.num_lines, 8);
  EXPECT_EQ(h.num_not_understood, 0);
  EXPECT_EQ(h.last_step, 2);
  EXPECT_EQ(h.tokens, 20);
  EXPECT_EQ(h.loss.buckets()[0].sum, 3.25);
  EXPECT_EQ(h.loss.buckets()[1].num_non_finite, 1);
  EXPECT_EQ(h.step_tokens.buckets()[1].sum, 10);
  EXPECT_EQ(h.data_wait.buckets()[1].sum, 1);
  EXPECT_EQ(h.communication.buckets()[1].sum, 0.5);
  EXPECT_EQ(h.checkpoint_stall.buckets()[1].sum, 0.25);
  EXPECT_EQ(h.skipped.items(), std::vector<int64_t>{2});
  EXPECT_EQ(h.memory.buckets()[0].sum, 123456);
  EXPECT_EQ(h.mfu.buckets()[0].sum, 0.4);
  EXPECT_EQ(h.ranks.num_ranks, 4);
  ASSERT_EQ(h.ranks.worst.size(), 1u);
  EXPECT_EQ(h.ranks.worst[0].host, "n3");
  EXPECT_EQ(h.chronic.at(3).percent_over, 50);
  EXPECT_EQ(h.last_validation, 2.5);
  EXPECT_EQ(h.source_entropy, 1.25);
  EXPECT_EQ(h.samples.items()[0].text, "text");
  EXPECT_EQ(h.checkpoint_outcomes.at("saved"), 1);
  EXPECT_EQ(h.failures[0].message, "full");
  EXPECT_EQ(h.spikes.items(), std::vector<int64_t>{2});
  ASSERT_EQ(h.gates.size(), 1u);
  EXPECT_TRUE(h.gates[0].slstm);
  EXPECT_EQ(h.gates[0].input.mean.buckets()[0].sum, -1);
}

TEST(RunHistory, LinesThatAreNotOursAreCountedAndLeftOut) {
  RunHistory h;
  for (const char* line : {"", "x", "[1]", "{\"step\":", "{\"step\":\"x\"}", "{\"step\":-1}",
                           "{\"step\":1.5}", "{\"step\":1e300}", "{\"step\":3,}", "\xff\xfe"}) {
    h.AddLine(line);
  }
  EXPECT_EQ(h.num_not_understood, 10);
  for (const char* line :
       {"{\"evaluation\":7}", "{\"sample\":{\"step\":\"x\",\"text\":4}}", "{\"checkpoint\":{}}",
        "{\"gates\":{\"step\":1,\"blocks\":[1,null,{\"input\":3}]}}", "{\"health\":{\"kind\":[]}}",
        "{\"step\":1,\"ranks\":{\"worst\":[1,{\"rank\":\"x\"}],\"chronic\":{}}}", "{\"note\":1}"}) {
    h.AddLine(line);
  }
  EXPECT_EQ(h.last_step, 1);
  ExpectOnlyOwnHtml(Render(h));
}

TEST(RunHistory, TheFastReaderAgreesWithTheGeneralOne) {
  RunHistory fast, general;
  for (int64_t step = 1; step <= 500; ++step) {
    const std::string line = StepLine(step, 1.0 / static_cast<double>(step),
                                      step % 7 == 0 ? ",\"memory_bytes\":77,\"mfu\":null" : "");
    fast.AddLine(line);
    general.AddLine(" " + line);  // the space sends it to the general one
  }
  EXPECT_EQ(Render(fast), Render(general));
  EXPECT_EQ(fast.last_step, 500);
}

TEST(MetricsTail, TakesInWhatIsAppendedAndStartsAnewWhenTheFileWasReplaced) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  MetricsTail tail(path);
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().num_lines, 0);
  Write(path, StepLine(1, 3) + "\n" + StepLine(2, 2).substr(0, 30));  // a write in progress
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().last_step, 1);
  std::ofstream(path, std::ios::app) << StepLine(2, 2).substr(30) << "\n" << StepLine(3, 1) << "\n";
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().last_step, 3);
  EXPECT_EQ(tail.history().num_lines, 3);
  Write(path + ".new",
        StepLine(1, 3) + "\n" + StepLine(2, 9) + "\n" + StepLine(3, 9) + "\n" + StepLine(4, 9) + "\n");
  std::filesystem::rename(path + ".new", path);
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().num_lines, 4);
  EXPECT_EQ(tail.history().last_loss, 9);
  Write(path, "");
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().num_lines, 0);
}

TEST(MetricsTail, ALineTooLongToBeOursIsLeftOutAndTheRestRead) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  // Zeros, as a power failure leaves them, in place of some lines.
  Write(path, StepLine(1, 3) + "\n" + std::string(70'000'000, '\0') + "\n" + StepLine(2, 2) + "\n");
  MetricsTail tail(path);
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().last_step, 2);
  EXPECT_EQ(tail.history().num_lines, 3);
  EXPECT_EQ(tail.history().num_not_understood, 1);
  std::ofstream(path, std::ios::app) << StepLine(3, 1) << "\n" << std::string(70'000'000, 'x');
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().last_step, 3);
  std::ofstream(path, std::ios::app) << "x\n" << StepLine(4, 1) << "\n";  // the long one ends
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().last_step, 4);
  EXPECT_EQ(tail.history().num_not_understood, 2);
}
}  // namespace
}  // namespace carousel
