// Exact, order-independent sums of doubles (a Kulisch accumulator): the result does not depend on the order
// of the terms or on how they were spread over threads and ranks. Accumulators of several ranks are joined by
// adding their limbs as integers (AllReduceSum of kI64), so a loss or a gradient norm has the same bits for
// every number of ranks.
#pragma once
#include <cstdint>

namespace carousel {

struct ExactSum {
  // Limb j holds multiples of 2^(32 j - 1088): 68 limbs cover every finite double. Each Add changes three
  // limbs by less than 2^32, so 2^30 additions fit before a limb could overflow; Normalize() carries and
  // makes room again.
  static constexpr int kNumLimbs = 68;
  int64_t limbs[kNumLimbs] = {};
  int64_t num_non_finite = 0;  // NaN and infinities are counted, not added

  void Add(double value);
  void Add(const ExactSum& other);
  void Normalize();         // carries, so that every limb but the top one is in [0, 2^32)
  double ToDouble() const;  // the sum rounded once (to within 1 ulp); NaN if num_non_finite > 0
};
// As a kI64 tensor: kNumLimbs limbs, then num_non_finite.
constexpr int64_t kExactSumElems = ExactSum::kNumLimbs + 1;
static_assert(sizeof(ExactSum) == kExactSumElems * sizeof(int64_t));

}  // namespace carousel
