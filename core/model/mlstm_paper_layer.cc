#include "core/model/mlstm_paper_layer.h"

#include <cmath>

#include "core/base/int_math.h"
#include "core/comm/conv_halo.h"
#include "core/comm/tensor_boundary.h"
#include "core/model/gate_measure.h"
#include "core/model/layer_init.h"

namespace carousel {
namespace {

// The first B sequences of states that are bound for more.
Tensor ForSequences(Tensor states, int64_t B) {
  return Tensor(states.data, states.dtype, {B, states.dim[1], states.dim[2]});
}

// One rank's gates in those of all: [i_pre of all heads | f_pre of all heads].
struct GateColumns {
  Tensor i_pre, f_pre;
};
GateColumns GatesOf(Tensor gates, int64_t rank, int64_t NH) {
  return {.i_pre = gates.Columns(rank * NH, NH), .f_pre = gates.Columns(gates.dim[1] / 2 + rank * NH, NH)};
}
}  // namespace

MlstmPaperLayer::MlstmPaperLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix,
                                 int group, int64_t block)
    : spec_(spec),
      block_(block),
      tensor_size_(params.tensor_size()),
      NH_(DivExact(spec.num_heads, tensor_size_)),
      W_(DivExact(spec.v_dim, tensor_size_)),
      cell_(spec, NH_) {
  CAROUSEL_CHECK_EQ(spec.qk_dim, spec.v_dim);
  CAROUSEL_CHECK(spec.conv_kernel >= 1 && W_ % spec.qkv_block_size == 0);
  const int64_t D = spec.embedding_dim, W = spec.v_dim, NH = spec.num_heads, K = spec.conv_kernel;
  const ParamInit zero = {}, one = {.rule = InitRule::kOne}, small = SmallInit(D);
  const ParamInit uniform = {.rule = InitRule::kUniform, .a = 1 / std::sqrt(static_cast<double>(K))};
  const auto matrix = [&](const char* name, int64_t out, int64_t in, const ParamInit& init, Placement tensor,
                          bool written = false) {
    return params.Register({.name = prefix + name + ".weight",
                            .shape = {out, in},
                            .decay = true,
                            .init = init,
                            .group = group,
                            .tensor = tensor,
                            .written = written});
  };
  const auto vector = [&](const char* name, int64_t size, const ParamInit& init, Placement tensor,
                          Placement activation = kByTokens) {
    return params.Register({.name = prefix + name,
                            .shape = {size},
                            .init = init,
                            .group = group,
                            .tensor = tensor,
                            .tensor_activation = activation});
  };
  const Placement by_heads = Sharded(0), both_by_heads = Sharded(0, /*parts=*/2);
  up_ = matrix("proj_up", 2 * W, D, small, both_by_heads, /*written=*/true);
  if (spec.use_bias) up_bias_ = vector("proj_up.bias", 2 * W, zero, both_by_heads);
  conv_weight_ = matrix("conv", W, K, uniform, by_heads);
  conv_bias_ = vector("conv.bias", W, uniform, by_heads);
  q_ = matrix("q", W, spec.qkv_block_size, small, by_heads);
  matrix("k", W, spec.qkv_block_size, small, by_heads);
  matrix("v", W, spec.qkv_block_size, small, by_heads);
  if (spec.use_bias) {
    q_bias_ = vector("q.bias", W, zero, by_heads);
    vector("k.bias", W, zero, by_heads);
    vector("v.bias", W, zero, by_heads);
  }
  // All heads' gates from the columns of this rank's heads; the gates' gradients are on every rank.
  gate_ = matrix("igate_preact", NH, 3 * W, zero, Sharded(1, /*parts=*/3));
  matrix("fgate_preact", NH, 3 * W, zero, Sharded(1, /*parts=*/3));
  gate_bias_ = vector("igate_preact.bias", NH, IgateBiasInit(spec), Replicated(), Replicated());
  vector("fgate_preact.bias", NH, {.rule = InitRule::kLinspace, .a = 3, .b = 6}, Replicated(), Replicated());
  norm_weight_ = vector("multihead_norm.weight", W, spec.residual_norm_weights() ? zero : one, by_heads);
  skip_ = vector("skip", W, one, by_heads);
  down_ = matrix("proj_down", D, W, WangInit(D, spec.num_blocks), Sharded(1), /*written=*/true);
  if (spec.use_bias) down_bias_ = vector("proj_down.bias", D, zero, Replicated());
}

CausalConvShape MlstmPaperLayer::ConvShape(int64_t B, int64_t T) const {
  return {.B = B, .T = T, .C = W_, .K = spec_.conv_kernel};
}

