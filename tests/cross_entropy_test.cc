// Which targets count as correct: ties, missing targets, values that are no numbers, the soft cap. On every
// path of the CPU backend.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "kernels/cpu/cpu_device.h"

namespace carousel {
namespace {
using cpu::CpuDevice;
using cpu::CpuOptions;
using cpu::SimdLevel;
constexpr float kInfinity = INFINITY;

// `correct` of one row per target as the ops give it, on every path; all paths must agree.
template <class W>
void ExpectCorrect(const std::vector<W>& logits, const std::vector<int32_t>& targets, double soft_cap,
                   const std::vector<uint8_t>& want, const std::string& what) {
  const int64_t n = static_cast<int64_t>(targets.size()), V = static_cast<int64_t>(logits.size()) / n;
  std::vector<CpuOptions> paths = {{.num_threads = 1, .reference = true}};
  for (const SimdLevel level : {SimdLevel::kBase, SimdLevel::kV3, SimdLevel::kV4}) {
    if (level > cpu::DetectSimdLevel()) continue;
    for (const int threads : {1, 3}) paths.push_back({.num_threads = threads, .simd_level = level});
  }
  const DType wide = sizeof(W) == 8 ? DType::kF64 : DType::kF32;
  for (const CpuOptions& options : paths) {
    CpuDevice device(options);
    for (const DType compute : {wide, wide == DType::kF64 ? DType::kF64 : DType::kBF16}) {
      for (const bool gradient : {false, true}) {
        std::vector<W> in = logits, loss(targets.size());
        std::vector<int32_t> ids = targets;
        std::vector<uint8_t> correct(targets.size(), 7);
        std::vector<double> dlogits(logits.size());  // room for any dtype
        device.ops().CrossEntropy({.loss = Tensor(loss.data(), wide, {n}),
                                   .dlogits = gradient ? Tensor(dlogits.data(), compute, {n, V}) : Tensor(),
                                   .logits = Tensor(in.data(), wide, {n, V}),
                                   .targets = Tensor(ids.data(), DType::kI32, {n}),
                                   .correct = Tensor(correct.data(), DType::kU8, {n}),
                                   .soft_cap = soft_cap});
        EXPECT_EQ(correct, want) << what << ", compute " << NameOf(compute) << ", reference "
                                 << options.reference << ", threads " << options.num_threads;
      }
    }
  }
}
void ExpectCorrectInEveryType(const std::vector<float>& logits, const std::vector<int32_t>& targets,
                              double soft_cap, const std::vector<uint8_t>& want, const std::string& what) {
  ExpectCorrect<float>(logits, targets, soft_cap, want, what);
  ExpectCorrect<double>(std::vector<double>(logits.begin(), logits.end()), targets, soft_cap, want, what);
}

// Every pair of equal largest logits in a row longer than any vector: only the first of the two is correct.
TEST(CrossEntropyCorrect, GoesToTheLowestIdOfEqualLogits) {
  constexpr int64_t kV = 37;
  for (const double soft_cap : {0.0, 30.0}) {
    for (const auto& [first, second] :
         {std::pair<int32_t, int32_t>{0, 36}, {3, 4}, {15, 16}, {17, 33}, {35, 36}, {0, 1}}) {
      std::vector<float> logits;
      std::vector<int32_t> targets;
      std::vector<uint8_t> want;
      for (int32_t target = 0; target < kV; ++target) {
        for (int64_t c = 0; c < kV; ++c) {
          logits.push_back(c == first || c == second ? 2.5f : static_cast<float>(c) / 64);
        }
        targets.push_back(target);
        want.push_back(target == first);
      }
      ExpectCorrectInEveryType(logits, targets, soft_cap, want,
                               "tie of " + std::to_string(first) + " and " + std::to_string(second));
    }
  }
}

TEST(CrossEntropyCorrect, OfAllEqualLogitsIsIdZero) {
  std::vector<float> logits(3 * 20, -1.5f);
  ExpectCorrectInEveryType(logits, {0, 1, 19}, 0, {1, 0, 0}, "all equal");
  std::vector<float> lowest(3 * 20, -kInfinity);
  ExpectCorrectInEveryType(lowest, {0, 1, 19}, 0, {1, 0, 0}, "all minus infinity");
}

TEST(CrossEntropyCorrect, IsNoForRowsWithoutATarget) {
  ExpectCorrectInEveryType({3, 1, 2, 3, 1, 2, 3, 1, 2}, {-1, 0, -100}, 30, {0, 1, 0}, "no target");
}

TEST(CrossEntropyCorrect, IsNoWhereALogitIsNotANumber) {
  for (const int64_t V : {1, 3, 16, 37}) {
    for (const int64_t place : {int64_t{0}, V / 2, V - 1}) {
      std::vector<float> logits;
      std::vector<int32_t> targets;
      for (int32_t target = 0; target < V; ++target) {
        for (int64_t c = 0; c < V; ++c) logits.push_back(c == place ? NAN : c == target ? 5.0f : 1.0f);
        targets.push_back(target);
      }
      ExpectCorrectInEveryType(logits, targets, 0, std::vector<uint8_t>(targets.size(), 0),
                               "NaN at " + std::to_string(place) + " of " + std::to_string(V));
    }
  }
}

// tanh(1000 / 3) and tanh(2000 / 3) are the same number; 2000 is larger nevertheless.
TEST(CrossEntropyCorrect, ComparesLogitsBeforeTheCap) {
  ExpectCorrectInEveryType({1000, 2000, 0, 1000, 2000, 0}, {0, 1}, 3, {0, 1}, "beyond the cap");
}

TEST(CrossEntropyCorrect, AgreesWithTheLargestLogitInRowsOfEveryLength) {
  for (int64_t V = 1; V <= 40; ++V) {
    constexpr int64_t kRows = 24;
    std::vector<float> logits;
    std::vector<int32_t> targets;
    std::vector<uint8_t> want;
    for (int64_t r = 0; r < kRows; ++r) {
      int64_t largest = 0;
      for (int64_t c = 0; c < V; ++c) {
        // few different values, so that ties are common
        logits.push_back(static_cast<float>(
            RandomUint64(3, static_cast<uint64_t>(r), static_cast<uint64_t>(V * 64 + c)) % 8));
        if (logits.back() > logits[static_cast<size_t>(r * V + largest)]) largest = c;
      }
      const int64_t target =
          r % 2 == 0
              ? largest
              : static_cast<int64_t>(RandomUint64(4, 0, static_cast<uint64_t>(r)) % static_cast<uint64_t>(V));
      targets.push_back(static_cast<int32_t>(target));
      want.push_back(target == largest);
    }
    ExpectCorrectInEveryType(logits, targets, 0, want, "width " + std::to_string(V));
  }
}
}  // namespace
}  // namespace carousel
