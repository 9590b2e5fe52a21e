#include "core/model/mlstm_cell.h"

#include <algorithm>

#include "core/base/int_math.h"
#include "core/comm/head_exchange.h"
#include "core/model/layer_init.h"
#include "core/model/sequence_choice.h"

namespace carousel {
namespace {

// A part of a flat tensor.
Tensor Part(Tensor flat, int64_t begin, int64_t rows, int64_t columns) {
  return flat.Rows(begin, rows * columns).Reshape({rows, columns});
}

// What the op works on in kHeads: q, k, v (or their gradients) and the two gates of all tokens.
struct QkvOfHeads {
  Tensor q, k, v;
};
QkvOfHeads SplitQkv(Tensor flat, const MlstmShape& s) {
  const int64_t N = s.B * s.T, qk = s.NH * s.DHQK, v = s.NH * s.DHV;
  return {.q = Part(flat, 0, N, qk), .k = Part(flat, N * qk, N, qk), .v = Part(flat, 2 * N * qk, N, v)};
}
struct GatesOfHeads {
  Tensor i, f;
};
GatesOfHeads SplitGates(Tensor flat, const MlstmShape& s) {
  const int64_t N = s.B * s.T;
  return {.i = Part(flat, 0, N, s.NH), .f = Part(flat, N * s.NH, N, s.NH)};
}

// The exchange with its workspace.
class Exchanger {
 public:
  Exchanger(const LayerContext& ctx, Tensor workspace)
      : ctx_(ctx), exchange_(ctx.axes.sequence), workspace_(workspace) {}
  void ToHeads(Tensor heads, Tensor tokens, CallSite site = CallSite::Here()) const {
    exchange_.ToHeads(ctx_.ops, heads, tokens, ctx_.B, Workspace(tokens), site);
  }
  void ToTokens(Tensor tokens, Tensor heads, CallSite site = CallSite::Here()) const {
    exchange_.ToTokens(ctx_.ops, tokens, heads, ctx_.B, Workspace(tokens), site);
  }

 private:
  Tensor Workspace(Tensor tokens) const {
    const int64_t elems = exchange_.WorkspaceElems(tokens.dim[0], tokens.dim[1]);
    CAROUSEL_CHECK_LE(elems * SizeOf(tokens.dtype), workspace_.num_bytes());
    return Tensor(workspace_.data, tokens.dtype, {elems});
  }
  const LayerContext& ctx_;
  HeadExchange exchange_;
  Tensor workspace_;
};
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
  h.qkv = arena.Saved(compute, {N * (2 * qk + v)});
  h.gates = arena.Saved(wide, {2 * N * NH_});
  h.h = arena.Saved(compute, {N * v});
  const HeadExchange exchange(shape.axes.sequence);
  h.exchange =
      arena.Scratch(DType::kU8, {std::max(exchange.WorkspaceElems(N, std::max(qk, v)) * SizeOf(compute),
                                          exchange.WorkspaceElems(N, NH_) * SizeOf(wide))});
  if (train) {
    h.dqkv = arena.Scratch(compute, {N * (2 * qk + v)});
    h.dgates = arena.Scratch(wide, {2 * N * NH_});
    h.dh = arena.Scratch(compute, {N * v});
  }
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
  const Exchanger exchange(ctx, memory.heads.exchange);
  const QkvOfHeads x = SplitQkv(memory.heads.qkv, s);
  const GatesOfHeads gates = SplitGates(memory.heads.gates, s);
  exchange.ToHeads(x.q, a.q);
  exchange.ToHeads(x.k, a.k);
  exchange.ToHeads(x.v, a.v);
  exchange.ToHeads(gates.i, a.i_pre);
  exchange.ToHeads(gates.f, a.f_pre);
  cell.h = Part(memory.heads.h, 0, N, s.NH * s.DHV);
  cell.q = x.q;
  cell.k = x.k;
  cell.v = x.v;
  cell.i_pre = gates.i;
  cell.f_pre = gates.f;
  cell.reset = ctx.all_resets;
  ctx.ops.MlstmForward(cell);
  exchange.ToTokens(a.h, cell.h);
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

  const Exchanger exchange(ctx, memory.heads.exchange);
  const QkvOfHeads x = SplitQkv(memory.heads.qkv, s), dx = SplitQkv(memory.heads.dqkv, s);
  const GatesOfHeads gates = SplitGates(memory.heads.gates, s), dgates = SplitGates(memory.heads.dgates, s);
  cell.dq = dx.q;
  cell.dk = dx.k;
  cell.dv = dx.v;
  cell.di_pre = dgates.i;
  cell.df_pre = dgates.f;
  cell.dh = Part(memory.heads.dh, 0, N, s.NH * s.DHV);
  cell.q = x.q;
  cell.k = x.k;
  cell.v = x.v;
  cell.i_pre = gates.i;
  cell.f_pre = gates.f;
  cell.reset = ctx.all_resets;
  cell.h = Part(memory.heads.h, 0, N, s.NH * s.DHV);
  exchange.ToHeads(cell.dh, a.dh);
  ctx.ops.MlstmBackward(cell);
  exchange.ToTokens(a.dq, dx.q);
  exchange.ToTokens(a.dk, dx.k);
  exchange.ToTokens(a.dv, dx.v);
  exchange.ToTokens(a.di_pre, dgates.i);
  exchange.ToTokens(a.df_pre, dgates.f);
}
}  // namespace carousel
