#include "core/model/mlstm_layer.h"

#include "core/base/int_math.h"
#include "core/comm/tensor_boundary.h"
#include "core/model/gate_measure.h"
#include "core/model/layer_init.h"

namespace carousel {

MlstmLayer::MlstmLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group)
    : spec_(spec),
      tensor_size_(params.tensor_size()),
      NH_(DivExact(spec.num_heads, tensor_size_)),
      qk_dim_(NH_ * spec.head_dim_qk()),
      v_dim_(NH_ * spec.head_dim_v()),
      cell_(spec, NH_) {
  const int64_t D = spec.embedding_dim, NH = spec.num_heads;
  // Initial values: small(D) = N(0, 2/(5 D)); wang = N(0, (2/(num_blocks sqrt(D)))^2); the output gate and
  // the input and forget gates start independent of x (arXiv:2503.13427).
  const ParamInit zero = {}, one = {.rule = InitRule::kOne};
  const ParamInit small = SmallInit(D), wang = WangInit(D, spec.num_blocks);
  const auto matrix = [&](const char* name, int64_t out, int64_t in, const ParamInit& init,
                          Placement tensor) {
    return params.Register({.name = prefix + name + ".weight",
                            .shape = {out, in},
                            .decay = true,
                            .init = init,
                            .group = group,
                            .tensor = tensor,
                            .written = true});
  };
  const auto vector = [&](const char* name, int64_t size, const ParamInit& init, Placement tensor) {
    return params.Register(
        {.name = prefix + name, .shape = {size}, .init = init, .group = group, .tensor = tensor});
  };
  // Everything but the output projection is split by heads.
  const Placement by_heads = Sharded(0);
  qkvo_ = matrix("q", spec.qk_dim, D, small, by_heads);
  matrix("k", spec.qk_dim, D, small, by_heads);
  matrix("v", spec.v_dim, D, small, by_heads);
  matrix("ogate_preact", spec.v_dim, D, zero, by_heads);
  matrix("igate_preact", NH, D, zero, by_heads);
  matrix("fgate_preact", NH, D, zero, by_heads);
  gate_bias_ = vector("igate_preact.bias", NH, IgateBiasInit(spec), by_heads);
  vector("fgate_preact.bias", NH, {.rule = InitRule::kLinspace, .a = 3, .b = 6}, by_heads);
  if (spec.use_bias) {
    qkvo_bias_ = vector("q.bias", spec.qk_dim, zero, by_heads);
    vector("k.bias", spec.qk_dim, zero, by_heads);
    vector("v.bias", spec.v_dim, zero, by_heads);
    vector("ogate_preact.bias", spec.v_dim, zero, by_heads);
  }
  norm_weight_ = vector("multihead_norm.weight", spec.v_dim, one, by_heads);
  if (spec.use_bias) norm_bias_ = vector("multihead_norm.bias", spec.v_dim, zero, by_heads);
  out_weight_ = matrix("out_proj", D, spec.v_dim, wang, Sharded(1));
  if (spec.use_bias) out_bias_ = vector("out_proj.bias", D, zero, Replicated());
}

MlstmLayer::Memory MlstmLayer::Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape,
                                    bool train) const {
  const DType wide = WideOf(compute);
  const int64_t N = shape.N(), D = spec_.embedding_dim, W = 2 * qk_dim_ + 2 * v_dim_;
  // Backward reads q, k and v here, or the cell keeps its own.
  const bool keeps_qkv = cell_.ModeFor(shape, compute) != SequenceMode::kHeads;
  Memory memory;
  memory.saved = {.qkvo = arena.Saved(compute, {N, keeps_qkv ? W : v_dim_}),
                  .gates = arena.Saved(wide, {N, 2 * NH_}),
                  .h = arena.Saved(compute, {N, v_dim_}),
                  .mean = arena.Saved(wide, {N, NH_}),
                  .rstd = arena.Saved(wide, {N, NH_})};
  const ScratchScope scope(arena);
  Scratch& scratch = memory.scratch;
  if (tensor_size_ > 1) scratch.rows = arena.Scratch(compute, {N, D});
  scratch.gated = arena.Scratch(compute, {N, v_dim_});
  memory.cell = cell_.Bind(arena, ops, compute, shape, train);
  if (!keeps_qkv) {
    // Only in the forward pass: the gradients take its place.
    const ScratchScope forward(arena);
    scratch.qkv = arena.Scratch(compute, {N, 2 * qk_dim_ + v_dim_});
  }
  if (train) {
    scratch.dh = arena.Scratch(compute, {N, v_dim_});
    scratch.dgates = arena.Scratch(wide, {N, 2 * NH_});
    scratch.dproj = arena.Scratch(compute, {N, W + 2 * NH_});
  }
  return memory;
}

