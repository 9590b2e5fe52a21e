#include "core/model/slstm_layer.h"

#include <algorithm>
#include <cmath>

#include "core/base/int_math.h"
#include "core/model/gate_measure.h"
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

// Of all tokens of the B sequences.
Tensor Resets(const LayerContext& ctx) { return ctx.axes.sequence.size == 1 ? ctx.resets : ctx.all_resets; }
}  // namespace

SlstmLayer::SlstmLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group,
                       int64_t block)
    : spec_(spec), block_(block), tensor_size_(params.tensor_size()) {
  const int64_t D = spec.embedding_dim, head = spec.slstm_head_dim();
  CAROUSEL_CHECK_EQ(spec.slstm_num_heads % tensor_size_, int64_t{0});
  // Rows are columns of the activations, which ranks have by heads.
  const auto matrix = [&](const std::string& name, int64_t in, bool decay, const ParamInit& init) {
    return params.Register({.name = prefix + name,
                            .shape = {D, in},
                            .decay = decay,
                            .init = init,
                            .group = group,
                            .tensor = Sharded(0),
                            .tensor_activation = kByFeatures});
  };
  const auto vector = [&](const std::string& name, const ParamInit& init) {
    return params.Register({.name = prefix + name,
                            .shape = {D},
                            .init = init,
                            .group = group,
                            .tensor = Sharded(0),
                            .tensor_activation = kByFeatures});
  };
  if (spec.slstm_conv_kernel > 0) {
    const ParamInit uniform = {.rule = InitRule::kUniform,
                               .a = 1 / std::sqrt(static_cast<double>(spec.slstm_conv_kernel))};
    conv_weight_ = matrix("conv.weight", spec.slstm_conv_kernel, true, uniform);
    conv_bias_ = vector("conv.bias", uniform);
  }
  const ParamInit recurrent =
      spec.slstm_recurrent_init == RecurrentInit::kStandard
          ? ParamInit{.rule = InitRule::kUniform, .a = 1 / std::sqrt(static_cast<double>(D))}
          : ParamInit{};
  // Each kind lies side by side, so that the four gates are one tensor.
  for (int g = 0; g < kNumGates; ++g) {
    const int index = matrix(std::string(kGateNames[g]) + ".weight", head, true, SmallInit(D));
    if (g == 0) gate_weight_ = index;
  }
  for (int g = 0; g < kNumGates; ++g) {
    const int index = matrix(std::string(kGateNames[g]) + ".recurrent_weight", head, false, recurrent);
    if (g == 0) recurrent_ = index;
  }
  for (int g = 0; g < kNumGates; ++g) {
    const int index = vector(std::string(kGateNames[g]) + ".bias", BiasInit(spec, g, block));
    if (g == 0) bias_ = index;
  }
  if (spec.slstm_norm_weight) {
    const InitRule identity = spec.residual_norm_weights() ? InitRule::kZero : InitRule::kOne;
    norm_weight_ = vector("multihead_norm.weight", {.rule = identity});
  }
}

SlstmLayer::Part SlstmLayer::PartOf(const ModelAxes& axes) const {
  CAROUSEL_CHECK_EQ(axes.tensor.size, tensor_size_);
  const int64_t ranks = axes.tensor.size * axes.sequence.size;
  const int64_t num_heads = DivExact(spec_.slstm_num_heads, ranks);
  const int64_t width = num_heads * spec_.slstm_head_dim();
  return {.num_heads = num_heads,
          .width = width,
          .first_column = axes.sequence.index * width,
          .head_dim = spec_.slstm_head_dim(),
          .conv_kernel = spec_.slstm_conv_kernel,
          .is_whole = ranks == 1,
          .shares_parameters = axes.sequence.size > 1};
}

ElementPlaces SlstmLayer::Places(const LayerContext& ctx, const Part& part) const {
  const int64_t tensor_columns = part.width * ctx.axes.sequence.size;
  return {.first_column = ctx.axes.tensor.index * tensor_columns + part.first_column,
          .num_columns = spec_.embedding_dim};
}

