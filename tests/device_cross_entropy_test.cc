// The loss on a device: a whole vocabulary in one row, ties, soft caps, logits without bounds, missing
// targets.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "tests/device_copy.h"
#include "tests/device_testing.h"

namespace carousel::testing {
namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class W>
std::vector<W> Logits(int64_t count, double range) {
  std::vector<W> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<W>(range * (2 * RandomUniform(37, 0, static_cast<uint64_t>(i)) - 1)));
  }
  return values;
}

template <class T>
struct Result {
  std::vector<Wide<T>> loss;
  std::vector<T> dlogits;  // empty without gradient
  std::vector<uint8_t> correct;
};
template <class T>
Result<T> RunLoss(Device& device, const std::vector<Wide<T>>& logits, const std::vector<int32_t>& targets,
                  double soft_cap, bool gradient = true) {
  const int64_t n = static_cast<int64_t>(targets.size()), V = static_cast<int64_t>(logits.size()) / n;
  const DeviceCopy<Wide<T>> logits_device(device, logits), loss(device, std::vector<Wide<T>>(n, -1));
  const DeviceCopy<int32_t> targets_device(device, targets);
  const DeviceCopy<T> dlogits(device, std::vector<T>(gradient ? n * V : 0));
  const DeviceCopy<uint8_t> correct(device, std::vector<uint8_t>(n, 9));
  device.ops().CrossEntropy({.loss = loss.t(),
                             .dlogits = gradient ? dlogits.t({n, V}) : Tensor(),
                             .logits = logits_device.t({n, V}),
                             .targets = targets_device.t(),
                             .correct = correct.t(),
                             .soft_cap = soft_cap});
  return {.loss = loss.Get(), .dlogits = dlogits.Get(), .correct = correct.Get()};
}

// The same from `parts` parts of the vocabulary, each of which must find the same loss and answers.
template <class T>
Result<T> RunParts(Device& device, const std::vector<Wide<T>>& logits, const std::vector<int32_t>& targets,
                   double soft_cap, int64_t parts) {
  using W = Wide<T>;
  const int64_t n = static_cast<int64_t>(targets.size());
  const int64_t width = static_cast<int64_t>(logits.size()) / n, V = width / parts;
  const DeviceCopy<int32_t> targets_device(device, targets);
  const DeviceCopy<W> stats(device, std::vector<W>(parts * n * 4, -1));
  std::vector<std::unique_ptr<DeviceCopy<W>>> logits_of;
  for (int64_t p = 0; p < parts; ++p) {
    std::vector<W> part;
    for (int64_t r = 0; r < n; ++r) {
      const auto row = logits.begin() + r * width + p * V;
      part.insert(part.end(), row, row + V);
    }
    logits_of.push_back(std::make_unique<DeviceCopy<W>>(device, part));
    device.ops().CrossEntropyStats({.stats = stats.t({parts * n, 4}).Rows(p * n, n),
                                    .logits = logits_of.back()->t({n, V}),
                                    .targets = targets_device.t(),
                                    .first_id = p * V,
                                    .soft_cap = soft_cap});
  }
  Result<T> result;
  result.dlogits.resize(n * width);
  for (int64_t p = 0; p < parts; ++p) {
    const DeviceCopy<W> loss(device, std::vector<W>(n, -1));
    const DeviceCopy<T> dlogits(device, std::vector<T>(n * V));
    const DeviceCopy<uint8_t> correct(device, std::vector<uint8_t>(n, 9));
    CrossEntropyFromStatsArgs args = {.loss = loss.t(),
                                      .dlogits = dlogits.t({n, V}),
                                      .correct = correct.t(),
                                      .stats = stats.t({parts * n, 4}),
                                      .num_parts = parts,
                                      .logits = logits_of[p]->t({n, V}),
                                      .targets = targets_device.t(),
                                      .first_id = p * V,
                                      .soft_cap = soft_cap};
    device.ops().CrossEntropyFromStats(args);
    const std::vector<W> with_gradient = loss.Get();
    args.dlogits = {};
    device.ops().CrossEntropyFromStats(args);
    if (p == 0) {
      result.loss = with_gradient;
      result.correct = correct.Get();
    }
    for (const std::vector<W>& other : {with_gradient, loss.Get()}) {
      EXPECT_EQ(std::memcmp(other.data(), result.loss.data(), n * sizeof(W)), 0) << "part " << p;
    }
    EXPECT_EQ(correct.Get(), result.correct) << "part " << p;
    const std::vector<T> gradient = dlogits.Get();
    for (int64_t i = 0; i < n * V; ++i) result.dlogits[i / V * width + p * V + i % V] = gradient[i];
  }
  return result;
}