LayerState MlstmLayer::BindState(Arena& arena, DType wide, int64_t B) const {
  return {.mlstm = cell_.BindState(arena, wide, B)};
}

namespace {

// The columns of a fused projection, in the order of registration.
struct QkvColumns {
  Tensor q, k, v;
};
QkvColumns SplitQkv(Tensor x, int64_t qk_dim, int64_t v_dim) {
  return {.q = x.Columns(0, qk_dim), .k = x.Columns(qk_dim, qk_dim), .v = x.Columns(2 * qk_dim, v_dim)};
}
}  // namespace

struct MlstmLayer::Projections {
  Tensor fused;  // (N, W): [qkv | o_pre]; undefined if they lie apart
  Tensor qkv;    // (N, 2*qk_dim + v_dim)
  Tensor o_pre;  // (N, v_dim)
};

MlstmLayer::Projections MlstmLayer::ProjectionsOf(const Memory& memory, int64_t N) const {
  const Tensor kept = memory.saved.qkvo.Rows(0, N);
  if (memory.scratch.qkv.defined()) {
    return {.fused = {}, .qkv = memory.scratch.qkv.Rows(0, N), .o_pre = kept};
  }
  const int64_t width = 2 * qk_dim_ + v_dim_;
  return {.fused = kept, .qkv = kept.Columns(0, width), .o_pre = kept.Columns(width, v_dim_)};
}

void MlstmLayer::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const TensorBoundary border(ctx.axes.tensor);
  CAROUSEL_CHECK_EQ(border.size(), tensor_size_);
  CAROUSEL_CHECK_MSG(border.size() == 1 || (!a.initial.mlstm.C.defined() && !a.last.mlstm.C.defined()),
                     "a state is carried on one rank only");
  const Projections projected = ProjectionsOf(memory, N);
  const Tensor gates = s.gates.Rows(0, N), h = s.h.Rows(0, N);

  // Column-split projections of all rows: each rank has the weights of its own heads.
  const Tensor all_x = border.AllRows(memory.scratch.rows, a.x);
  border.GatherTokens(all_x, a.x);
  const auto project = [&](Tensor y, int first, int count) {
    const Tensor bias = qkvo_bias_ >= 0 ? params.FusedWeight(qkvo_bias_ + first, count) : Tensor();
    ctx.ops.Matmul({.c = y,
                    .a = all_x,
                    .b = params.FusedWeight(qkvo_ + first, count),
                    .bias = bias,
                    .transpose_b = true});
  };
  if (projected.fused.defined()) {
    project(projected.fused, 0, 4);
  } else {
    project(projected.qkv, 0, 3);
    project(projected.o_pre, 3, 1);
  }
  ctx.ops.Matmul({.c = gates,
                  .a = all_x,
                  .b = params.FusedWeight(qkvo_ + 4, 2),
                  .bias = params.FusedWeight(gate_bias_, 2),
                  .transpose_b = true});
  if (spec_.gate_soft_cap > 0) {
    ctx.ops.SoftCapForward({.y = gates, .x = gates, .cap = spec_.gate_soft_cap});
  }
  for (int64_t g = 0; ctx.gate_stats.defined() && g < 2; ++g) {
    MeasureGate(ctx.ops, ctx.gate_stats.Rows(g, 1), gates.Columns(g * NH_, NH_), {}, spec_.gate_soft_cap);
  }

  // The recurrence over tokens, and what each head reads out of its state.
  const QkvColumns x = SplitQkv(projected.qkv, qk_dim_, v_dim_);
  cell_.Forward(ctx, memory.cell,
                {.h = h,
                 .q = x.q,
                 .k = x.k,
                 .v = x.v,
                 .i_pre = gates.Columns(0, NH_),
                 .f_pre = gates.Columns(NH_, NH_),
                 .initial = a.initial.mlstm,
                 .last = a.last.mlstm});
  const Tensor gated = memory.scratch.gated.Rows(0, N);
  ctx.ops.HeadNormGateForward({.y = gated,
                               .mean = s.mean.Rows(0, N),
                               .rstd = s.rstd.Rows(0, N),
                               .h = h,
                               .o_pre = projected.o_pre,
                               .weight = params.Weight(norm_weight_),
                               .bias = norm_bias_ >= 0 ? params.Weight(norm_bias_) : Tensor(),
                               .NH = NH_,
                               .eps = spec_.norm_eps});
  if (!a.y.defined()) return;

  // Row-split projection: one rank's part of the sum has the bias.
  const Tensor all_y = border.AllRows(memory.scratch.rows, a.y);
  ctx.ops.Matmul({.c = all_y,
                  .a = gated,
                  .b = params.Weight(out_weight_),
                  .bias = out_bias_ >= 0 && border.index() == 0 ? params.Weight(out_bias_) : Tensor(),
                  .transpose_b = true});
  border.SumTokens(a.y, all_y);
}

