// GateStats: what the gates of every block and the logits look like, over all tokens of one step on all
// ranks. Gates that are always open, always closed or at their cap learn nothing: this is where it shows
// first. Exact sums: the same bits for every number of ranks that share the data.
#pragma once
#include <cstdint>
#include <vector>

#include "core/base/value_stats.h"
#include "core/model/gate_measure.h"

namespace carousel {

// Of a gate, ValueStats::below is the share that is closed, above the share that is open, beyond the share at
// the cap; of the logits beyond alone counts (core/model/gate_measure.h).
struct GateStats {
  int64_t step = 0;  // finished steps, this one included
  struct Layer {
    int64_t block = 0;   // its number, from 0
    bool slstm = false;  // else an mLSTM
    // Pre-activations as the cell gets them: after the soft cap (mLSTM), with the recurrent part and the bias
    // (sLSTM). An sLSTM has one of each per unit, an mLSTM one of each per head.
    ValueStats input_gate, forget_gate;
  };
  std::vector<Layer> layers;  // all blocks, in order
  // Logits before their soft cap, of tokens with a target.
  ValueStats logits;
  // log sum exp of the (capped) logits of one token: its largest, mean, ...
  ValueStats log_sum_exp;
};
}  // namespace carousel
