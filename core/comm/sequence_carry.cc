#include "core/comm/sequence_carry.h"

namespace carousel {
namespace {

// The same memory for fewer sequences.
MlstmState ViewOf(const MlstmState& bound, const MlstmShape& s) {
  CAROUSEL_CHECK_LE(s.B * s.NH * s.DHQK * s.DHV, bound.C.num_elems());
  const DType wide = bound.C.dtype;
  MlstmState state = {.C = Tensor(bound.C.data, wide, {s.B, s.NH, s.DHQK, s.DHV}),
                      .n = Tensor(bound.n.data, wide, {s.B, s.NH, s.DHQK}),
                      .m = {}};
  if (bound.m.defined()) state.m = Tensor(bound.m.data, wide, {s.B, s.NH});
  return state;
}
Tensor FactorsOf(const SequenceCarry::Memory& memory, const MlstmShape& s, int64_t num_segments) {
  return memory.factors.Rows(0, num_segments * s.B * s.NH).Reshape({num_segments, s.B, s.NH});
}
}  // namespace

SequenceCarry::Memory SequenceCarry::Bind(Arena& arena, DType wide, const MlstmShape& s, bool train) const {
  if (size() == 1) return {};
  Memory memory;
  memory.initial = {.C = arena.Saved(wide, {s.B, s.NH, s.DHQK, s.DHV}),
                    .n = arena.Saved(wide, {s.B, s.NH, s.DHQK}),
                    .m = arena.Saved(wide, {s.B, s.NH})};
  static_assert(MlstmStateGradientElems({.B = 1, .T = 1, .NH = 1, .DHQK = 1, .DHV = 1, .L = 1}) <=
                MlstmSummaryElems({.B = 1, .T = 1, .NH = 1, .DHQK = 1, .DHV = 1, .L = 1}));
  memory.gathered = arena.Scratch(wide, {size() * MlstmSummaryElems(s)});
  if (train) {
    memory.factors = arena.Saved(wide, {size() * s.B * s.NH});
    memory.dlast = {.C = arena.Scratch(wide, {s.B, s.NH, s.DHQK, s.DHV}),
                    .n = arena.Scratch(wide, {s.B, s.NH, s.DHQK}),
                    .m = {}};
  }
  return memory;
}

MlstmState SequenceCarry::Initial(const Memory& memory, const MlstmShape& shape) const {
  return size() == 1 ? MlstmState() : ViewOf(memory.initial, shape);
}

MlstmState SequenceCarry::Forward(Ops& ops, const Memory& memory, MlstmSummaryArgs args,
                                  CallSite site) const {
  if (size() == 1) return {};
  const int64_t elems = MlstmSummaryElems(args.shape);
  const Tensor all = memory.gathered.Rows(0, size() * elems), mine = all.Rows(axis_.index * elems, elems);
  args.summary = mine;
  ops.MlstmSummary(args);
  axis_.communicator->AllGather(all, mine, site);
  const MlstmState initial = Initial(memory, args.shape);
  ops.MlstmFold({.initial = initial,
                 .factors = memory.factors.defined() ? FactorsOf(memory, args.shape, size()) : Tensor(),
                 .summaries = all,
                 .num_segments = size(),
                 .index = axis_.index,
                 .shape = args.shape});
  return initial;
}

MlstmState SequenceCarry::Backward(Ops& ops, const Memory& memory, MlstmSummaryBackwardArgs args,
                                   CallSite site) const {
  if (size() == 1) return {};
  const int64_t elems = MlstmStateGradientElems(args.shape);
  const Tensor all = memory.gathered.Rows(0, size() * elems), mine = all.Rows(axis_.index * elems, elems);
  args.dstate = mine;
  args.initial = Initial(memory, args.shape);
  ops.MlstmSummaryBackward(args);
  axis_.communicator->AllGather(all, mine, site);
  const MlstmState dlast = ViewOf(memory.dlast, args.shape);
  ops.MlstmFoldBackward({.dlast = dlast,
                         .dstates = all,
                         .factors = FactorsOf(memory, args.shape, size()),
                         .num_segments = size(),
                         .index = axis_.index,
                         .shape = args.shape});
  return dlast;
}
}  // namespace carousel
