// The loss on a device: a whole vocabulary in one row, ties, soft caps, logits without bounds, missing
// targets.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
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

// Against the formulas in double. The tolerance of the loss is relative to the size of what it is a
// difference of; that of a probability is relative to it.
template <class T>
void ExpectFormulas(Device& device, const std::vector<Wide<T>>& logits, const std::vector<int32_t>& targets,
                    double soft_cap, const std::string& what) {
  using W = Wide<T>;
  SCOPED_TRACE(what + ", compute " + NameOf(DTypeOf<T>::value) + ", cap " + std::to_string(soft_cap));
  const int64_t n = static_cast<int64_t>(targets.size()), V = static_cast<int64_t>(logits.size()) / n;
  const double epsilon = std::numeric_limits<W>::epsilon();
  const double rounding = sizeof(T) == 2 ? 0x1p-8 : 0;
  const Result<T> got = RunLoss<T>(device, logits, targets, soft_cap);
  EXPECT_EQ(RunLoss<T>(device, logits, targets, soft_cap, /*gradient=*/false).loss, got.loss);
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
    // different logits that the cap makes equal
    for (int64_t r = 0; r < 4; ++r) logits[r * 40 + 33] = 1e6f, logits[r * 40 + 11] = 9e5f;
    EXPECT_EQ(RunLoss<bfloat16>(*device, logits, {11, 33, 12, -1}, soft_cap).correct,
              (std::vector<uint8_t>{0, 1, 0, 0}));
  }
}

TEST(DeviceCrossEntropy, CallsNothingCorrectBesideANaN) {
  const auto device = MakeTestDevice();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const int64_t at : {0, 13, 39}) {
    std::vector<float> logits(40, -1);
    logits[20] = 5;
    logits[at] = nan;
    const Result<bfloat16> got = RunLoss<bfloat16>(*device, logits, {20}, 0);
    EXPECT_EQ(got.correct[0], 0);
    EXPECT_TRUE(std::isnan(got.loss[0]));
    EXPECT_EQ(RunLoss<bfloat16>(*device, logits, {static_cast<int32_t>(at)}, 30).correct[0], 0);
  }
}

TEST(DeviceCrossEntropyDeathTest, ReportsATargetOutsideOfTheVocabulary) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto run = [] {
    const auto device = MakeTestDevice();
    RunLoss<float>(*device, std::vector<float>(20), {3, 10}, 0);
  };
  EXPECT_DEATH(run(), "CheckIdsKernel: targets of the vocabulary");
}
}  // namespace
}  // namespace carousel::testing
