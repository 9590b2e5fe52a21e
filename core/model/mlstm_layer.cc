#include "core/model/mlstm_layer.h"

#include "core/model/layer_init.h"

namespace carousel {

MlstmLayer::MlstmLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group)
    : spec_(spec), qkvo_width_(2 * spec.qk_dim + 2 * spec.v_dim) {
  const int64_t D = spec.embedding_dim, NH = spec.num_heads;
  // Initial values: small(D) = N(0, 2/(5 D)); wang = N(0, (2/(num_blocks sqrt(D)))^2); the output gate and
  // the input and forget gates start independent of x (arXiv:2503.13427).
  const ParamInit zero = {}, one = {.rule = InitRule::kOne};
  const ParamInit small = SmallInit(D), wang = WangInit(D, spec.num_blocks);
  const auto matrix = [&](const char* name, int64_t out, int64_t in, const ParamInit& init) {
    return params.Register(
        {.name = prefix + name + ".weight", .shape = {out, in}, .decay = true, .init = init, .group = group});
  };
  const auto vector = [&](const char* name, int64_t size, const ParamInit& init) {
    return params.Register({.name = prefix + name, .shape = {size}, .init = init, .group = group});
  };
  qkvo_ = matrix("q", spec.qk_dim, D, small);
  matrix("k", spec.qk_dim, D, small);
  matrix("v", spec.v_dim, D, small);
  matrix("ogate_preact", spec.v_dim, D, zero);
  matrix("igate_preact", NH, D, zero);
  matrix("fgate_preact", NH, D, zero);
  gate_bias_ = vector("igate_preact.bias", NH, IgateBiasInit(spec));
  vector("fgate_preact.bias", NH, {.rule = InitRule::kLinspace, .a = 3, .b = 6});
  if (spec.use_bias) {
    qkvo_bias_ = vector("q.bias", spec.qk_dim, zero);
    vector("k.bias", spec.qk_dim, zero);
    vector("v.bias", spec.v_dim, zero);
    vector("ogate_preact.bias", spec.v_dim, zero);
  }
  norm_weight_ = vector("multihead_norm.weight", spec.v_dim, one);
  if (spec.use_bias) norm_bias_ = vector("multihead_norm.bias", spec.v_dim, zero);
  out_weight_ = matrix("out_proj", D, spec.v_dim, wang);
  if (spec.use_bias) out_bias_ = vector("out_proj.bias", D, zero);
}

MlstmShape MlstmLayer::Shape(int64_t B, int64_t T) const { return MlstmShapeOf(spec_, B, T); }

MlstmLayer::Memory MlstmLayer::Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape,
                                    bool train) const {
  const DType wide = WideOf(compute);
  const int64_t N = shape.N(), NH = spec_.num_heads, W = qkvo_width_;
  Memory memory;
  memory.saved = {.qkvo = arena.Saved(compute, {N, W}),
                  .gates = arena.Saved(wide, {N, 2 * NH}),
                  .h = arena.Saved(compute, {N, spec_.v_dim}),
                  .denominator = arena.Saved(wide, {N, NH}),
                  .m = arena.Saved(wide, {N, NH}),
                  .mean = arena.Saved(wide, {N, NH}),
                  .rstd = arena.Saved(wide, {N, NH}),
                  .gated = arena.Saved(compute, {N, spec_.v_dim})};
  const ScratchScope scope(arena);
  Scratch& scratch = memory.scratch;
  scratch.workspace = arena.Scratch(DType::kU8, {shape.LargestWorkspace([&](int64_t B, int64_t T) {
                                      return ops.MlstmWorkspaceBytes(Shape(B, T), compute);
                                    })});
  if (train) {
    scratch.dgated = arena.Scratch(compute, {N, spec_.v_dim});
    scratch.dh = arena.Scratch(compute, {N, spec_.v_dim});
    scratch.dgates = arena.Scratch(wide, {N, 2 * NH});
    scratch.dproj = arena.Scratch(compute, {N, W + 2 * NH});
  }
  return memory;
}

LayerState MlstmLayer::BindState(Arena& arena, DType wide, int64_t B) const {
  return {.mlstm = BindMlstmState(arena, wide, Shape(B, 1))};
}

namespace {

// The columns of a fused projection, in the order of registration.
struct QkvoColumns {
  Tensor q, k, v, o_pre;
};
QkvoColumns SplitQkvo(Tensor x, int64_t qk_dim, int64_t v_dim) {
  return {.q = x.Columns(0, qk_dim),
          .k = x.Columns(qk_dim, qk_dim),
          .v = x.Columns(2 * qk_dim, v_dim),
          .o_pre = x.Columns(2 * qk_dim + v_dim, v_dim)};
}
}  // namespace