// Against the formulas in double. The tolerance of the loss is relative to the size of what it is a
// difference of; that of a probability is relative to it.
template <class T>
void ExpectResult(const Result<T>& got, const std::vector<Wide<T>>& logits,
                  const std::vector<int32_t>& targets, double soft_cap, const std::string& what) {
  using W = Wide<T>;
  SCOPED_TRACE(what + ", compute " + NameOf(DTypeOf<T>::value) + ", cap " + std::to_string(soft_cap));
  const int64_t n = static_cast<int64_t>(targets.size()), V = static_cast<int64_t>(logits.size()) / n;
  const double epsilon = std::numeric_limits<W>::epsilon();
  const double rounding = sizeof(T) == 2 ? 0x1p-8 : 0;
  for (int64_t r = 0; r < n; ++r) {
    const int64_t target = targets[r];
    std::vector<double> z(logits.begin() + r * V, logits.begin() + (r + 1) * V), slope(V, 1.0);
    double max = -kInfinity, sum = 0;
    bool largest = target >= 0;
    for (int64_t c = 0; c < V; ++c) {
      if (target >= 0) largest &= c < target ? z[c] < z[target] : z[c] <= z[target];
    }
    for (int64_t c = 0; c < V; ++c) {
      if (soft_cap > 0) {
        const double t = std::tanh(z[c] / soft_cap);
        z[c] = soft_cap * t;
        slope[c] = 1 - t * t;
      }
      max = std::max(max, z[c]);
    }
    for (const double value : z) sum += std::exp(value - max);
    const double size = std::abs(max) + std::log(static_cast<double>(V)) + 1;
    const double loss = target < 0 ? 0 : std::log(sum) + (max - z[target]);
    if (std::isinf(loss)) {
      EXPECT_EQ(static_cast<double>(got.loss[r]), loss);
    } else {
      EXPECT_NEAR(static_cast<double>(got.loss[r]), loss, 16 * epsilon * size) << "row " << r;
    }
    EXPECT_EQ(got.correct[r], largest ? 1 : 0) << "row " << r;
    for (int64_t c = 0; c < V; ++c) {
      const double p = std::exp(z[c] - max) / sum;
      const double want = target < 0 ? 0 : (p - (c == target ? 1 : 0)) * slope[c];
      const double value = static_cast<double>(static_cast<W>(got.dlogits[r * V + c]));
      // an error of z by epsilon times its size changes p by as much of itself
      ASSERT_NEAR(value, want, (16 * epsilon * size + rounding) * (p + (c == target ? 1 : 0)) + 1e-37)
          << "row " << r << " column " << c;
    }
  }
}
template <class T>
void ExpectFormulas(Device& device, const std::vector<Wide<T>>& logits, const std::vector<int32_t>& targets,
                    double soft_cap, const std::string& what) {
  const Result<T> whole = RunLoss<T>(device, logits, targets, soft_cap);
  ExpectResult<T>(whole, logits, targets, soft_cap, what);
  EXPECT_EQ(RunLoss<T>(device, logits, targets, soft_cap, /*gradient=*/false).loss, whole.loss);
  for (const int64_t parts : {1, 2, 4}) {
    if (logits.size() / targets.size() % parts != 0) continue;
    ExpectResult<T>(RunParts<T>(device, logits, targets, soft_cap, parts), logits, targets, soft_cap,
                    what + ", parts " + std::to_string(parts));
  }
}
template <class T>
std::vector<Wide<T>> Cast(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}
void ExpectFormulasInEveryType(Device& device, const std::vector<double>& logits,
                               const std::vector<int32_t>& targets, double soft_cap,
                               const std::string& what) {
  ExpectFormulas<bfloat16>(device, Cast<bfloat16>(logits), targets, soft_cap, what);
  ExpectFormulas<float>(device, Cast<float>(logits), targets, soft_cap, what);
  ExpectFormulas<double>(device, Cast<double>(logits), targets, soft_cap, what);
}

// Longer than what shared memory keeps of a row, with and without the alignment of 16-byte accesses.
TEST(DeviceCrossEntropy, FollowsTheFormulasOnAWholeVocabulary) {
  const auto device = MakeTestDevice();
  for (const int64_t V : {50304, 50257}) {
    for (const double soft_cap : {0.0, 30.0}) {
      ExpectFormulas<bfloat16>(*device, Logits<float>(V, 20), {static_cast<int32_t>(V - 1)}, soft_cap,
                               "V " + std::to_string(V));
    }
  }
  ExpectFormulas<double>(*device, Logits<double>(50304, 20), {40000}, 30, "V 50304");
}

TEST(DeviceCrossEntropy, FollowsTheFormulasOnShortRows) {
  const auto device = MakeTestDevice();
  for (const int64_t V : {1, 2, 5, 8, 31, 64, 200, 4100}) {
    const auto last = static_cast<int32_t>(V - 1);
    ExpectFormulasInEveryType(*device, Logits<double>(4 * V, 5), {0, -1, last, last / 2}, 0,
                              "V " + std::to_string(V));
    ExpectFormulasInEveryType(*device, Logits<double>(4 * V, 5), {last, -7, 0, last / 2}, 3,
                              "V " + std::to_string(V));
  }
}