void MlstmLayer::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const TensorBoundary border(ctx.axes.tensor);
  CAROUSEL_CHECK_EQ(border.size(), tensor_size_);
  const Tensor gates = s.gates.Rows(0, N), h = s.h.Rows(0, N);
  const Projections projected = ProjectionsOf(memory, N);

  // y = gated W_out^T + b
  const Tensor gated = memory.scratch.gated.Rows(0, N), dgated = gated;
  const Tensor all_dy = border.AllRows(memory.scratch.rows, a.dy);
  border.GatherTokens(all_dy, a.dy);
  ctx.ops.Matmul({.c = dgated, .a = all_dy, .b = params.Weight(out_weight_)});
  if (out_bias_ >= 0) ctx.ops.ColumnSum({.y = params.Grad(out_bias_), .x = a.dy});

  // gated = sigmoid(o_pre) * headnorm(h), which takes the place of its gradient
  const int64_t qkv_width = 2 * qk_dim_ + v_dim_, qkvo_width = qkv_width + v_dim_;
  const Tensor dproj = memory.scratch.dproj.Rows(0, N);
  const Tensor dh = memory.scratch.dh.Rows(0, N);
  ctx.ops.HeadNormGateBackward({.dh = dh,
                                .y = gated,
                                .do_pre = dproj.Columns(qkv_width, v_dim_),
                                .dweight = params.Grad(norm_weight_),
                                .dbias = norm_bias_ >= 0 ? params.Grad(norm_bias_) : Tensor(),
                                .dy = dgated,
                                .h = h,
                                .o_pre = projected.o_pre,
                                .weight = params.Weight(norm_weight_),
                                .bias = norm_bias_ >= 0 ? params.Weight(norm_bias_) : Tensor(),
                                .mean = s.mean.Rows(0, N),
                                .rstd = s.rstd.Rows(0, N),
                                .NH = NH_});
  ctx.ops.Matmul({.c = params.Grad(out_weight_),
                  .a = all_dy,
                  .b = gated,
                  .transpose_a = true,
                  .accumulate = params.AddsToGradient(out_weight_)});

  // h = mLSTM(q, k, v, i_pre, f_pre). Where the cell keeps q, k and v itself these views are not read: their
  // memory has been used again.
  const Tensor dgates = memory.scratch.dgates.Rows(0, N);
  const QkvColumns dx = SplitQkv(dproj, qk_dim_, v_dim_), x = SplitQkv(projected.qkv, qk_dim_, v_dim_);
  cell_.Backward(ctx, memory.cell,
                 {.dq = dx.q,
                  .dk = dx.k,
                  .dv = dx.v,
                  .di_pre = dgates.Columns(0, NH_),
                  .df_pre = dgates.Columns(NH_, NH_),
                  .dh = dh,
                  .q = x.q,
                  .k = x.k,
                  .v = x.v,
                  .h = h,
                  .i_pre = gates.Columns(0, NH_),
                  .f_pre = gates.Columns(NH_, NH_)});

  // Gates: cap, then bias; the matmul operands are rounded to compute beside the other projections.
  if (spec_.gate_soft_cap > 0) {
    ctx.ops.SoftCapBackward({.dx = dgates, .dy = dgates, .y = gates, .cap = spec_.gate_soft_cap});
  }
  ctx.ops.ColumnSum({.y = params.FusedGrad(gate_bias_, 2), .x = dgates});
  ctx.ops.Cast({.y = dproj.Columns(qkvo_width, 2 * NH_), .x = dgates});
  if (qkvo_bias_ >= 0) {
    ctx.ops.ColumnSum({.y = params.FusedGrad(qkvo_bias_, 4), .x = dproj.Columns(0, qkvo_width)});
  }

  // [q|k|v|o_pre|i|f] = x W^T
  const Tensor all_dx = border.AllRows(memory.scratch.rows, a.dx);
  ctx.ops.Matmul({.c = all_dx, .a = dproj, .b = params.FusedWeight(qkvo_, 6)});
  border.SumTokens(a.dx, all_dx);
}

void MlstmLayer::WeightGradients(const LayerContext& ctx, const Memory& memory, Tensor x) const {
  const TensorBoundary border(ctx.axes.tensor);
  const Tensor all_x = border.AllRows(memory.scratch.rows, x);
  border.GatherTokens(all_x, x);
  // all six weights at once
  ctx.ops.Matmul({.c = ctx.params.FusedGrad(qkvo_, 6),
                  .a = memory.scratch.dproj.Rows(0, ctx.N()),
                  .b = all_x,
                  .transpose_a = true,
                  .accumulate = ctx.params.AddsToGradient(qkvo_)});
}
}  // namespace carousel