SlstmLayer::Memory SlstmLayer::Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape,
                                    bool train) const {
  const DType wide = WideOf(compute);
  const Part part = PartOf(shape.axes);
  const int64_t S = shape.axes.sequence.size, M = shape.N() * S, W = part.width, NH = part.num_heads;
  const bool conv = spec_.slstm_conv_kernel > 0;
  Memory memory;
  memory.saved = {.x = part.is_whole ? Tensor() : arena.Saved(compute, {M, W}),
                  .conv = conv ? arena.Saved(compute, {M, W}) : Tensor(),
                  .gates = arena.Saved(wide, {M, kNumGates * W}),
                  .c = arena.Saved(wide, {M, W}),
                  .n = arena.Saved(wide, {M, W}),
                  .m = arena.Saved(wide, {M, W}),
                  .y = arena.Saved(compute, {M, W}),
                  .dropped = spec_.dropout > 0 && train ? arena.Saved(compute, {M, W}) : Tensor(),
                  .mean = arena.Saved(wide, {M, NH}),
                  .rstd = arena.Saved(wide, {M, NH})};
  const ScratchScope scope(arena);
  Scratch& scratch = memory.scratch;
  scratch.workspace = arena.Scratch(DType::kU8, {shape.LargestWorkspace([&](int64_t B, int64_t T) {
                                      return ops.SlstmWorkspaceBytes(part.Shape(B, T * S), compute);
                                    })});
  if (train) {
    scratch.dy = arena.Scratch(compute, {M, W});
    scratch.dwx = arena.Scratch(compute, {M, kNumGates * W});
    if (conv) scratch.dconv = arena.Scratch(compute, {M, W});
  }
  if (!part.is_whole) {
    const HeadExchange tensor(shape.axes.tensor), sequence(shape.axes.sequence);
    const int64_t columns = W * S;
    scratch.exchange.outside = arena.Scratch(compute, {M, W});
    if (tensor.size() > 1 && sequence.size() > 1) {
      scratch.exchange.between = arena.Scratch(compute, {shape.N(), columns});
    }
    const int64_t exchange_bytes =
        std::max(tensor.BufferBytes(shape.stream_rows(), {{.dtype = compute, .width = spec_.embedding_dim}}),
                 sequence.BufferBytes(shape.N(), {{.dtype = compute, .width = columns}}));
    scratch.exchange.workspace = {.sent = arena.Scratch(DType::kU8, {exchange_bytes}),
                                  .received = arena.Scratch(DType::kU8, {exchange_bytes})};
  }
  if (train && shape.gate_stats) {
    scratch.measured = {.recurrent = arena.Scratch(wide, {M, W}),
                        .taps = arena.Scratch(compute, {W, 2}),
                        .ones = arena.Scratch(compute, {W, 1})};
  }
  if (part.shares_parameters) {
    scratch.packed.recurrent = arena.Scratch(compute, {kNumGates * W, part.head_dim});
    scratch.packed.bias = arena.Scratch(wide, {kNumGates * W});
    if (train) {
      scratch.packed.drecurrent = arena.Scratch(wide, {kNumGates * W, part.head_dim});
      scratch.packed.dbias = arena.Scratch(wide, {kNumGates * W});
    }
  }
  return memory;
}

LayerState SlstmLayer::BindState(Arena& arena, DType wide, int64_t B) const {
  const Part whole = PartOf(ModelAxes{});
  LayerState state;
  state.slstm = BindSlstmState(arena, wide, whole.Shape(B, 1));
  if (spec_.slstm_conv_kernel > 0) state.conv = BindConvState(arena, wide, whole.ConvShape(B, 1));
  return state;
}

void SlstmLayer::ToCell(const LayerContext& ctx, const Memory& memory, Tensor cell, Tensor stream) const {
  const HeadExchange tensor(ctx.axes.tensor), sequence(ctx.axes.sequence);
  const auto& exchange = memory.scratch.exchange;
  // Consecutive rows of the stream are those of one sequence of all N() tokens.
  const Tensor between = sequence.size() == 1 ? cell
                         : tensor.size() == 1 ? stream
                                              : exchange.between.Rows(0, ctx.N());
  tensor.ToHeads(ctx.ops, between, stream, /*B=*/1, exchange.workspace);
  sequence.ToHeads(ctx.ops, cell, between, ctx.B, exchange.workspace);
}

void SlstmLayer::ToStream(const LayerContext& ctx, const Memory& memory, Tensor stream, Tensor cell) const {
  const HeadExchange tensor(ctx.axes.tensor), sequence(ctx.axes.sequence);
  const auto& exchange = memory.scratch.exchange;
  const Tensor between = sequence.size() == 1 ? cell
                         : tensor.size() == 1 ? stream
                                              : exchange.between.Rows(0, ctx.N());
  sequence.ToTokens(ctx.ops, between, cell, ctx.B, exchange.workspace);
  tensor.ToTokens(ctx.ops, stream, between, /*B=*/1, exchange.workspace);
}

