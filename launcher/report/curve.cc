#include "launcher/report/curve.h"

#include <algorithm>
#include <cmath>

namespace carousel {
namespace {

void Join(const Curve::Bucket& from, Curve::Bucket* into) {
  into->last_step = from.last_step;
  into->num_non_finite += from.num_non_finite;
  if (from.num_values == 0) return;
  into->min = into->num_values == 0 ? from.min : std::min(into->min, from.min);
  into->max = into->num_values == 0 ? from.max : std::max(into->max, from.max);
  into->sum += from.sum;
  into->num_values += from.num_values;
}
}  // namespace

void Curve::Add(int64_t step, double value) {
  Bucket one = {.first_step = step, .last_step = step};
  // Larger ones would not be finite when they are added up, and no run has them.
  if (std::abs(value) < 1e200) {
    one.num_values = 1;
    one.min = one.max = one.sum = value;
  } else {
    one.num_non_finite = 1;
  }
  if (num_added_++ % width_ != 0) {
    Join(one, &buckets_.back());
    return;
  }
  if (static_cast<int64_t>(buckets_.size()) == max_buckets_) {
    for (size_t i = 0; i + 1 < buckets_.size(); i += 2) {
      buckets_[i / 2] = buckets_[i];
      Join(buckets_[i + 1], &buckets_[i / 2]);
    }
    buckets_.resize(buckets_.size() / 2);
    width_ *= 2;
    // num_added_ - 1 values are in whole buckets: max_buckets is even.
  }
  buckets_.push_back(one);
}
}  // namespace carousel
