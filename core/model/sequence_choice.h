// How an mLSTM cell gets over the borders of the sequence axis: by bytes, forward and backward together.
//   kState: every rank receives the summary and the gradient of the state of S-1 other segments,
//     (S-1) (2 DHQK DHV + 2 DHQK + 2) B NH wide elements: independent of the length of the sequence;
//   kHeads: (S-1)/S of q, k, v, h and their gradients, (S-1)/S N 2 NH (2 DHQK + 2 DHV) compute elements, and
//     of both gates and their gradients, (S-1)/S N 4 NH wide elements, for this rank's N = B*T tokens; what
//     goes to one rank in one exchange is rounded up to whole wide elements (core/comm/head_exchange.h).
#pragma once
#include "core/comm/model_axes.h"
#include "core/ops.h"

namespace carousel {

// Bytes that one rank sends (and receives) for one layer and one pass forward and backward. `segment`: this
// rank's tokens, all NH heads that the sequence axis shares. S: the ranks of the sequence axis.
int64_t StateBytes(const MlstmShape& segment, int64_t S, DType compute);
// REQUIRES: S divides NH.
int64_t HeadsBytes(const MlstmShape& segment, int64_t S, DType compute);

// kState or kHeads. kAuto: the one with fewer bytes, kState where S does not divide NH.
// REQUIRES: S > 1; S divides NH if `asked` is kHeads.
SequenceMode ChooseSequenceMode(SequenceMode asked, const MlstmShape& segment, int64_t S, DType compute);
}  // namespace carousel
