#include "core/model/mlstm_paper_layer.h"

#include <cmath>

#include "core/model/layer_init.h"

namespace carousel {

MlstmPaperLayer::MlstmPaperLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix,
                                 int group, int64_t block)
    : spec_(spec), block_(block) {
  CAROUSEL_CHECK_EQ(spec.qk_dim, spec.v_dim);
  CAROUSEL_CHECK(spec.conv_kernel >= 1 && spec.qk_dim % spec.qkv_block_size == 0);
  const int64_t D = spec.embedding_dim, W = spec.v_dim, NH = spec.num_heads, K = spec.conv_kernel;
  const ParamInit zero = {}, one = {.rule = InitRule::kOne}, small = SmallInit(D);
  const ParamInit uniform = {.rule = InitRule::kUniform, .a = 1 / std::sqrt(static_cast<double>(K))};
  const auto matrix = [&](const char* name, int64_t out, int64_t in, const ParamInit& init) {
    return params.Register(
        {.name = prefix + name + ".weight", .shape = {out, in}, .decay = true, .init = init, .group = group});
  };
  const auto vector = [&](const char* name, int64_t size, const ParamInit& init) {
    return params.Register({.name = prefix + name, .shape = {size}, .init = init, .group = group});
  };
  up_ = matrix("proj_up", 2 * W, D, small);
  if (spec.use_bias) up_bias_ = vector("proj_up.bias", 2 * W, zero);
  conv_weight_ = matrix("conv", W, K, uniform);
  conv_bias_ = vector("conv.bias", W, uniform);
  q_ = matrix("q", W, spec.qkv_block_size, small);
  matrix("k", W, spec.qkv_block_size, small);
  matrix("v", W, spec.qkv_block_size, small);
  if (spec.use_bias) {
    q_bias_ = vector("q.bias", W, zero);
    vector("k.bias", W, zero);
    vector("v.bias", W, zero);
  }
  gate_ = matrix("igate_preact", NH, 3 * W, zero);
  matrix("fgate_preact", NH, 3 * W, zero);
  gate_bias_ = vector("igate_preact.bias", NH, IgateBiasInit(spec));
  vector("fgate_preact.bias", NH, {.rule = InitRule::kLinspace, .a = 3, .b = 6});
  norm_weight_ = vector("multihead_norm.weight", W, spec.residual_norm_weights() ? zero : one);
  skip_ = vector("skip", W, one);
  down_ = matrix("proj_down", D, W, WangInit(D, spec.num_blocks));
  if (spec.use_bias) down_bias_ = vector("proj_down.bias", D, zero);
}

MlstmShape MlstmPaperLayer::Shape(int64_t B, int64_t T) const { return MlstmShapeOf(spec_, B, T); }

CausalConvShape MlstmPaperLayer::ConvShape(int64_t B, int64_t T) const {
  return {.B = B, .T = T, .C = spec_.v_dim, .K = spec_.conv_kernel};
}

MlstmPaperLayer::Memory MlstmPaperLayer::Bind(Arena& arena, const Ops& ops, DType compute,
                                              const PassShape& shape, bool train) const {
  const DType wide = WideOf(compute);
  const int64_t N = shape.N(), NH = spec_.num_heads, W = spec_.v_dim;
  Memory memory;
  memory.saved = {.xz = arena.Saved(compute, {N, 2 * W}),
                  .conv = arena.Saved(compute, {N, W}),
                  .qkv = arena.Saved(compute, {N, 3 * W}),
                  .gates = arena.Saved(wide, {N, 2 * NH}),
                  .h = arena.Saved(compute, {N, W}),
                  .denominator = arena.Saved(wide, {N, NH}),
                  .m = arena.Saved(wide, {N, NH}),
                  .mean = arena.Saved(wide, {N, NH}),
                  .rstd = arena.Saved(wide, {N, NH}),
                  .gated = arena.Saved(compute, {N, W})};
  const ScratchScope scope(arena);
  Scratch& scratch = memory.scratch;
  scratch.workspace = arena.Scratch(DType::kU8, {shape.LargestWorkspace([&](int64_t B, int64_t T) {
                                      return ops.MlstmWorkspaceBytes(Shape(B, T), compute);
                                    })});
  if (train) {
    if (spec_.dropout > 0) scratch.dropped = arena.Scratch(compute, {N, spec_.embedding_dim});
    scratch.dgated = arena.Scratch(compute, {N, W});
    scratch.dh = arena.Scratch(compute, {N, W});
    scratch.dqkv = arena.Scratch(compute, {N, 3 * W});
    scratch.dgates = arena.Scratch(wide, {N, 2 * NH});
    if (compute != wide) scratch.dgates_rounded = arena.Scratch(compute, {N, 2 * NH});
    scratch.dconv = arena.Scratch(compute, {N, W});
    scratch.dxz = arena.Scratch(compute, {N, 2 * W});
  }
  return memory;
}

