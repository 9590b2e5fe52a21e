#include "core/model/norm_layer.h"

namespace carousel {

NormLayer::NormLayer(const ModelSpec& spec, ParamStore& params, const std::string& name, int group)
    : layer_norm_(spec.family == Family::kPaper), eps_(spec.norm_eps), wide_(params.wide()) {
  const std::vector<int64_t> shape = {spec.embedding_dim};
  const InitRule identity = spec.residual_norm_weights() ? InitRule::kZero : InitRule::kOne;
  weight_ =
      params.Register({.name = name + ".weight", .shape = shape, .init = {.rule = identity}, .group = group});
  if (spec.family == Family::kLarge && spec.use_bias) {
    bias_ = params.Register({.name = name + ".bias", .shape = shape, .group = group});
  }
}

NormLayer::Saved NormLayer::Bind(Arena& arena, int64_t num_rows) const {
  return {.mean = layer_norm_ ? arena.Saved(wide_, {num_rows}) : Tensor(),
          .rstd = arena.Saved(wide_, {num_rows})};
}

void NormLayer::Forward(const LayerContext& ctx, const Saved& saved, const ForwardArgs& a) const {
  const int64_t N = ctx.stream_rows();
  const Tensor weight = ctx.params.Weight(weight_);
  if (layer_norm_) {
    ctx.ops.LayerNormForward({.y = a.y,
                              .mean = saved.mean.Rows(0, N),
                              .rstd = saved.rstd.Rows(0, N),
                              .sum = a.sum,
                              .x = a.x,
                              .delta = a.delta,
                              .weight = weight,
                              .residual_weight = true,
                              .eps = eps_});
    return;
  }
  ctx.ops.RmsNormForward({.y = a.y,
                          .rstd = saved.rstd.Rows(0, N),
                          .sum = a.sum,
                          .x = a.x,
                          .delta = a.delta,
                          .weight = weight,
                          .bias = bias_ >= 0 ? ctx.params.Weight(bias_) : Tensor(),
                          .eps = eps_});
}

void NormLayer::Backward(const LayerContext& ctx, const Saved& saved, const BackwardArgs& a) const {
  const int64_t N = ctx.stream_rows();
  const Tensor weight = ctx.params.Weight(weight_), dweight = ctx.params.Grad(weight_);
  if (layer_norm_) {
    ctx.ops.LayerNormBackward({.dx = a.dx,
                               .dx_rounded = a.dx_rounded,
                               .y = a.y,
                               .dweight = dweight,
                               .dy = a.dy,
                               .dresidual = a.dresidual,
                               .x = a.x,
                               .weight = weight,
                               .mean = saved.mean.Rows(0, N),
                               .rstd = saved.rstd.Rows(0, N),
                               .residual_weight = true});
    return;
  }
  ctx.ops.RmsNormBackward({.dx = a.dx,
                           .dx_rounded = a.dx_rounded,
                           .y = a.y,
                           .dweight = dweight,
                           .dbias = bias_ >= 0 ? ctx.params.Grad(bias_) : Tensor(),
                           .dy = a.dy,
                           .dresidual = a.dresidual,
                           .x = a.x,
                           .weight = weight,
                           .bias = bias_ >= 0 ? ctx.params.Weight(bias_) : Tensor(),
                           .rstd = saved.rstd.Rows(0, N)});
}
}  // namespace carousel
