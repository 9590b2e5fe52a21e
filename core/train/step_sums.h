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
  // Category "reductions". digests: also what ranks compare when a step is computed again.
  void Bind(Arena& arena, bool digests = false);
  void Clear(Ops& ops) const;
  // Where ops add this rank's part: (kExactSumElems) i64.
  Tensor loss() const { return sums_.Rows(0, kExactSumElems); }
  Tensor squared_norm() const { return sums_.Rows(kExactSumElems, kExactSumElems); }

  // (1) i64: the digest of the gradients that this rank computed (ParamSync::SetDigest); undefined without
  // digests.
  Tensor gradient_digest() const { return has_digests_ ? sums_.Rows(2 * kExactSumElems, 1) : Tensor(); }

  // What this rank alone had in the sums of one run of a step, before those of others: equal numbers for
  // equal bits.
  struct Digests {
    uint64_t loss = 0;      // of its tokens
    uint64_t gradient = 0;  // of its micro-batches
    uint64_t norm = 0;      // of its shards of the summed gradient
    bool operator==(const Digests&) const = default;
  };

  // What the ranks add: [loss | squared norm | number of targets | contribution in halves], i64. The place of
  // the number of targets.
  static constexpr int64_t kNumTargetsElem = 2 * kExactSumElems;

  struct Totals {
    double loss = 0, squared_norm = 0;  // NaN if a term was not finite
    int64_t num_non_finite = 0;         // such terms, of both
    int64_t num_targets = 0;
    std::vector<int64_t> contributed;  // sums modulo 2^64
    Digests mine = {};                 // of this rank alone
  };
  // The totals over all ranks of the axis, which call this together with `contribution` of equal length: one
  // all-reduce, of host memory. Waits for the device.
  Totals Reduce(Device& device, const Axis& world, int64_t num_targets,
                const std::vector<int64_t>& contribution = {}) const;

 private:
  Tensor sums_;  // (2 * kExactSumElems) i64 on the device, and one more with digests
  bool has_digests_ = false;
};
}  // namespace carousel
