#include "core/model/slstm_layer.h"

#include <cmath>

#include "core/model/layer_init.h"

namespace carousel {
namespace {

constexpr const char* kGateNames[] = {"igate", "fgate", "zgate", "ogate"};
constexpr int kNumGates = 4, kForget = 1;

// Initial bias of a gate (ModelSpec::slstm_bias_init). `block` counts from 0.
ParamInit BiasInit(const ModelSpec& spec, int gate, int64_t block) {
  if (spec.slstm_bias_init == SlstmBiasInit::kStandard) {
    return {.rule = InitRule::kUniform, .a = 1 / std::sqrt(static_cast<double>(spec.embedding_dim))};
  }
  if (gate != kForget) return {};
  const int64_t period = spec.slstm_head_dim();
  if (spec.slstm_bias_init == SlstmBiasInit::kSmall) {
    return {.rule = InitRule::kLinspace, .a = 3, .b = 6, .period = period};
  }
  if (spec.slstm_bias_init == SlstmBiasInit::kPowerLaw) {
    const double depth =
        spec.num_blocks > 1 ? static_cast<double>(block) / static_cast<double>(spec.num_blocks - 1) : 0.0;
    return {.rule = InitRule::kForgetPowerLaw, .a = 0.3 + 1.3 * depth, .period = period};
  }
  return {};
}
}  // namespace

SlstmLayer::SlstmLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group,
                       int64_t block)
    : spec_(spec), block_(block) {
  const int64_t D = spec.embedding_dim, head = spec.slstm_head_dim();
  if (spec.slstm_conv_kernel > 0) {
    const ParamInit uniform = {.rule = InitRule::kUniform,
                               .a = 1 / std::sqrt(static_cast<double>(spec.slstm_conv_kernel))};
    conv_weight_ = params.Register({.name = prefix + "conv.weight",
                                    .shape = {D, spec.slstm_conv_kernel},
                                    .decay = true,
                                    .init = uniform,
                                    .group = group});
    conv_bias_ =
        params.Register({.name = prefix + "conv.bias", .shape = {D}, .init = uniform, .group = group});
  }
  const ParamInit recurrent =
      spec.slstm_recurrent_init == RecurrentInit::kStandard
          ? ParamInit{.rule = InitRule::kUniform, .a = 1 / std::sqrt(static_cast<double>(D))}
          : ParamInit{};
  // Each kind lies side by side, so that the four gates are one tensor.
  for (int g = 0; g < kNumGates; ++g) {
    const int index = params.Register({.name = prefix + kGateNames[g] + ".weight",
                                       .shape = {D, head},
                                       .decay = true,
                                       .init = SmallInit(D),
                                       .group = group});
    if (g == 0) gate_weight_ = index;
  }
  for (int g = 0; g < kNumGates; ++g) {
    const int index = params.Register({.name = prefix + kGateNames[g] + ".recurrent_weight",
                                       .shape = {D, head},
                                       .init = recurrent,
                                       .group = group});
    if (g == 0) recurrent_ = index;
  }
  for (int g = 0; g < kNumGates; ++g) {
    const int index = params.Register({.name = prefix + kGateNames[g] + ".bias",
                                       .shape = {D},
                                       .init = BiasInit(spec, g, block),
                                       .group = group});
    if (g == 0) bias_ = index;
  }
  if (spec.slstm_norm_weight) {
    const InitRule identity = spec.residual_norm_weights() ? InitRule::kZero : InitRule::kOne;
    norm_weight_ = params.Register(
        {.name = prefix + "multihead_norm.weight", .shape = {D}, .init = {.rule = identity}, .group = group});
  }
}

SlstmShape SlstmLayer::Shape(int64_t B, int64_t T) const {
  return {.B = B, .T = T, .NH = spec_.slstm_num_heads, .D = spec_.slstm_head_dim()};
}

CausalConvShape SlstmLayer::ConvShape(int64_t B, int64_t T) const {
  return {.B = B, .T = T, .C = spec_.embedding_dim, .K = spec_.slstm_conv_kernel};
}