SlstmLayer::Recurrence SlstmLayer::Weights(const LayerContext& ctx, const Memory& memory,
                                           const Part& part) const {
  const ParamStore& params = ctx.params;
  if (!part.shares_parameters) {
    return {.weight = params.FusedWeight(recurrent_, kNumGates),
            .bias = params.FusedWeight(bias_, kNumGates)};
  }
  const Recurrence packed = {.weight = memory.scratch.packed.recurrent, .bias = memory.scratch.packed.bias};
  for (int g = 0; g < kNumGates; ++g) {
    const int64_t begin = g * part.width;
    ctx.ops.Cast({.y = packed.weight.Rows(begin, part.width), .x = part.Of(params.Weight(recurrent_ + g))});
    ctx.ops.Cast({.y = packed.bias.Rows(begin, part.width), .x = part.Of(params.Weight(bias_ + g))});
  }
  return packed;
}

SlstmLayer::Recurrence SlstmLayer::Gradients(const LayerContext& ctx, const Memory& memory,
                                             const Part& part) const {
  if (!part.shares_parameters) {
    return {.weight = ctx.params.FusedGrad(recurrent_, kNumGates),
            .bias = ctx.params.FusedGrad(bias_, kNumGates)};
  }
  const Recurrence packed = {.weight = memory.scratch.packed.drecurrent, .bias = memory.scratch.packed.dbias};
  ctx.ops.Fill({.y = packed.weight, .value = 0});
  ctx.ops.Fill({.y = packed.bias, .value = 0});
  return packed;
}

void SlstmLayer::AddGradients(const LayerContext& ctx, const Part& part, const Recurrence& packed) const {
  if (!part.shares_parameters) return;
  const auto add = [&](int param, Tensor rows) {
    const Tensor grad = part.Of(ctx.params.Grad(param));
    ctx.ops.Add({.y = grad, .a = grad, .b = rows});
  };
  for (int g = 0; g < kNumGates; ++g) {
    add(recurrent_ + g, packed.weight.Rows(g * part.width, part.width));
    add(bias_ + g, packed.bias.Rows(g * part.width, part.width));
  }
}

// What Backward uses is free in Forward: the place of the gates' gradients holds wx of two gates, which has
// half as many columns of at most twice the size; that of dy holds y_{t-1}.
void SlstmLayer::BeginMeasure(const LayerContext& ctx, const Memory& memory, Tensor wx) const {
  if (!ctx.gate_stats.defined()) return;
  CAROUSEL_CHECK_MSG(memory.scratch.measured.recurrent.defined(), "bound without gate_stats");
  const int64_t width = wx.dim[1] / kNumGates;
  const Tensor kept(memory.scratch.dwx.data, wx.dtype, {wx.dim[0], 2 * width});
  CAROUSEL_CHECK_LE(kept.num_bytes(), memory.scratch.dwx.num_bytes());
  ctx.ops.Cast({.y = kept, .x = wx.Columns(0, 2 * width)});
}

void SlstmLayer::EndMeasure(const LayerContext& ctx, const Memory& memory, const Part& part,
                            Tensor resets) const {
  if (!ctx.gate_stats.defined()) return;
  const int64_t S = ctx.axes.sequence.size, M = ctx.N() * S, W = part.width;
  const auto& measured = memory.scratch.measured;
  const Tensor recurrent = measured.recurrent.Rows(0, M), before = memory.scratch.dy.Rows(0, M);
  const Tensor wx(memory.scratch.dwx.data, recurrent.dtype, {M, 2 * W});
  // y_{t-1}, and zero where a sequence or a document starts: a convolution whose first of two taps is 1.
  ctx.ops.Fill({.y = measured.taps, .value = 0});
  ctx.ops.Fill({.y = measured.ones, .value = 1});
  ctx.ops.Cast({.y = measured.taps.Columns(0, 1), .x = measured.ones});
  ctx.ops.CausalConvForward({.y = before,
                             .x = memory.saved.y.Rows(0, M),
                             .weight = measured.taps,
                             .reset = resets,
                             .shape = {.B = ctx.B, .T = ctx.T * S, .C = W, .K = 2},
                             .silu = false});
  const Recurrence weights = Weights(ctx, memory, part);
  for (int g = 0; g <= kForget; ++g) {
    ctx.ops.BlockLinearForward({.y = recurrent,
                                .x = before,
                                .weight = weights.weight.Rows(g * W, W),
                                .bias = weights.bias.Rows(g * W, W),
                                .num_blocks = part.num_heads});
    MeasureGate(ctx.ops, ctx.gate_stats.Rows(g, 1), wx.Columns(g * W, W), recurrent, /*cap=*/0);
  }
}

