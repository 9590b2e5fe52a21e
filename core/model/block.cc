#include "core/model/block.h"

namespace carousel {

Block::Norm Block::RegisterNorm(ParamStore& params, const std::string& name, int group) const {
  const std::vector<int64_t> shape = {spec_.embedding_dim};
  Norm norm;
  norm.weight = params.Register(
      {.name = name + ".weight", .shape = shape, .init = {.rule = InitRule::kOne}, .group = group});
  if (spec_.use_bias) {
    norm.bias = params.Register({.name = name + ".bias", .shape = shape, .group = group});
  }
  return norm;
}

Block::Block(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group)
    : spec_(spec),
      compute_(params.compute()),
      norm_mlstm_(RegisterNorm(params, prefix + "norm_mlstm", group)),
      mixer_(spec, params, prefix + "mlstm_layer.", group),
      norm_ffn_(RegisterNorm(params, prefix + "norm_ffn", group)),
      ffn_(spec, params, prefix + "ffn.", group) {}

Block::Memory Block::Bind(Arena& arena, const Ops& ops, int64_t B, int64_t T, Mode mode) const {
  const DType wide = WideOf(compute_);
  const int64_t N = B * T, D = spec_.embedding_dim;
  const bool train = mode != Mode::kInference;
  Memory memory;
  Saved& s = memory.saved;
  if (mode == Mode::kInference) arena.BeginSharedSaved("blocks");
  s.x1 = arena.Saved(wide, {N, D});
  if (mode == Mode::kRecompute) arena.BeginSharedSaved("recomputed blocks");
  s.u1 = arena.Saved(compute_, {N, D});
  s.rstd1 = arena.Saved(wide, {N});
  s.x2 = arena.Saved(wide, {N, D});
  s.u2 = arena.Saved(compute_, {N, D});
  s.rstd2 = arena.Saved(wide, {N});

  // The block's own scratch is in use while a layer runs: the layers' scratch lies above it.
  const ScratchScope scope(arena);
  memory.scratch.delta = arena.Scratch(compute_, {N, D});
  if (train && compute_ != wide) memory.scratch.dy = arena.Scratch(compute_, {N, D});
  memory.mixer = mixer_.Bind(arena, ops, compute_, B, T, train);
  memory.ffn = ffn_.Bind(arena, N, train);
  if (mode != Mode::kSave) arena.EndSharedSaved();
  return memory;
}

void Block::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Tensor x1 = s.x1.Rows(0, N), x2 = s.x2.Rows(0, N);
  const Tensor u1 = s.u1.Rows(0, N), u2 = s.u2.Rows(0, N), delta = memory.scratch.delta.Rows(0, N);
  CAROUSEL_CHECK_MSG(a.delta_in.defined() || a.x.data == x1.data, "the stream must be in x1 already");

  // x1 = x + delta_in;  u1 = norm(x1)
  ctx.ops.RmsNormForward({.y = u1,
                          .rstd = s.rstd1.Rows(0, N),
                          .sum = a.delta_in.defined() ? x1 : Tensor(),
                          .x = a.x,
                          .delta = a.delta_in,
                          .weight = params.Weight(norm_mlstm_.weight),
                          .bias = norm_mlstm_.bias >= 0 ? params.Weight(norm_mlstm_.bias) : Tensor(),
                          .eps = spec_.norm_eps});
  mixer_.Forward(ctx, memory.mixer, {.y = delta, .x = u1, .initial = a.initial, .last = a.last});

  // x2 = x1 + mixer;  u2 = norm(x2)
  ctx.ops.RmsNormForward({.y = u2,
                          .rstd = s.rstd2.Rows(0, N),
                          .sum = x2,
                          .x = x1,
                          .delta = delta,
                          .weight = params.Weight(norm_ffn_.weight),
                          .bias = norm_ffn_.bias >= 0 ? params.Weight(norm_ffn_.bias) : Tensor(),
                          .eps = spec_.norm_eps});
  ffn_.Forward(ctx, memory.ffn, a.delta_out, u2);
}

void Block::Backward(const LayerContext& ctx, const Memory& memory, Mode mode, Tensor dx) const {
  CAROUSEL_CHECK_MSG(mode != Mode::kInference, "bound for inference");
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const Saved& s = memory.saved;
  const Tensor x1 = s.x1.Rows(0, N), x2 = s.x2.Rows(0, N);
  if (mode == Mode::kRecompute) Forward(ctx, memory, {.delta_out = {}, .x = x1});

  // The stream's gradient as an operand of matmuls.
  const auto rounded = [&] {
    if (dx.dtype == compute_) return dx;
    const Tensor dy = memory.scratch.dy.Rows(0, N);
    ctx.ops.Cast({.y = dy, .x = dx});
    return dy;
  };
  const Tensor du = memory.scratch.delta.Rows(0, N);

  // output = x2 + ffn(norm(x2))
  ffn_.Backward(ctx, memory.ffn, {.dx = du, .dy = rounded(), .x = s.u2.Rows(0, N)});
  ctx.ops.RmsNormBackward({.dx = dx,
                           .dweight = params.Grad(norm_ffn_.weight),
                           .dbias = norm_ffn_.bias >= 0 ? params.Grad(norm_ffn_.bias) : Tensor(),
                           .dy = du,
                           .dresidual = dx,
                           .x = x2,
                           .weight = params.Weight(norm_ffn_.weight),
                           .rstd = s.rstd2.Rows(0, N)});

  // x2 = x1 + mixer(norm(x1))
  mixer_.Backward(ctx, memory.mixer, {.dx = du, .dy = rounded(), .x = s.u1.Rows(0, N)});
  ctx.ops.RmsNormBackward({.dx = dx,
                           .dweight = params.Grad(norm_mlstm_.weight),
                           .dbias = norm_mlstm_.bias >= 0 ? params.Grad(norm_mlstm_.bias) : Tensor(),
                           .dy = du,
                           .dresidual = dx,
                           .x = x1,
                           .weight = params.Weight(norm_mlstm_.weight),
                           .rstd = s.rstd1.Rows(0, N)});
}
}  // namespace carousel
