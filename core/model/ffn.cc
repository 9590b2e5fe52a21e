#include "core/model/ffn.h"

#include "core/model/layer_init.h"

namespace carousel {

Ffn::Ffn(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group, int64_t block)
    : compute_(params.compute()),
      D_(spec.embedding_dim),
      F_(spec.ffn_dim),
      block_(block),
      activation_(spec.family == Family::kPaper ? GluActivation::kGelu : GluActivation::kSilu),
      dropout_(spec.ffn_dropout) {
  const int64_t D = spec.embedding_dim;
  const ParamInit small = SmallInit(D), wang = WangInit(D, spec.num_blocks);
  const auto matrix = [&](const char* name, int64_t out, int64_t in, const ParamInit& init) {
    return params.Register(
        {.name = prefix + name + ".weight", .shape = {out, in}, .decay = true, .init = init, .group = group});
  };
  const auto bias = [&](const char* name, int64_t size) {
    return params.Register({.name = prefix + name + ".bias", .shape = {size}, .group = group});
  };
  gate_up_ = matrix("proj_up_gate", F_, D, small);
  matrix("proj_up", F_, D, small);
  if (spec.has_ffn_bias()) {
    gate_up_bias_ = bias("proj_up_gate", F_);
    bias("proj_up", F_);
  }
  down_ = matrix("proj_down", D, F_, wang);
  if (spec.has_ffn_bias()) down_bias_ = bias("proj_down", D);
}

Ffn::Memory Ffn::Bind(Arena& arena, int64_t num_tokens, bool train) const {
  Memory memory;
  memory.saved = {.gate_up = arena.Saved(compute_, {num_tokens, 2 * F_}),
                  .act = arena.Saved(compute_, {num_tokens, F_})};
  const ScratchScope scope(arena);
  if (train) {
    memory.scratch.dact = arena.Scratch(compute_, {num_tokens, F_});
    if (dropout_ > 0) memory.scratch.dropped = arena.Scratch(compute_, {num_tokens, D_});
  }
  return memory;
}

void Ffn::Forward(const LayerContext& ctx, const Memory& memory, Tensor y, Tensor x) const {
  const int64_t N = ctx.N();
  const Tensor gate_up = memory.saved.gate_up.Rows(0, N), act = memory.saved.act.Rows(0, N);
  // Column-split.
  ctx.ops.Matmul({.c = gate_up,
                  .a = x,
                  .b = ctx.params.FusedWeight(gate_up_, 2),
                  .bias = gate_up_bias_ >= 0 ? ctx.params.FusedWeight(gate_up_bias_, 2) : Tensor(),
                  .transpose_b = true});
  ctx.ops.GluForward(
      {.y = act, .gate = gate_up.Columns(0, F_), .up = gate_up.Columns(F_, F_), .activation = activation_});
  if (!y.defined()) return;
  // Row-split.
  ctx.ops.Matmul({.c = y,
                  .a = act,
                  .b = ctx.params.Weight(down_),
                  .bias = down_bias_ >= 0 ? ctx.params.Weight(down_bias_) : Tensor(),
                  .transpose_b = true});
  if (dropout_ > 0 && ctx.dropout_key.has_value()) {
    ctx.ops.Dropout({.y = y, .x = y, .rate = dropout_, .key = ctx.DropoutKey(2 + 2 * block_)});
  }
}

void Ffn::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const Tensor gate_up = memory.saved.gate_up.Rows(0, N), act = memory.saved.act.Rows(0, N);
  const Tensor dact = memory.scratch.dact.Rows(0, N);

  // y = dropout(act W_down^T + b)
  Tensor dy = a.dy;
  if (dropout_ > 0 && ctx.dropout_key.has_value()) {
    dy = memory.scratch.dropped.Rows(0, N);
    ctx.ops.Dropout({.y = dy, .x = a.dy, .rate = dropout_, .key = ctx.DropoutKey(2 + 2 * block_)});
  }
  ctx.ops.Matmul({.c = dact, .a = dy, .b = params.Weight(down_)});
  ctx.ops.Matmul({.c = params.Grad(down_), .a = dy, .b = act, .transpose_a = true, .accumulate = true});
  if (down_bias_ >= 0) ctx.ops.ColumnSum({.y = params.Grad(down_bias_), .x = dy});

  // act = activation(gate) * up: the gradients take the place of gate and up.
  const Tensor gate = gate_up.Columns(0, F_), up = gate_up.Columns(F_, F_);
  ctx.ops.GluBackward(
      {.dgate = gate, .dup = up, .dy = dact, .gate = gate, .up = up, .activation = activation_});
  const Tensor dgate_up = gate_up;

  // [gate|up] = x W^T + b
  if (gate_up_bias_ >= 0) ctx.ops.ColumnSum({.y = params.FusedGrad(gate_up_bias_, 2), .x = dgate_up});
  ctx.ops.Matmul({.c = a.dx, .a = dgate_up, .b = params.FusedWeight(gate_up_, 2)});
  ctx.ops.Matmul(
      {.c = params.FusedGrad(gate_up_, 2), .a = dgate_up, .b = a.x, .transpose_a = true, .accumulate = true});
}
}  // namespace carousel
