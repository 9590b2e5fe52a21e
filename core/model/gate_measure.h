// Statistics of gates and logits during a pass: where they are taken. What becomes of them:
// core/train/gate_stats.h.
#pragma once
#include "core/base/value_stats.h"
#include "core/ops.h"

namespace carousel {

// Where a gate counts as saturated.
// - closed, open: pre-activations below -kGateSaturation and above it, where a sigmoid is below 0.001 and
//   above 0.999. Of an exponential input gate both say nothing.
// - at the cap: where a soft cap of a gate, or of logits, gives more than kNearCap of its bound.
constexpr double kGateSaturation = 7;
constexpr double kNearCap = 0.95;

// The rows of a part's statistics, (num_rows, kValueSumElems) i64: of each of its blocks input and forget
// gate, then, where it has the head, the logits and log sum exp of each token's logits.
struct GateStatRows {
  int64_t num_blocks = 0;
  bool has_head = false;
  int64_t num_rows() const { return 2 * num_blocks + (has_head ? 2 : 0); }
  int64_t of_block(int64_t l) const { return 2 * l; }
  int64_t of_head() const { return 2 * num_blocks; }
};

// Adds a block's pre-activations, as its cell gets them, to its two rows. (N, W) wide, strided. cap: that
// they have been through; 0: none.
inline void MeasureGate(Ops& ops, Tensor row, Tensor gate, Tensor recurrent, double cap) {
  TensorStatsArgs args = {.stats = row.Reshape({kValueSumElems}),
                          .x = gate,
                          .add = recurrent,
                          .below = -kGateSaturation,
                          .above = kGateSaturation};
  if (cap > 0) args.beyond = kNearCap * cap;
  ops.TensorStats(args);
}
}  // namespace carousel