SlstmLayer::Memory SlstmLayer::Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape,
                                    bool train) const {
  const DType wide = WideOf(compute);
  const int64_t N = shape.N(), D = spec_.embedding_dim, NH = spec_.slstm_num_heads;
  const bool conv = spec_.slstm_conv_kernel > 0;
  Memory memory;
  memory.saved = {.conv = conv ? arena.Saved(compute, {N, D}) : Tensor(),
                  .gates = arena.Saved(wide, {N, kNumGates * D}),
                  .c = arena.Saved(wide, {N, D}),
                  .n = arena.Saved(wide, {N, D}),
                  .m = arena.Saved(wide, {N, D}),
                  .y = arena.Saved(compute, {N, D}),
                  .dropped = spec_.dropout > 0 && train ? arena.Saved(compute, {N, D}) : Tensor(),
                  .mean = arena.Saved(wide, {N, NH}),
                  .rstd = arena.Saved(wide, {N, NH})};
  const ScratchScope scope(arena);
  Scratch& scratch = memory.scratch;
  scratch.workspace = arena.Scratch(DType::kU8, {shape.LargestWorkspace([&](int64_t B, int64_t T) {
                                      return ops.SlstmWorkspaceBytes(Shape(B, T), compute);
                                    })});
  if (train) {
    scratch.dy = arena.Scratch(compute, {N, D});
    scratch.dwx = arena.Scratch(compute, {N, kNumGates * D});
    if (conv) scratch.dconv = arena.Scratch(compute, {N, D});
  }
  return memory;
}

LayerState SlstmLayer::BindState(Arena& arena, DType wide, int64_t B) const {
  LayerState state;
  state.slstm = BindSlstmState(arena, wide, Shape(B, 1));
  if (spec_.slstm_conv_kernel > 0) state.conv = BindConvState(arena, wide, ConvShape(B, 1));
  return state;
}

void SlstmLayer::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const int64_t N = ctx.N(), D = spec_.embedding_dim, NH = spec_.slstm_num_heads;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const SlstmShape shape = Shape(ctx.B, ctx.T);
  CAROUSEL_CHECK_MSG(ctx.ops.SlstmWorkspaceBytes(shape, a.x.dtype) <= memory.scratch.workspace.num_bytes(),
                     "more sequences than were bound");

  // The input and forget gates see the convolution's result, the other two the input.
  Tensor conv = a.x;
  if (conv_weight_ >= 0) {
    conv = s.conv.Rows(0, N);
    ctx.ops.CausalConvForward({.y = conv,
                               .last = a.last.conv,
                               .x = a.x,
                               .weight = params.Weight(conv_weight_),
                               .bias = params.Weight(conv_bias_),
                               .reset = ctx.resets,
                               .initial = a.initial.conv,
                               .shape = ConvShape(ctx.B, ctx.T)});
  }
  const Tensor wx = s.gates.Rows(0, N);
  for (int g = 0; g < kNumGates; ++g) {
    ctx.ops.BlockLinearForward({.y = wx.Columns(g * D, D),
                                .x = g <= kForget ? conv : a.x,
                                .weight = params.Weight(gate_weight_ + g),
                                .num_blocks = NH});
  }

  // The recurrence over tokens; the gates take the place of wx.
  Tensor y = s.y.Rows(0, N);
  ctx.ops.SlstmForward({.y = y,
                        .gates = wx,
                        .c = s.c.Rows(0, N),
                        .n = s.n.Rows(0, N),
                        .m = s.m.Rows(0, N),
                        .last = a.last.slstm,
                        .wx = wx,
                        .recurrent = params.FusedWeight(recurrent_, kNumGates),
                        .bias = params.FusedWeight(bias_, kNumGates),
                        .reset = ctx.resets,
                        .initial = a.initial.slstm,
                        .workspace = memory.scratch.workspace,
                        .shape = shape});
  if (spec_.dropout > 0 && ctx.dropout_key.has_value()) {
    const Tensor dropped = s.dropped.Rows(0, N);
    ctx.ops.Dropout({.y = dropped, .x = y, .rate = spec_.dropout, .key = ctx.DropoutKey(1 + 2 * block_)});
    y = dropped;
  }
  ctx.ops.HeadNormGateForward({.y = a.y,
                               .mean = s.mean.Rows(0, N),
                               .rstd = s.rstd.Rows(0, N),
                               .h = y,
                               .weight = norm_weight_ >= 0 ? params.Weight(norm_weight_) : Tensor(),
                               .NH = NH,
                               .eps = spec_.norm_eps,
                               .residual_weight = norm_weight_ >= 0 && spec_.residual_norm_weights()});
}

