#include "core/model/mlstm_cell.h"

#include <algorithm>

#include "core/base/int_math.h"
#include "core/model/layer_init.h"
#include "core/model/sequence_choice.h"

namespace carousel {
namespace {

// The columns of what lies side by side: q, k, v or their gradients, and the two gates or theirs.
struct Qkv {
  Tensor q, k, v;
};
Qkv SplitQkv(Tensor x, const MlstmShape& s) {
  const int64_t qk = s.NH * s.DHQK, v = s.NH * s.DHV;
  return {.q = x.Columns(0, qk), .k = x.Columns(qk, qk), .v = x.Columns(2 * qk, v)};
}
struct Gates {
  Tensor i, f;
};
Gates SplitGates(Tensor x, const MlstmShape& s) {
  return {.i = x.Columns(0, s.NH), .f = x.Columns(s.NH, s.NH)};
}

// What the cell reads, or the gradients of it, in both forms: one exchange. The gates' elements are the
// larger ones and come first.
std::vector<HeadExchange::Fused> InputParts(Tensor gates, Tensor qkv, const Gates& gates_of_tokens,
                                            const Qkv& qkv_of_tokens) {
  return {{.heads = gates, .tokens = {gates_of_tokens.i, gates_of_tokens.f}},
          {.heads = qkv, .tokens = {qkv_of_tokens.q, qkv_of_tokens.k, qkv_of_tokens.v}}};
}
}  // namespace

MlstmCell::MlstmCell(const ModelSpec& spec, int64_t num_heads) : spec_(spec), NH_(num_heads) {}

MlstmShape MlstmCell::Shape(int64_t B, int64_t T, int64_t heads) const {
  MlstmShape shape = MlstmShapeOf(spec_, B, T);
  shape.NH = heads;
  return shape;
}

MlstmShape MlstmCell::PassShapeOf(const LayerContext& ctx, const Memory& memory) const {
  const int64_t S = ctx.axes.sequence.size;
  CAROUSEL_CHECK_MSG((S == 1) == (memory.mode == SequenceMode::kAuto), "bound for another sequence axis");
  const MlstmShape shape = memory.mode == SequenceMode::kHeads ? Shape(ctx.B, ctx.T * S, DivExact(NH_, S))
                                                               : Shape(ctx.B, ctx.T, NH_);
  CAROUSEL_CHECK_MSG(ctx.ops.MlstmWorkspaceBytes(shape, ctx.params.compute()) <= memory.workspace.num_bytes(),
                     "more sequences than were bound");
  return shape;
}

SequenceMode MlstmCell::ModeFor(const PassShape& shape, DType compute) const {
  const int64_t S = shape.axes.sequence.size;
  return S == 1 ? SequenceMode::kAuto
                : ChooseSequenceMode(shape.axes.sequence_mode, Shape(shape.B, shape.T, NH_), S, compute);
}

MlstmCell::Memory MlstmCell::Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape,
                                  bool train) const {
  const DType wide = WideOf(compute);
  const int64_t N = shape.N(), S = shape.axes.sequence.size;
  const int64_t qk = NH_ * spec_.head_dim_qk(), v = NH_ * spec_.head_dim_v();
  Memory memory;
  memory.mode = ModeFor(shape, compute);
  const bool by_heads = memory.mode == SequenceMode::kHeads;
  const int64_t token_parts = by_heads ? S : 1, heads = NH_ / token_parts;
  memory.denominator = arena.Saved(wide, {N * token_parts, heads});
  memory.m = arena.Saved(wide, {N * token_parts, heads});
  memory.workspace =
      arena.Scratch(DType::kU8, {shape.LargestWorkspace([&](int64_t B, int64_t T) {
                      return ops.MlstmWorkspaceBytes(Shape(B, T * token_parts, heads), compute);
                    })});
  if (memory.mode == SequenceMode::kState) {
    memory.carry = SequenceCarry(shape.axes.sequence)
                       .Bind(arena, wide, Shape(shape.most_sequences(), shape.T, NH_), train);
  }
  if (!by_heads) return memory;
  Memory::Heads& h = memory.heads;
  const int64_t M = N * S, qkv_width = 2 * qk + v, gates_width = 2 * NH_;
  h.qkv = arena.Saved(compute, {M, qkv_width / S});
  h.gates = arena.Saved(wide, {M, gates_width / S});
  h.h = arena.Saved(compute, {M, v / S});
  const int64_t exchange_bytes =
      HeadExchange(shape.axes.sequence)
          .BufferBytes(N, {{.dtype = wide, .width = gates_width}, {.dtype = compute, .width = qkv_width}});
  h.exchange.sent = arena.Scratch(DType::kU8, {exchange_bytes});
  if (!train) {
    h.exchange.received = arena.Scratch(DType::kU8, {exchange_bytes});
    return memory;
  }
  // The gradients lie where what comes back for them arrives: they have been sent by then.
  const int64_t dgates_bytes = RoundUp(M * gates_width / S * SizeOf(wide), Arena::kAlignBytes);
  const int64_t dqkv_bytes = M * qkv_width / S * SizeOf(compute);
  h.exchange.received = arena.Scratch(DType::kU8, {std::max(exchange_bytes, dgates_bytes + dqkv_bytes)});
  h.dgates = Tensor(h.exchange.received.data, wide, {M, gates_width / S});
  h.dqkv = Tensor(h.exchange.received.Rows(dgates_bytes, dqkv_bytes).data, compute, {M, qkv_width / S});
  h.dh = arena.Scratch(compute, {M, v / S});
  return memory;
}