LayerState MlstmPaperLayer::BindState(Arena& arena, DType wide, int64_t B) const {
  LayerState state;
  state.mlstm = BindMlstmState(arena, wide, Shape(B, 1));
  state.conv = BindConvState(arena, wide, ConvShape(B, 1));
  return state;
}

void MlstmPaperLayer::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const int64_t N = ctx.N(), NH = spec_.num_heads, W = spec_.v_dim;
  const int64_t num_blocks = W / spec_.qkv_block_size;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Tensor xz = s.xz.Rows(0, N), conv = s.conv.Rows(0, N), qkv = s.qkv.Rows(0, N);
  const Tensor gates = s.gates.Rows(0, N), h = s.h.Rows(0, N);
  const MlstmShape shape = Shape(ctx.B, ctx.T);
  CAROUSEL_CHECK_MSG(ctx.ops.MlstmWorkspaceBytes(shape, xz.dtype) <= memory.scratch.workspace.num_bytes(),
                     "more sequences than were bound");

  // Column-split: [xm | z]
  ctx.ops.Matmul({.c = xz,
                  .a = a.x,
                  .b = params.Weight(up_),
                  .bias = up_bias_ >= 0 ? params.Weight(up_bias_) : Tensor(),
                  .transpose_b = true});
  const Tensor xm = xz.Columns(0, W), z = xz.Columns(W, W);
  ctx.ops.CausalConvForward({.y = conv,
                             .last = a.last.conv,
                             .x = xm,
                             .weight = params.Weight(conv_weight_),
                             .bias = params.Weight(conv_bias_),
                             .reset = ctx.resets,
                             .initial = a.initial.conv,
                             .shape = ConvShape(ctx.B, ctx.T)});

  // q and k read the convolution's result, v does not.
  for (int p = 0; p < 3; ++p) {
    ctx.ops.BlockLinearForward({.y = qkv.Columns(p * W, W),
                                .x = p < 2 ? conv : xm,
                                .weight = params.Weight(q_ + p),
                                .bias = q_bias_ >= 0 ? params.Weight(q_bias_ + p) : Tensor(),
                                .num_blocks = num_blocks});
  }
  // Every head's gates read all heads' q, k and v: with a tensor axis the ranks' results would be summed.
  ctx.ops.Matmul({.c = gates,
                  .a = qkv,
                  .b = params.FusedWeight(gate_, 2),
                  .bias = params.FusedWeight(gate_bias_, 2),
                  .transpose_b = true});

  ctx.ops.MlstmForward({.h = h,
                        .denominator = s.denominator.Rows(0, N),
                        .m = s.m.Rows(0, N),
                        .last = a.last.mlstm,
                        .q = qkv.Columns(0, W),
                        .k = qkv.Columns(W, W),
                        .v = qkv.Columns(2 * W, W),
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
                               .o_pre = z,
                               .weight = params.Weight(norm_weight_),
                               .skip = conv,
                               .skip_weight = params.Weight(skip_),
                               .NH = NH,
                               .eps = spec_.norm_eps,
                               .gate = OutputGate::kSilu,
                               .residual_weight = spec_.residual_norm_weights()});

  // Row-split.
  ctx.ops.Matmul({.c = a.y,
                  .a = gated,
                  .b = params.Weight(down_),
                  .bias = down_bias_ >= 0 ? params.Weight(down_bias_) : Tensor(),
                  .transpose_b = true});
  if (spec_.dropout > 0 && ctx.dropout_key.has_value()) {
    ctx.ops.Dropout({.y = a.y, .x = a.y, .rate = spec_.dropout, .key = ctx.DropoutKey(1 + 2 * block_)});
  }
}