MlstmPaperLayer::Memory MlstmPaperLayer::Bind(Arena& arena, const Ops& ops, DType compute,
                                              const PassShape& shape, bool train) const {
  const DType wide = WideOf(compute);
  const int64_t N = shape.N(), D = spec_.embedding_dim, all_NH = spec_.num_heads, W = W_;
  // The maps that give q, k and v are cheap: where the cell keeps what it reads they are computed again.
  const bool keeps_qkv = cell_.ModeFor(shape, compute) != SequenceMode::kHeads;
  const auto bind_conv_state = [&](auto&& bind) {
    return has_halo(shape.axes) ? bind({shape.most_sequences(), spec_.conv_kernel - 1, W}) : Tensor();
  };
  const auto saved = [&](std::initializer_list<int64_t> dims) { return arena.Saved(wide, dims); };
  const auto scratch_of = [&](std::initializer_list<int64_t> dims) { return arena.Scratch(wide, dims); };
  Memory memory;
  memory.saved = {.xz = arena.Saved(compute, {N, 2 * W}),
                  .conv = arena.Saved(compute, {N, W}),
                  .conv_before = bind_conv_state(saved),
                  .qkv = keeps_qkv ? arena.Saved(compute, {N, 3 * W}) : Tensor(),
                  .gates = arena.Saved(wide, {N, 2 * all_NH}),
                  .h = arena.Saved(compute, {N, W}),
                  .mean = arena.Saved(wide, {N, NH_}),
                  .rstd = arena.Saved(wide, {N, NH_})};
  const ScratchScope scope(arena);
  Scratch& scratch = memory.scratch;
  if (tensor_size_ > 1) scratch.rows = arena.Scratch(compute, {N, D});
  if (!keeps_qkv) scratch.qkv = arena.Scratch(compute, {N, 3 * W});
  scratch.conv_after = bind_conv_state(scratch_of);
  scratch.gated = arena.Scratch(compute, {N, W});
  memory.cell = cell_.Bind(arena, ops, compute, shape, train);
  if (train) {
    if (spec_.dropout > 0) scratch.dropped = arena.Scratch(compute, {shape.stream_rows(), D});
    scratch.conv_gradient = bind_conv_state(scratch_of);
    scratch.dh = arena.Scratch(compute, {N, W});
    scratch.dqkv = arena.Scratch(compute, {N, 3 * W});
    scratch.dgates = arena.Scratch(wide, {N, 2 * all_NH});
    if (tensor_size_ > 1) scratch.dgates_by_rank = arena.Scratch(wide, {N * tensor_size_, 2 * NH_});
    if (compute != wide) scratch.dgates_rounded = arena.Scratch(compute, {N, 2 * all_NH});
    scratch.dconv = arena.Scratch(compute, {N, W});
    scratch.dxz = arena.Scratch(compute, {N, 2 * W});
  }
  return memory;
}

LayerState MlstmPaperLayer::BindState(Arena& arena, DType wide, int64_t B) const {
  LayerState state;
  state.mlstm = cell_.BindState(arena, wide, B);
  state.conv = BindConvState(arena, wide, ConvShape(B, 1));
  return state;
}

void MlstmPaperLayer::ForwardConv(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const ParamStore& params = ctx.params;
  const Tensor xm = memory.saved.xz.Rows(0, ctx.N()).Columns(0, W_);
  CausalConvForwardArgs args = {.y = memory.saved.conv.Rows(0, ctx.N()),
                                .last = a.last.conv,
                                .x = xm,
                                .weight = params.Weight(conv_weight_),
                                .bias = params.Weight(conv_bias_),
                                .reset = ctx.resets,
                                .initial = a.initial.conv,
                                .shape = ConvShape(ctx.B, ctx.T)};
  if (has_halo(ctx.axes)) {
    CAROUSEL_CHECK_GE(ctx.T, spec_.conv_kernel - 1);
    const ConvHalo halo(ctx.axes.sequence);
    const Tensor before = ForSequences(memory.saved.conv_before, ctx.B);
    const Tensor after = ForSequences(memory.scratch.conv_after, ctx.B);
    if (!halo.is_last()) {
      // The last inputs do not depend on those before: they can go at once.
      CausalConvForwardArgs state = args;
      state.y = {};
      state.last = after;
      ctx.ops.CausalConvForward(state);
    }
    halo.PassOn(before, after);
    if (!halo.is_first()) args.initial = before;
  }
  ctx.ops.CausalConvForward(args);
}