MlstmState MlstmCell::BindState(Arena& arena, DType wide, int64_t B) const {
  return BindMlstmState(arena, wide, Shape(B, 1, NH_));
}

void MlstmCell::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const MlstmShape s = PassShapeOf(ctx, memory);
  const int64_t N = s.B * s.T;
  CAROUSEL_CHECK_MSG(memory.mode == SequenceMode::kAuto || (!a.initial.C.defined() && !a.last.C.defined()),
                     "a state is carried along whole sequences only");
  MlstmForwardArgs cell = {.h = a.h,
                           .denominator = memory.denominator.Rows(0, N),
                           .m = memory.m.Rows(0, N),
                           .last = a.last,
                           .q = a.q,
                           .k = a.k,
                           .v = a.v,
                           .i_pre = a.i_pre,
                           .f_pre = a.f_pre,
                           .reset = ctx.resets,
                           .initial = a.initial,
                           .workspace = memory.workspace,
                           .shape = s};
  if (memory.mode != SequenceMode::kHeads) {
    if (memory.mode == SequenceMode::kState) {
      cell.initial = SequenceCarry(ctx.axes.sequence)
                         .Forward(ctx.ops, memory.carry,
                                  {.summary = {},  // the carry's own
                                   .k = a.k,
                                   .v = a.v,
                                   .i_pre = a.i_pre,
                                   .f_pre = a.f_pre,
                                   .reset = ctx.resets,
                                   .workspace = memory.workspace,
                                   .shape = s});
    }
    ctx.ops.MlstmForward(cell);
    return;
  }

  CAROUSEL_CHECK_MSG(ctx.resets.defined() == ctx.all_resets.defined(), "resets without those of all tokens");
  const HeadExchange exchange(ctx.axes.sequence);
  const Memory::Heads& heads = memory.heads;
  const Tensor qkv = heads.qkv.Rows(0, N), gates = heads.gates.Rows(0, N);
  exchange.ToHeads(ctx.ops,
                   InputParts(gates, qkv, {.i = a.i_pre, .f = a.f_pre}, {.q = a.q, .k = a.k, .v = a.v}),
                   ctx.B, heads.exchange);
  const Qkv x = SplitQkv(qkv, s);
  const Gates pre = SplitGates(gates, s);
  cell.h = heads.h.Rows(0, N);
  cell.q = x.q;
  cell.k = x.k;
  cell.v = x.v;
  cell.i_pre = pre.i;
  cell.f_pre = pre.f;
  cell.reset = ctx.all_resets;
  ctx.ops.MlstmForward(cell);
  exchange.ToTokens(ctx.ops, a.h, cell.h, ctx.B, heads.exchange);
}

void MlstmCell::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const MlstmShape s = PassShapeOf(ctx, memory);
  const int64_t N = s.B * s.T;
  MlstmBackwardArgs cell = {.dq = a.dq,
                            .dk = a.dk,
                            .dv = a.dv,
                            .di_pre = a.di_pre,
                            .df_pre = a.df_pre,
                            .dh = a.dh,
                            .q = a.q,
                            .k = a.k,
                            .v = a.v,
                            .i_pre = a.i_pre,
                            .f_pre = a.f_pre,
                            .reset = ctx.resets,
                            .h = a.h,
                            .denominator = memory.denominator.Rows(0, N),
                            .m = memory.m.Rows(0, N),
                            .workspace = memory.workspace,
                            .shape = s,
                            .normalizer_gradient = spec_.normalizer_gradient};
  if (memory.mode != SequenceMode::kHeads) {
    if (memory.mode == SequenceMode::kState) {
      const SequenceCarry carry(ctx.axes.sequence);
      cell.initial = carry.Initial(memory.carry, s);
      cell.dlast = carry.Backward(ctx.ops, memory.carry,
                                  {.dstate = {},  // the carry's own
                                   .dh = a.dh,
                                   .q = a.q,
                                   .k = a.k,
                                   .i_pre = a.i_pre,
                                   .f_pre = a.f_pre,
                                   .reset = ctx.resets,
                                   .h = a.h,
                                   .denominator = cell.denominator,
                                   .m = cell.m,
                                   .workspace = memory.workspace,
                                   .shape = s,
                                   .normalizer_gradient = spec_.normalizer_gradient});
    }
    ctx.ops.MlstmBackward(cell);
    return;
  }

  const HeadExchange exchange(ctx.axes.sequence);
  const Memory::Heads& heads = memory.heads;
  const Tensor dqkv = heads.dqkv.Rows(0, N), dgates = heads.dgates.Rows(0, N);
  const Qkv x = SplitQkv(heads.qkv.Rows(0, N), s), dx = SplitQkv(dqkv, s);
  const Gates pre = SplitGates(heads.gates.Rows(0, N), s), dpre = SplitGates(dgates, s);
  cell.dq = dx.q;
  cell.dk = dx.k;
  cell.dv = dx.v;
  cell.di_pre = dpre.i;
  cell.df_pre = dpre.f;
  cell.dh = heads.dh.Rows(0, N);
  cell.q = x.q;
  cell.k = x.k;
  cell.v = x.v;
  cell.i_pre = pre.i;
  cell.f_pre = pre.f;
  cell.reset = ctx.all_resets;
  cell.h = heads.h.Rows(0, N);
  exchange.ToHeads(ctx.ops, cell.dh, a.dh, ctx.B, heads.exchange);
  ctx.ops.MlstmBackward(cell);
  exchange.ToTokens(
      ctx.ops, InputParts(dgates, dqkv, {.i = a.di_pre, .f = a.df_pre}, {.q = a.dq, .k = a.dk, .v = a.dv}),
      ctx.B, heads.exchange);
}
}  // namespace carousel