void SlstmLayer::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const Part part = PartOf(ctx.axes);
  const int64_t S = ctx.axes.sequence.size, M = ctx.N() * S, W = part.width, NH = part.num_heads;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const SlstmShape shape = part.Shape(ctx.B, ctx.T * S);
  CAROUSEL_CHECK_MSG(ctx.ops.SlstmWorkspaceBytes(shape, a.x.dtype) <= memory.scratch.workspace.num_bytes(),
                     "more sequences than were bound");
  CAROUSEL_CHECK_MSG(part.is_whole || (!a.initial.slstm.y.defined() && !a.last.slstm.y.defined()),
                     "a state is carried by one rank that has all heads and tokens");
  const Tensor resets = Resets(ctx);
  const Tensor x = part.is_whole ? a.x : s.x.Rows(0, M);
  ToCell(ctx, memory, x, a.x);

  // The input and forget gates see the convolution's result, the other two the input.
  Tensor conv = x;
  if (conv_weight_ >= 0) {
    conv = s.conv.Rows(0, M);
    ctx.ops.CausalConvForward({.y = conv,
                               .last = a.last.conv,
                               .x = x,
                               .weight = part.Of(params.Weight(conv_weight_)),
                               .bias = part.Of(params.Weight(conv_bias_)),
                               .reset = resets,
                               .initial = a.initial.conv,
                               .shape = part.ConvShape(ctx.B, ctx.T * S)});
  }
  const Tensor wx = s.gates.Rows(0, M);
  for (int g = 0; g < kNumGates; ++g) {
    ctx.ops.BlockLinearForward({.y = wx.Columns(g * W, W),
                                .x = g <= kForget ? conv : x,
                                .weight = part.Of(params.Weight(gate_weight_ + g)),
                                .num_blocks = NH});
  }

  BeginMeasure(ctx, memory, wx);
  // The recurrence over tokens; the gates take the place of wx.
  const Recurrence recurrence = Weights(ctx, memory, part);
  Tensor y = s.y.Rows(0, M);
  ctx.ops.SlstmForward({.y = y,
                        .gates = wx,
                        .c = s.c.Rows(0, M),
                        .n = s.n.Rows(0, M),
                        .m = s.m.Rows(0, M),
                        .last = a.last.slstm,
                        .wx = wx,
                        .recurrent = recurrence.weight,
                        .bias = recurrence.bias,
                        .reset = resets,
                        .initial = a.initial.slstm,
                        .workspace = memory.scratch.workspace,
                        .shape = shape});
  EndMeasure(ctx, memory, part, resets);
  if (spec_.dropout > 0 && ctx.dropout_key.has_value()) {
    const Tensor dropped = s.dropped.Rows(0, M);
    ctx.ops.Dropout({.y = dropped,
                     .x = y,
                     .rate = spec_.dropout,
                     .key = ctx.DropoutKey(1 + 2 * block_),
                     .places = Places(ctx, part)});
    y = dropped;
  }
  // Also where nobody wants the result: the norm's statistics are read by Backward.
  const Tensor scratch = part.is_whole ? memory.scratch.dy : memory.scratch.exchange.outside;
  const Tensor out = part.is_whole && a.y.defined() ? a.y : scratch.Rows(0, M);
  ctx.ops.HeadNormGateForward({.y = out,
                               .mean = s.mean.Rows(0, M),
                               .rstd = s.rstd.Rows(0, M),
                               .h = y,
                               .weight = norm_weight_ >= 0 ? part.Of(params.Weight(norm_weight_)) : Tensor(),
                               .NH = NH,
                               .eps = spec_.norm_eps,
                               .residual_weight = norm_weight_ >= 0 && spec_.residual_norm_weights()});
  if (a.y.defined()) ToStream(ctx, memory, a.y, out);
}