void MlstmPaperLayer::BackwardConv(const LayerContext& ctx, const Memory& memory, Tensor dxm,
                                   Tensor dconv) const {
  const ParamStore& params = ctx.params;
  CausalConvBackwardArgs args = {.dx = dxm,
                                 .dweight = params.Grad(conv_weight_),
                                 .dbias = params.Grad(conv_bias_),
                                 .dy = dconv,
                                 .x = memory.saved.xz.Rows(0, ctx.N()).Columns(0, W_),
                                 .weight = params.Weight(conv_weight_),
                                 .bias = params.Weight(conv_bias_),
                                 .reset = ctx.resets,
                                 .shape = ConvShape(ctx.B, ctx.T),
                                 .accumulate_dx = true};
  if (has_halo(ctx.axes)) {
    const ConvHalo halo(ctx.axes.sequence);
    const Tensor dbefore = ForSequences(memory.scratch.conv_gradient, ctx.B);
    const Tensor dafter = ForSequences(memory.scratch.conv_after, ctx.B);
    if (!halo.is_first()) {
      args.initial = ForSequences(memory.saved.conv_before, ctx.B);
      CausalConvBackwardArgs state = args;
      state.dx = state.dweight = state.dbias = {};
      state.dinitial = dbefore;
      state.accumulate_dx = false;
      ctx.ops.CausalConvBackward(state);
    }
    halo.PassBack(dafter, dbefore);
    if (!halo.is_last()) args.dlast = dafter;
  }
  ctx.ops.CausalConvBackward(args);
}

void MlstmPaperLayer::ForwardQkv(const LayerContext& ctx, const Memory& memory, Tensor qkv) const {
  const Tensor conv = memory.saved.conv.Rows(0, ctx.N());
  const Tensor xm = memory.saved.xz.Rows(0, ctx.N()).Columns(0, W_);
  // q and k read the convolution's result, v does not.
  for (int p = 0; p < 3; ++p) {
    ctx.ops.BlockLinearForward({.y = qkv.Columns(p * W_, W_),
                                .x = p < 2 ? conv : xm,
                                .weight = ctx.params.Weight(q_ + p),
                                .bias = q_bias_ >= 0 ? ctx.params.Weight(q_bias_ + p) : Tensor(),
                                .num_blocks = W_ / spec_.qkv_block_size});
  }
}

void MlstmPaperLayer::ForwardGates(const LayerContext& ctx, const Memory& memory, Tensor qkv) const {
  const TensorBoundary border(ctx.axes.tensor);
  const Tensor gates = memory.saved.gates.Rows(0, ctx.N());
  // One rank's part of the sum has the bias.
  ctx.ops.Matmul({.c = gates,
                  .a = qkv,
                  .b = ctx.params.FusedWeight(gate_, 2),
                  .bias = border.index() == 0 ? ctx.params.FusedWeight(gate_bias_, 2) : Tensor(),
                  .transpose_b = true});
  border.Sum(gates);
}

void MlstmPaperLayer::BackwardGates(const LayerContext& ctx, const Memory& memory, Tensor dqkv,
                                    Tensor qkv) const {
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const Scratch& scratch = memory.scratch;
  const TensorBoundary border(ctx.axes.tensor);
  const Tensor dgates = scratch.dgates.Rows(0, N);
  if (border.size() > 1) {
    const Tensor by_rank = scratch.dgates_by_rank.Rows(0, N * border.size());
    border.GatherTokens(by_rank, border.MyRows(by_rank));
    for (int64_t r = 0; r < border.size(); ++r) {
      const GateColumns to = GatesOf(dgates, r, NH_), from = GatesOf(by_rank.Rows(r * N, N), 0, NH_);
      ctx.ops.Cast({.y = to.i_pre, .x = from.i_pre});
      ctx.ops.Cast({.y = to.f_pre, .x = from.f_pre});
    }
  }
  ctx.ops.ColumnSum({.y = params.FusedGrad(gate_bias_, 2), .x = dgates});
  Tensor operand = dgates;
  if (scratch.dgates_rounded.defined()) {
    operand = scratch.dgates_rounded.Rows(0, N);
    ctx.ops.Cast({.y = operand, .x = dgates});
  }
  ctx.ops.Matmul(
      {.c = params.FusedGrad(gate_, 2), .a = operand, .b = qkv, .transpose_a = true, .accumulate = true});
  ctx.ops.Matmul({.c = dqkv, .a = operand, .b = params.FusedWeight(gate_, 2), .accumulate = true});
}

