#include "core/train/accuracy.h"

#include <algorithm>

#include "core/base/check.h"

namespace carousel {
namespace {

// 1, 2, 5, 10, 20, 50, ...: the least with which [first, last] meets at most kMaxLengthBuckets multiples.
int64_t BucketWidth(int64_t first, int64_t last) {
  constexpr int64_t kSteps[] = {1, 2, 5};
  for (int64_t power = 1;; power *= 10) {
    for (const int64_t step : kSteps) {
      const int64_t width = step * power;
      if (last / width - first / width < kMaxLengthBuckets) return width;
    }
  }
}
}  // namespace

std::vector<LengthBucket> BucketsByLength(const std::vector<LengthCount>& counts) {
  std::vector<LengthBucket> buckets;
  if (counts.empty()) return buckets;
  const int64_t shortest = counts.front().length, longest = counts.back().length;
  CAROUSEL_CHECK(shortest >= 0 && shortest <= longest);
  const int64_t width = BucketWidth(shortest, longest);
  for (const LengthCount& c : counts) {
    const int64_t first = c.length / width * width;
    if (buckets.empty() || buckets.back().last < c.length) {
      buckets.push_back({.first = std::max(first, shortest), .last = std::min(first + width - 1, longest)});
    }
    buckets.back().count += c.count;
    buckets.back().correct += c.correct;
  }
  return buckets;
}
}  // namespace carousel
