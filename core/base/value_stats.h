// Statistics of many values that do not depend on how they were spread over calls, threads and ranks: sums
// are exact, counts are integers, extremes have no order. Values that are not finite are counted and left
// out.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/base/exact_sum.h"

namespace carousel {

// A double as an integer above 0 that rises with it. REQUIRES: not NaN.
constexpr uint64_t OrderKey(double value) {
  const auto bits = std::bit_cast<uint64_t>(value);
  return bits >> 63 != 0 ? ~bits : bits | uint64_t{1} << 63;
}
constexpr double FromOrderKey(uint64_t key) {
  return std::bit_cast<double>(key >> 63 != 0 ? key & ~(uint64_t{1} << 63) : ~key);
}

// What Ops::TensorStats adds up. All zero is "no values".
struct ValueSums {
  ExactSum sum, squares;                                 // sum.num_non_finite: of the values
  int64_t count = 0;                                     // finite values
  int64_t num_below = 0, num_above = 0, num_beyond = 0;  // of them, by the thresholds of the call
  uint64_t largest = 0;                                  // OrderKey of the largest; 0: none
  uint64_t smallest_flipped = 0;                         // ~OrderKey of the smallest; 0: none

  // REQUIRES: finite. The sums are the caller's.
  void Count(double value, double below, double above, double beyond) {
    ++count;
    num_below += value < below;
    num_above += value > above;
    num_beyond += std::abs(value) > beyond;
    const uint64_t key = OrderKey(value);
    if (key > largest) largest = key;
    if (~key > smallest_flipped) smallest_flipped = ~key;
  }
  void Add(const ValueSums& other);
};
// As a kI64 tensor, in the order of the struct.
constexpr int64_t kValueSumElems = 2 * kExactSumElems + 6;
static_assert(sizeof(ValueSums) == kValueSumElems * sizeof(int64_t));
// Elements of one call whose sums are taken in f64, one after the other, before they are added exactly.
constexpr int64_t kValueStatsBlock = 64;

// For people. Without any finite value the four numbers are NaN and the shares 0.
struct ValueStats {
  int64_t count = 0, num_non_finite = 0;
  double min = std::numeric_limits<double>::quiet_NaN();
  double mean = min, max = min, rms = min;
  double below = 0, above = 0, beyond = 0;  // shares of the finite values, 0 to 1
};
ValueStats StatsOf(const ValueSums& sums);
}  // namespace carousel