void MlstmPaperLayer::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const int64_t N = ctx.N(), W = W_;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const TensorBoundary border(ctx.axes.tensor);
  CAROUSEL_CHECK_EQ(border.size(), tensor_size_);
  CAROUSEL_CHECK_MSG((border.size() == 1 && ctx.axes.sequence.size == 1) ||
                         (!a.initial.mlstm.C.defined() && !a.last.mlstm.C.defined()),
                     "a state is carried on one rank only");
  const Tensor xz = s.xz.Rows(0, N), conv = s.conv.Rows(0, N), h = s.h.Rows(0, N);
  const Tensor qkv = (s.qkv.defined() ? s.qkv : memory.scratch.qkv).Rows(0, N);

  // Column-split: [xm | z]
  const Tensor all_x = border.AllRows(memory.scratch.rows, a.x);
  border.GatherTokens(all_x, a.x);
  ctx.ops.Matmul({.c = xz,
                  .a = all_x,
                  .b = params.Weight(up_),
                  .bias = up_bias_ >= 0 ? params.Weight(up_bias_) : Tensor(),
                  .transpose_b = true});
  ForwardConv(ctx, memory, a);
  ForwardQkv(ctx, memory, qkv);
  ForwardGates(ctx, memory, qkv);

  const GateColumns gates = GatesOf(s.gates.Rows(0, N), border.index(), NH_);
  if (ctx.gate_stats.defined()) {
    MeasureGate(ctx.ops, ctx.gate_stats.Rows(0, 1), gates.i_pre, {}, /*cap=*/0);
    MeasureGate(ctx.ops, ctx.gate_stats.Rows(1, 1), gates.f_pre, {}, /*cap=*/0);
  }
  cell_.Forward(ctx, memory.cell,
                {.h = h,
                 .q = qkv.Columns(0, W),
                 .k = qkv.Columns(W, W),
                 .v = qkv.Columns(2 * W, W),
                 .i_pre = gates.i_pre,
                 .f_pre = gates.f_pre,
                 .initial = a.initial.mlstm,
                 .last = a.last.mlstm});
  const Tensor gated = memory.scratch.gated.Rows(0, N);
  ctx.ops.HeadNormGateForward({.y = gated,
                               .mean = s.mean.Rows(0, N),
                               .rstd = s.rstd.Rows(0, N),
                               .h = h,
                               .o_pre = xz.Columns(W, W),
                               .weight = params.Weight(norm_weight_),
                               .skip = conv,
                               .skip_weight = params.Weight(skip_),
                               .NH = NH_,
                               .eps = spec_.norm_eps,
                               .gate = OutputGate::kSilu,
                               .residual_weight = spec_.residual_norm_weights()});
  if (!a.y.defined()) return;

  // Row-split: one rank's part of the sum has the bias.
  const Tensor all_y = border.AllRows(memory.scratch.rows, a.y);
  ctx.ops.Matmul({.c = all_y,
                  .a = gated,
                  .b = params.Weight(down_),
                  .bias = down_bias_ >= 0 && border.index() == 0 ? params.Weight(down_bias_) : Tensor(),
                  .transpose_b = true});
  border.SumTokens(a.y, all_y);
  if (spec_.dropout > 0 && ctx.dropout_key.has_value()) {
    ctx.ops.Dropout({.y = a.y,
                     .x = a.y,
                     .rate = spec_.dropout,
                     .key = ctx.DropoutKey(1 + 2 * block_),
                     .places = ctx.StreamPlaces()});
  }
}

