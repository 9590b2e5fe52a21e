#include "core/base/value_stats.h"

#include <algorithm>

namespace carousel {

void ValueSums::Add(const ValueSums& other) {
  sum.Add(other.sum);
  squares.Add(other.squares);
  count += other.count;
  num_below += other.num_below;
  num_above += other.num_above;
  num_beyond += other.num_beyond;
  largest = std::max(largest, other.largest);
  smallest_flipped = std::max(smallest_flipped, other.smallest_flipped);
}

ValueStats StatsOf(const ValueSums& sums) {
  ValueStats stats = {.count = sums.count, .num_non_finite = sums.sum.num_non_finite};
  if (sums.count == 0) return stats;
  const double share = 1 / static_cast<double>(sums.count);
  ExactSum sum = sums.sum;
  sum.num_non_finite = 0;  // counted, and in no sum
  stats.min = FromOrderKey(~sums.smallest_flipped);
  stats.max = FromOrderKey(sums.largest);
  stats.mean = sum.ToDouble() * share;
  stats.rms = std::sqrt(sums.squares.ToDouble() * share);
  stats.below = static_cast<double>(sums.num_below) * share;
  stats.above = static_cast<double>(sums.num_above) * share;
  stats.beyond = static_cast<double>(sums.num_beyond) * share;
  return stats;
}
}  // namespace carousel
