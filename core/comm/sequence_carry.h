// SequenceCarry: the mLSTM's state across the borders of the sequence axis. Each rank has one segment of the
// sequences. Forward: a pass over the segment's keys and values alone gives its summary, one AllGather gives
// everybody's, and each rank folds those before its own: then all ranks run the cell at once, each from its
// true initial state. Backward the same in the other direction with the gradients of the states. Resets cut
// the chain. The order of additions is that of the segments: results do not depend on timing.
//
// Bytes sent per rank of S and mLSTM layer: (S-1) * summary forward, (S-1) * state gradient backward,
// independent of the length of the sequence (core/ops.h: MlstmSummaryElems, MlstmStateGradientElems).
#pragma once
#include "core/arena.h"
#include "core/comm/mesh.h"
#include "core/ops.h"

namespace carousel {

class SequenceCarry {
 public:
  explicit SequenceCarry(const Axis& sequence) : axis_(sequence) {}
  int64_t size() const { return axis_.size; }

  struct Memory {
    MlstmState initial;  // saved: (B, NH, DHQK, DHV), (B, NH, DHQK), (B, NH) wide
    Tensor factors;      // saved: (S * B * NH) wide; undefined without `train`
    Tensor gathered;     // scratch: (S * MlstmSummaryElems) wide
    MlstmState dlast;    // scratch; undefined without `train`
  };
  // shape: of one segment, with the largest B. Nothing with one rank. train: also what only Backward needs.
  Memory Bind(Arena& arena, DType wide, const MlstmShape& shape, bool train) const;

  // The state before this rank's segment, in memory.initial: for MlstmForward. args.summary is set here; B
  // may be smaller than what was bound, T is any.
  MlstmState Forward(Ops& ops, const Memory& memory, MlstmSummaryArgs args,
                     CallSite site = CallSite::Here()) const;
  // That state again, until the next Forward: for the backward ops.
  MlstmState Initial(const Memory& memory, const MlstmShape& shape) const;
  // The gradient of the state after this rank's segment, in memory.dlast (its m is undefined): for
  // MlstmBackward. args.dstate and args.initial are set here.
  MlstmState Backward(Ops& ops, const Memory& memory, MlstmSummaryBackwardArgs args,
                      CallSite site = CallSite::Here()) const;

 private:
  Axis axis_;
};
}  // namespace carousel