// Far beyond the cap all z are equal to it, and slopes vanish; a huge cap changes nothing.
TEST(DeviceCrossEntropy, FollowsTheFormulasForEverySoftCap) {
  const auto device = MakeTestDevice();
  for (const double soft_cap : {1e-3, 0.5, 30.0, 1e6}) {
    for (const double range : {1e-3, 10.0, 1e4}) {
      ExpectFormulasInEveryType(*device, Logits<double>(2 * 70, range), {3, 69}, soft_cap,
                                "logits up to " + std::to_string(range));
    }
  }
}

TEST(DeviceCrossEntropy, FollowsTheFormulasForLogitsWithoutBounds) {
  const auto device = MakeTestDevice();
  std::vector<double> logits(600, -kInfinity);
  logits[5] = 1;
  logits[590] = 2;
  ExpectFormulasInEveryType(*device, logits, {590}, 0, "all but two are -inf");
  ExpectFormulasInEveryType(*device, logits, {5}, 0, "all but two are -inf, the smaller one");
  ExpectFormulasInEveryType(*device, logits, {300}, 0, "the target is -inf");
  ExpectFormulasInEveryType(*device, logits, {300}, 30, "the target is -inf, capped");
  std::vector<double> huge = Logits<double>(300, 1);
  huge[7] = 3e38;
  huge[8] = -3e38;
  ExpectFormulasInEveryType(*device, huge, {7}, 0, "a huge logit");
  huge[9] = kInfinity;
  ExpectFormulasInEveryType(*device, huge, {9}, 30, "an infinite logit, capped");
}

TEST(DeviceCrossEntropy, GivesTheLowestOfEqualLargestIds) {
  const auto device = MakeTestDevice();
  for (const double soft_cap : {0.0, 30.0}) {
    std::vector<float> logits(4 * 40, -1);
    for (int64_t r = 0; r < 4; ++r) logits[r * 40 + 11] = logits[r * 40 + 33] = 2;
    EXPECT_EQ(RunLoss<bfloat16>(*device, logits, {11, 33, 12, -1}, soft_cap).correct,
              (std::vector<uint8_t>{1, 0, 0, 0}));
    EXPECT_EQ(RunParts<bfloat16>(*device, logits, {11, 33, 12, -1}, soft_cap, 2).correct,
              (std::vector<uint8_t>{1, 0, 0, 0}));
    // different logits that the cap makes equal
    for (int64_t r = 0; r < 4; ++r) logits[r * 40 + 33] = 1e6f, logits[r * 40 + 11] = 9e5f;
    EXPECT_EQ(RunLoss<bfloat16>(*device, logits, {11, 33, 12, -1}, soft_cap).correct,
              (std::vector<uint8_t>{0, 1, 0, 0}));
    EXPECT_EQ(RunParts<bfloat16>(*device, logits, {11, 33, 12, -1}, soft_cap, 2).correct,
              (std::vector<uint8_t>{0, 1, 0, 0}));
  }
}

TEST(DeviceCrossEntropy, CallsNothingCorrectBesideANaN) {
  const auto device = MakeTestDevice();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  // 38 columns cannot be read in vectors: a thread may have the NaN alone
  for (const int64_t V : {40, 38}) {
    for (const int64_t at : {int64_t{0}, int64_t{13}, V - 1}) {
      std::vector<float> logits(V, -1);
      logits[20] = 5;
      logits[at] = nan;
      const auto target_at = static_cast<int32_t>(at);
      for (const Result<bfloat16>& got :
           {RunLoss<bfloat16>(*device, logits, {20}, 0), RunParts<bfloat16>(*device, logits, {20}, 0, 1),
            RunParts<bfloat16>(*device, logits, {20}, 0, 2)}) {
        EXPECT_EQ(got.correct[0], 0);
        EXPECT_TRUE(std::isnan(got.loss[0])) << V << " " << at;
      }
      EXPECT_EQ(RunLoss<bfloat16>(*device, logits, {target_at}, 30).correct[0], 0);
      EXPECT_EQ(RunParts<bfloat16>(*device, logits, {target_at}, 30, 2).correct[0], 0);
    }
  }
}

TEST(DeviceCrossEntropyDeathTest, ReportsATargetOutsideOfTheVocabulary) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto run = [] {
    const auto device = MakeTestDevice();
    RunLoss<float>(*device, std::vector<float>(20), {3, 10}, 0);
  };
  EXPECT_DEATH(run(), "CheckIdsKernel: targets of the vocabulary");
  const auto run_parts = [] {
    const auto device = MakeTestDevice();
    RunParts<float>(*device, std::vector<float>(20), {3, 10}, 0, 2);
  };
  EXPECT_DEATH(run_parts(), "CheckIdsKernel: targets of the vocabulary");
}
}  // namespace
}  // namespace carousel::testing
