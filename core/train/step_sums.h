// StepSums: everything the ranks add up once per step, as one tensor of integers: exact sums of the loss and
// of the squared gradient norm, the number of target tokens, and what a caller adds. Adding integers gives
// the same bits in any order.
#pragma once
#include <vector>

#include "core/arena.h"
#include "core/base/exact_sum.h"
#include "core/comm/mesh.h"
#include "core/device.h"

namespace carousel {

class StepSums {
 public:
  void Bind(Arena& arena);  // category "reductions"
  void Clear(Ops& ops) const;
  // Where ops add this rank's part: (kExactSumElems) i64.
  Tensor loss() const { return sums_.Rows(0, kExactSumElems); }
  Tensor squared_norm() const { return sums_.Rows(kExactSumElems, kExactSumElems); }

  // What the ranks add: [loss | squared norm | number of targets | contribution in halves], i64. The place of
  // the number of targets.
  static constexpr int64_t kNumTargetsElem = 2 * kExactSumElems;

  struct Totals {
    double loss = 0, squared_norm = 0;  // NaN if a term was not finite
    int64_t num_non_finite = 0;         // such terms, of both
    int64_t num_targets = 0;
    std::vector<int64_t> contributed;  // sums modulo 2^64
  };
  // The totals over all ranks of the axis, which call this together with `contribution` of equal length: one
  // all-reduce, of host memory. Waits for the device.
  Totals Reduce(Device& device, const Axis& world, int64_t num_targets,
                const std::vector<int64_t>& contribution = {}) const;

 private:
  Tensor sums_;  // (2 * kExactSumElems) i64 on the device
};
}  // namespace carousel