void MlstmPaperLayer::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const int64_t N = ctx.N(), W = W_;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Scratch& scratch = memory.scratch;
  const TensorBoundary border(ctx.axes.tensor);
  CAROUSEL_CHECK_EQ(border.size(), tensor_size_);
  const Tensor xz = s.xz.Rows(0, N), conv = s.conv.Rows(0, N);
  const Tensor h = s.h.Rows(0, N), gated = scratch.gated.Rows(0, N), dgated = gated;
  const Tensor xm = xz.Columns(0, W), z = xz.Columns(W, W);
  const Tensor dxz = scratch.dxz.Rows(0, N), dxm = dxz.Columns(0, W), dz = dxz.Columns(W, W);

  // y = dropout(gated W_down^T + b)
  Tensor dy = a.dy;
  if (spec_.dropout > 0 && ctx.dropout_key.has_value()) {
    dy = scratch.dropped.Rows(0, ctx.stream_rows());
    ctx.ops.Dropout({.y = dy,
                     .x = a.dy,
                     .rate = spec_.dropout,
                     .key = ctx.DropoutKey(1 + 2 * block_),
                     .places = ctx.StreamPlaces()});
  }
  const Tensor all_dy = border.AllRows(scratch.rows, dy);
  border.GatherTokens(all_dy, dy);
  ctx.ops.Matmul({.c = dgated, .a = all_dy, .b = params.Weight(down_)});
  if (down_bias_ >= 0) ctx.ops.ColumnSum({.y = params.Grad(down_bias_), .x = dy});

  // gated = (headnorm(h) + skip * conv) * silu(z), which takes the place of its gradient
  const Tensor dh = scratch.dh.Rows(0, N), dconv = scratch.dconv.Rows(0, N);
  ctx.ops.HeadNormGateBackward({.dh = dh,
                                .y = gated,
                                .do_pre = dz,
                                .dskip = dconv,
                                .dweight = params.Grad(norm_weight_),
                                .dskip_weight = params.Grad(skip_),
                                .dy = dgated,
                                .h = h,
                                .o_pre = z,
                                .weight = params.Weight(norm_weight_),
                                .skip = conv,
                                .skip_weight = params.Weight(skip_),
                                .mean = s.mean.Rows(0, N),
                                .rstd = s.rstd.Rows(0, N),
                                .NH = NH_,
                                .gate = OutputGate::kSilu,
                                .residual_weight = spec_.residual_norm_weights()});
  ctx.ops.Matmul({.c = params.Grad(down_),
                  .a = all_dy,
                  .b = gated,
                  .transpose_a = true,
                  .accumulate = params.AddsToGradient(down_)});

  // h = mLSTM(q, k, v, i_pre, f_pre)
  Tensor qkv = s.qkv.defined() ? s.qkv.Rows(0, N) : scratch.qkv.Rows(0, N);
  if (!s.qkv.defined()) ForwardQkv(ctx, memory, qkv);
  const Tensor dqkv = scratch.dqkv.Rows(0, N);
  const GateColumns gates = GatesOf(s.gates.Rows(0, N), border.index(), NH_);
  const GateColumns dgates =
      GatesOf(border.size() == 1 ? scratch.dgates.Rows(0, N)
                                 : border.MyRows(scratch.dgates_by_rank.Rows(0, N * border.size())),
              0, NH_);
  cell_.Backward(ctx, memory.cell,
                 {.dq = dqkv.Columns(0, W),
                  .dk = dqkv.Columns(W, W),
                  .dv = dqkv.Columns(2 * W, W),
                  .di_pre = dgates.i_pre,
                  .df_pre = dgates.f_pre,
                  .dh = dh,
                  .q = qkv.Columns(0, W),
                  .k = qkv.Columns(W, W),
                  .v = qkv.Columns(2 * W, W),
                  .h = h,
                  .i_pre = gates.i_pre,
                  .f_pre = gates.f_pre});

  // [i_pre | f_pre] = [q|k|v] W^T + b
  BackwardGates(ctx, memory, dqkv, qkv);

  // q, k = maps of conv; v = a map of xm
  for (int p = 0; p < 3; ++p) {
    ctx.ops.BlockLinearBackward({.dx = p < 2 ? dconv : dxm,
                                 .dweight = params.Grad(q_ + p),
                                 .dbias = q_bias_ >= 0 ? params.Grad(q_bias_ + p) : Tensor(),
                                 .dy = dqkv.Columns(p * W, W),
                                 .x = p < 2 ? conv : xm,
                                 .weight = params.Weight(q_ + p),
                                 .num_blocks = W / spec_.qkv_block_size,
                                 .accumulate_dx = p < 2});
  }
  BackwardConv(ctx, memory, dxm, dconv);

  // [xm | z] = x W_up^T + b
  const Tensor all_dx = border.AllRows(scratch.rows, a.dx);
  ctx.ops.Matmul({.c = all_dx, .a = dxz, .b = params.Weight(up_)});
  border.SumTokens(a.dx, all_dx);
}

void MlstmPaperLayer::WeightGradients(const LayerContext& ctx, const Memory& memory, Tensor x) const {
  const TensorBoundary border(ctx.axes.tensor);
  const Tensor dxz = memory.scratch.dxz.Rows(0, ctx.N()), all_x = border.AllRows(memory.scratch.rows, x);
  if (up_bias_ >= 0) ctx.ops.ColumnSum({.y = ctx.params.Grad(up_bias_), .x = dxz});
  border.GatherTokens(all_x, x);
  ctx.ops.Matmul({.c = ctx.params.Grad(up_),
                  .a = dxz,
                  .b = all_x,
                  .transpose_a = true,
                  .accumulate = ctx.params.AddsToGradient(up_)});
}
}  // namespace carousel
