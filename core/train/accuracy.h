// How often the answer of a problem was right, by the length of the problem.
#pragma once
#include <cstdint>
#include <vector>

namespace carousel {

// Exact counts of one problem length.
struct LengthCount {
  int64_t length = 0;
  int64_t count = 0, correct = 0;  // answers; those that had the largest logit
  friend bool operator==(const LengthCount&, const LengthCount&) = default;
};

// The same of the lengths from `first` to `last`, both included.
struct LengthBucket {
  int64_t first = 0, last = 0;
  int64_t count = 0, correct = 0;
  double accuracy() const { return static_cast<double>(correct) / static_cast<double>(count); }
};

inline constexpr int64_t kMaxLengthBuckets = 12;
// Joins the counts (ascending lengths) into at most kMaxLengthBuckets buckets: all lengths of [k w, (k + 1)
// w) share one, where w is the least of 1, 2, 5, 10, 20, 50, ... that is enough. The first and the last
// bucket end at the first and the last length; buckets without any answer are left out.
std::vector<LengthBucket> BucketsByLength(const std::vector<LengthCount>& counts);
}  // namespace carousel