void SlstmLayer::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const int64_t N = ctx.N(), D = spec_.embedding_dim, NH = spec_.slstm_num_heads;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const bool dropout = spec_.dropout > 0 && ctx.dropout_key.has_value();
  const Tensor y = s.y.Rows(0, N), dy = memory.scratch.dy.Rows(0, N);

  // out = headnorm(dropout(y))
  ctx.ops.HeadNormGateBackward({.dh = dy,
                                .dweight = norm_weight_ >= 0 ? params.Grad(norm_weight_) : Tensor(),
                                .dy = a.dy,
                                .h = dropout ? s.dropped.Rows(0, N) : y,
                                .weight = norm_weight_ >= 0 ? params.Weight(norm_weight_) : Tensor(),
                                .mean = s.mean.Rows(0, N),
                                .rstd = s.rstd.Rows(0, N),
                                .NH = NH,
                                .residual_weight = norm_weight_ >= 0 && spec_.residual_norm_weights()});
  if (dropout) {
    ctx.ops.Dropout({.y = dy, .x = dy, .rate = spec_.dropout, .key = ctx.DropoutKey(1 + 2 * block_)});
  }

  // y = sLSTM(wx, R, b)
  const Tensor dwx = memory.scratch.dwx.Rows(0, N);
  ctx.ops.SlstmBackward({.dwx = dwx,
                         .drecurrent = params.FusedGrad(recurrent_, kNumGates),
                         .dbias = params.FusedGrad(bias_, kNumGates),
                         .dy = dy,
                         .y = y,
                         .gates = s.gates.Rows(0, N),
                         .c = s.c.Rows(0, N),
                         .n = s.n.Rows(0, N),
                         .m = s.m.Rows(0, N),
                         .recurrent = params.FusedWeight(recurrent_, kNumGates),
                         .reset = ctx.resets,
                         .workspace = memory.scratch.workspace,
                         .shape = Shape(ctx.B, ctx.T),
                         .gradient_clip = spec_.slstm_gradient_clip,
                         .gradient_cut = spec_.slstm_gradient_cut});

  // wx = [cc W_i | cc W_f | x W_z | x W_o]; without a convolution cc is x.
  const bool has_conv = conv_weight_ >= 0;
  const Tensor conv = has_conv ? s.conv.Rows(0, N) : a.x;
  const Tensor dconv = has_conv ? memory.scratch.dconv.Rows(0, N) : a.dx;
  for (int g = 0; g < kNumGates; ++g) {
    const bool from_conv = g <= kForget;
    ctx.ops.BlockLinearBackward({.dx = from_conv ? dconv : a.dx,
                                 .dweight = params.Grad(gate_weight_ + g),
                                 .dy = dwx.Columns(g * D, D),
                                 .x = from_conv ? conv : a.x,
                                 .weight = params.Weight(gate_weight_ + g),
                                 .num_blocks = NH,
                                 // The first map that writes to a gradient overwrites it.
                                 .accumulate_dx = g == 1 || g == 3 || (g == 2 && !has_conv)});
  }
  if (!has_conv) return;
  ctx.ops.CausalConvBackward({.dx = a.dx,
                              .dweight = params.Grad(conv_weight_),
                              .dbias = params.Grad(conv_bias_),
                              .dy = dconv,
                              .x = a.x,
                              .weight = params.Weight(conv_weight_),
                              .bias = params.Weight(conv_bias_),
                              .reset = ctx.resets,
                              .shape = ConvShape(ctx.B, ctx.T),
                              .accumulate_dx = true});
}
}  // namespace carousel