void MlstmLayer::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const int64_t N = ctx.N(), NH = spec_.num_heads;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Tensor qkvo = s.qkvo.Rows(0, N), gates = s.gates.Rows(0, N), h = s.h.Rows(0, N);
  const MlstmShape shape = Shape(ctx.B, ctx.T);
  CAROUSEL_CHECK_MSG(ctx.ops.MlstmWorkspaceBytes(shape, qkvo.dtype) <= memory.scratch.workspace.num_bytes(),
                     "more sequences than were bound");

  // Column-split projections: with a tensor axis each rank would hold the rows of its own heads.
  ctx.ops.Matmul({.c = qkvo,
                  .a = a.x,
                  .b = params.FusedWeight(qkvo_, 4),
                  .bias = qkvo_bias_ >= 0 ? params.FusedWeight(qkvo_bias_, 4) : Tensor(),
                  .transpose_b = true});
  ctx.ops.Matmul({.c = gates,
                  .a = a.x,
                  .b = params.FusedWeight(qkvo_ + 4, 2),
                  .bias = params.FusedWeight(gate_bias_, 2),
                  .transpose_b = true});
  if (spec_.gate_soft_cap > 0) {
    ctx.ops.SoftCapForward({.y = gates, .x = gates, .cap = spec_.gate_soft_cap});
  }

  // The recurrence over tokens, and what each head reads out of its state.
  const QkvoColumns x = SplitQkvo(qkvo, spec_.qk_dim, spec_.v_dim);
  ctx.ops.MlstmForward({.h = h,
                        .denominator = s.denominator.Rows(0, N),
                        .m = s.m.Rows(0, N),
                        .last = a.last.mlstm,
                        .q = x.q,
                        .k = x.k,
                        .v = x.v,
                        .i_pre = gates.Columns(0, NH),
                        .f_pre = gates.Columns(NH, NH),
                        .reset = ctx.resets,
                        .initial = a.initial.mlstm,
                        .workspace = memory.scratch.workspace,
                        .shape = shape});
  const Tensor gated = s.gated.Rows(0, N);
  ctx.ops.HeadNormGateForward({.y = gated,
                               .mean = s.mean.Rows(0, N),
                               .rstd = s.rstd.Rows(0, N),
                               .h = h,
                               .o_pre = x.o_pre,
                               .weight = params.Weight(norm_weight_),
                               .bias = norm_bias_ >= 0 ? params.Weight(norm_bias_) : Tensor(),
                               .NH = NH,
                               .eps = spec_.norm_eps});

  // Row-split projection: with a tensor axis the ranks' results would be summed.
  ctx.ops.Matmul({.c = a.y,
                  .a = gated,
                  .b = params.Weight(out_weight_),
                  .bias = out_bias_ >= 0 ? params.Weight(out_bias_) : Tensor(),
                  .transpose_b = true});
}

void MlstmLayer::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const int64_t N = ctx.N(), NH = spec_.num_heads;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Tensor gates = s.gates.Rows(0, N), h = s.h.Rows(0, N), gated = s.gated.Rows(0, N);
  const QkvoColumns x = SplitQkvo(s.qkvo.Rows(0, N), spec_.qk_dim, spec_.v_dim);

  // y = gated W_out^T + b
  const Tensor dgated = memory.scratch.dgated.Rows(0, N);
  ctx.ops.Matmul({.c = dgated, .a = a.dy, .b = params.Weight(out_weight_)});
  ctx.ops.Matmul(
      {.c = params.Grad(out_weight_), .a = a.dy, .b = gated, .transpose_a = true, .accumulate = true});
  if (out_bias_ >= 0) ctx.ops.ColumnSum({.y = params.Grad(out_bias_), .x = a.dy});

  // gated = sigmoid(o_pre) * headnorm(h)
  const Tensor dproj = memory.scratch.dproj.Rows(0, N);
  const QkvoColumns dx = SplitQkvo(dproj, spec_.qk_dim, spec_.v_dim);
  const Tensor dh = memory.scratch.dh.Rows(0, N);
  ctx.ops.HeadNormGateBackward({.dh = dh,
                                .do_pre = dx.o_pre,
                                .dweight = params.Grad(norm_weight_),
                                .dbias = norm_bias_ >= 0 ? params.Grad(norm_bias_) : Tensor(),
                                .dy = dgated,
                                .h = h,
                                .o_pre = x.o_pre,
                                .weight = params.Weight(norm_weight_),
                                .bias = norm_bias_ >= 0 ? params.Weight(norm_bias_) : Tensor(),
                                .mean = s.mean.Rows(0, N),
                                .rstd = s.rstd.Rows(0, N),
                                .NH = NH});

  // h = mLSTM(q, k, v, i_pre, f_pre)
  const Tensor dgates = memory.scratch.dgates.Rows(0, N);
  ctx.ops.MlstmBackward({.dq = dx.q,
                         .dk = dx.k,
                         .dv = dx.v,
                         .di_pre = dgates.Columns(0, NH),
                         .df_pre = dgates.Columns(NH, NH),
                         .dh = dh,
                         .q = x.q,
                         .k = x.k,
                         .v = x.v,
                         .i_pre = gates.Columns(0, NH),
                         .f_pre = gates.Columns(NH, NH),
                         .reset = ctx.resets,
                         .h = h,
                         .denominator = s.denominator.Rows(0, N),
                         .m = s.m.Rows(0, N),
                         .workspace = memory.scratch.workspace,
                         .shape = Shape(ctx.B, ctx.T),
                         .normalizer_gradient = spec_.normalizer_gradient});

  // Gates: cap, then bias; the matmul operands are rounded to compute beside the other projections.
  if (spec_.gate_soft_cap > 0) {
    ctx.ops.SoftCapBackward({.dx = dgates, .dy = dgates, .y = gates, .cap = spec_.gate_soft_cap});
  }
  ctx.ops.ColumnSum({.y = params.FusedGrad(gate_bias_, 2), .x = dgates});
  ctx.ops.Cast({.y = dproj.Columns(qkvo_width_, 2 * NH), .x = dgates});
  if (qkvo_bias_ >= 0) {
    ctx.ops.ColumnSum({.y = params.FusedGrad(qkvo_bias_, 4), .x = dproj.Columns(0, qkvo_width_)});
  }

  // [q|k|v|o_pre|i|f] = x W^T: all six weights at once.
  ctx.ops.Matmul({.c = a.dx, .a = dproj, .b = params.FusedWeight(qkvo_, 6)});
  ctx.ops.Matmul(
      {.c = params.FusedGrad(qkvo_, 6), .a = dproj, .b = a.x, .transpose_a = true, .accumulate = true});
}
}  // namespace carousel