void MlstmPaperLayer::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const int64_t N = ctx.N(), NH = spec_.num_heads, W = spec_.v_dim;
  const int64_t num_blocks = W / spec_.qkv_block_size;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Scratch& scratch = memory.scratch;
  const Tensor xz = s.xz.Rows(0, N), conv = s.conv.Rows(0, N), qkv = s.qkv.Rows(0, N);
  const Tensor gates = s.gates.Rows(0, N), h = s.h.Rows(0, N), gated = s.gated.Rows(0, N);
  const Tensor xm = xz.Columns(0, W), z = xz.Columns(W, W);
  const Tensor dxz = scratch.dxz.Rows(0, N), dxm = dxz.Columns(0, W), dz = dxz.Columns(W, W);

  // y = dropout(gated W_down^T + b)
  Tensor dy = a.dy;
  if (spec_.dropout > 0 && ctx.dropout_key.has_value()) {
    dy = scratch.dropped.Rows(0, N);
    ctx.ops.Dropout({.y = dy, .x = a.dy, .rate = spec_.dropout, .key = ctx.DropoutKey(1 + 2 * block_)});
  }
  const Tensor dgated = scratch.dgated.Rows(0, N);
  ctx.ops.Matmul({.c = dgated, .a = dy, .b = params.Weight(down_)});
  ctx.ops.Matmul({.c = params.Grad(down_), .a = dy, .b = gated, .transpose_a = true, .accumulate = true});
  if (down_bias_ >= 0) ctx.ops.ColumnSum({.y = params.Grad(down_bias_), .x = dy});

  // gated = (headnorm(h) + skip * conv) * silu(z)
  const Tensor dh = scratch.dh.Rows(0, N), dconv = scratch.dconv.Rows(0, N);
  ctx.ops.HeadNormGateBackward({.dh = dh,
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
                                .NH = NH,
                                .gate = OutputGate::kSilu,
                                .residual_weight = spec_.residual_norm_weights()});

  // h = mLSTM(q, k, v, i_pre, f_pre)
  const Tensor dqkv = scratch.dqkv.Rows(0, N), dgates = scratch.dgates.Rows(0, N);
  ctx.ops.MlstmBackward({.dq = dqkv.Columns(0, W),
                         .dk = dqkv.Columns(W, W),
                         .dv = dqkv.Columns(2 * W, W),
                         .di_pre = dgates.Columns(0, NH),
                         .df_pre = dgates.Columns(NH, NH),
                         .dh = dh,
                         .q = qkv.Columns(0, W),
                         .k = qkv.Columns(W, W),
                         .v = qkv.Columns(2 * W, W),
                         .i_pre = gates.Columns(0, NH),
                         .f_pre = gates.Columns(NH, NH),
                         .reset = ctx.resets,
                         .h = h,
                         .denominator = s.denominator.Rows(0, N),
                         .m = s.m.Rows(0, N),
                         .workspace = scratch.workspace,
                         .shape = Shape(ctx.B, ctx.T),
                         .normalizer_gradient = spec_.normalizer_gradient});

  // [i_pre | f_pre] = [q|k|v] W^T + b
  ctx.ops.ColumnSum({.y = params.FusedGrad(gate_bias_, 2), .x = dgates});
  Tensor dgates_operand = dgates;
  if (scratch.dgates_rounded.defined()) {
    dgates_operand = scratch.dgates_rounded.Rows(0, N);
    ctx.ops.Cast({.y = dgates_operand, .x = dgates});
  }
  ctx.ops.Matmul({.c = params.FusedGrad(gate_, 2),
                  .a = dgates_operand,
                  .b = qkv,
                  .transpose_a = true,
                  .accumulate = true});
  ctx.ops.Matmul({.c = dqkv, .a = dgates_operand, .b = params.FusedWeight(gate_, 2), .accumulate = true});

  // q, k = maps of conv; v = a map of xm
  for (int p = 0; p < 3; ++p) {
    ctx.ops.BlockLinearBackward({.dx = p < 2 ? dconv : dxm,
                                 .dweight = params.Grad(q_ + p),
                                 .dbias = q_bias_ >= 0 ? params.Grad(q_bias_ + p) : Tensor(),
                                 .dy = dqkv.Columns(p * W, W),
                                 .x = p < 2 ? conv : xm,
                                 .weight = params.Weight(q_ + p),
                                 .num_blocks = num_blocks,
                                 .accumulate_dx = p < 2});
  }
  ctx.ops.CausalConvBackward({.dx = dxm,
                              .dweight = params.Grad(conv_weight_),
                              .dbias = params.Grad(conv_bias_),
                              .dy = dconv,
                              .x = xm,
                              .weight = params.Weight(conv_weight_),
                              .bias = params.Weight(conv_bias_),
                              .reset = ctx.resets,
                              .shape = ConvShape(ctx.B, ctx.T),
                              .accumulate_dx = true});

  // [xm | z] = x W_up^T + b
  ctx.ops.Matmul({.c = a.dx, .a = dxz, .b = params.Weight(up_)});
  ctx.ops.Matmul({.c = params.Grad(up_), .a = dxz, .b = a.x, .transpose_a = true, .accumulate = true});
  if (up_bias_ >= 0) ctx.ops.ColumnSum({.y = params.Grad(up_bias_), .x = dxz});
}
}  // namespace carousel