void SlstmLayer::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const Part part = PartOf(ctx.axes);
  const int64_t S = ctx.axes.sequence.size, M = ctx.N() * S, W = part.width, NH = part.num_heads;
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Scratch& scratch = memory.scratch;
  const bool dropout = spec_.dropout > 0 && ctx.dropout_key.has_value();
  const Tensor resets = Resets(ctx);
  const Tensor x = part.is_whole ? a.x : s.x.Rows(0, M);
  const Tensor y = s.y.Rows(0, M), dy = scratch.dy.Rows(0, M);

  // out = headnorm(dropout(y))
  const Tensor dout = part.is_whole ? a.dy : scratch.exchange.outside.Rows(0, M);
  ToCell(ctx, memory, dout, a.dy);
  ctx.ops.HeadNormGateBackward({.dh = dy,
                                .dweight = norm_weight_ >= 0 ? part.Of(params.Grad(norm_weight_)) : Tensor(),
                                .dy = dout,
                                .h = dropout ? s.dropped.Rows(0, M) : y,
                                .weight = norm_weight_ >= 0 ? part.Of(params.Weight(norm_weight_)) : Tensor(),
                                .mean = s.mean.Rows(0, M),
                                .rstd = s.rstd.Rows(0, M),
                                .NH = NH,
                                .residual_weight = norm_weight_ >= 0 && spec_.residual_norm_weights()});
  if (dropout) {
    ctx.ops.Dropout({.y = dy,
                     .x = dy,
                     .rate = spec_.dropout,
                     .key = ctx.DropoutKey(1 + 2 * block_),
                     .places = Places(ctx, part)});
  }

  // y = sLSTM(wx, R, b)
  const Tensor dwx = scratch.dwx.Rows(0, M);
  const Recurrence recurrence = Weights(ctx, memory, part), gradients = Gradients(ctx, memory, part);
  ctx.ops.SlstmBackward({.dwx = dwx,
                         .drecurrent = gradients.weight,
                         .dbias = gradients.bias,
                         .dy = dy,
                         .y = y,
                         .gates = s.gates.Rows(0, M),
                         .c = s.c.Rows(0, M),
                         .n = s.n.Rows(0, M),
                         .m = s.m.Rows(0, M),
                         .recurrent = recurrence.weight,
                         .reset = resets,
                         .workspace = scratch.workspace,
                         .shape = part.Shape(ctx.B, ctx.T * S),
                         .gradient_clip = spec_.slstm_gradient_clip,
                         .gradient_cut = spec_.slstm_gradient_cut});
  AddGradients(ctx, part, gradients);

  // wx = [cc W_i | cc W_f | x W_z | x W_o]; without a convolution cc is x.
  const bool has_conv = conv_weight_ >= 0;
  const Tensor dx = part.is_whole ? a.dx : scratch.exchange.outside.Rows(0, M);
  const Tensor conv = has_conv ? s.conv.Rows(0, M) : x;
  const Tensor dconv = has_conv ? scratch.dconv.Rows(0, M) : dx;
  for (int g = 0; g < kNumGates; ++g) {
    const bool from_conv = g <= kForget;
    ctx.ops.BlockLinearBackward({.dx = from_conv ? dconv : dx,
                                 .dweight = part.Of(params.Grad(gate_weight_ + g)),
                                 .dy = dwx.Columns(g * W, W),
                                 .x = from_conv ? conv : x,
                                 .weight = part.Of(params.Weight(gate_weight_ + g)),
                                 .num_blocks = NH,
                                 // The first map that writes to a gradient overwrites it.
                                 .accumulate_dx = g == 1 || g == 3 || (g == 2 && !has_conv)});
  }
  if (has_conv) {
    ctx.ops.CausalConvBackward({.dx = dx,
                                .dweight = part.Of(params.Grad(conv_weight_)),
                                .dbias = part.Of(params.Grad(conv_bias_)),
                                .dy = dconv,
                                .x = x,
                                .weight = part.Of(params.Weight(conv_weight_)),
                                .bias = part.Of(params.Weight(conv_bias_)),
                                .reset = resets,
                                .shape = part.ConvShape(ctx.B, ctx.T * S),
                                .accumulate_dx = true});
  }
  ToStream(ctx, memory, a.dx, dx);
}
}  // namespace carousel
