#include "core/model/ffn.h"

#include "core/base/int_math.h"
#include "core/comm/tensor_boundary.h"
#include "core/model/layer_init.h"

namespace carousel {

Ffn::Ffn(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group, int64_t block)
    : compute_(params.compute()),
      D_(spec.embedding_dim),
      F_(DivExact(spec.ffn_dim, params.tensor_size())),
      block_(block),
      tensor_size_(params.tensor_size()),
      activation_(spec.family == Family::kPaper ? GluActivation::kGelu : GluActivation::kSilu),
      dropout_(spec.ffn_dropout) {
  const int64_t D = spec.embedding_dim, F = spec.ffn_dim;
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
  const auto bias = [&](const char* name, int64_t size, Placement tensor) {
    return params.Register(
        {.name = prefix + name + ".bias", .shape = {size}, .group = group, .tensor = tensor});
  };
  gate_up_ = matrix("proj_up_gate", F, D, small, Sharded(0));
  matrix("proj_up", F, D, small, Sharded(0));
  if (spec.has_ffn_bias()) {
    gate_up_bias_ = bias("proj_up_gate", F, Sharded(0));
    bias("proj_up", F, Sharded(0));
  }
  down_ = matrix("proj_down", D, F, wang, Sharded(1));
  if (spec.has_ffn_bias()) down_bias_ = bias("proj_down", D, Replicated());
}

Ffn::Memory Ffn::Bind(Arena& arena, int64_t num_tokens, bool train) const {
  Memory memory;
  memory.saved = {.gate_up = arena.Saved(compute_, {num_tokens, 2 * F_})};
  const ScratchScope scope(arena);
  if (tensor_size_ > 1) memory.scratch.rows = arena.Scratch(compute_, {num_tokens, D_});
  memory.scratch.act = arena.Scratch(compute_, {num_tokens, F_});
  if (train && dropout_ > 0 && tensor_size_ == 1) {
    memory.scratch.dropped = arena.Scratch(compute_, {num_tokens, D_});
  }
  return memory;
}

// The map is its own conjugate.
void Ffn::Drop(const LayerContext& ctx, Tensor y, Tensor x) const {
  ctx.ops.Dropout({.y = y,
                   .x = x,
                   .rate = dropout_,
                   .key = ctx.DropoutKey(2 + 2 * block_),
                   .places = ctx.StreamPlaces()});
}

void Ffn::Forward(const LayerContext& ctx, const Memory& memory, Tensor y, Tensor x) const {
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const TensorBoundary border(ctx.axes.tensor);
  CAROUSEL_CHECK_EQ(border.size(), tensor_size_);
  const Tensor gate_up = memory.saved.gate_up.Rows(0, N), act = memory.scratch.act.Rows(0, N);
  // Column-split.
  const Tensor all_x = border.AllRows(memory.scratch.rows, x);
  border.GatherTokens(all_x, x);
  ctx.ops.Matmul({.c = gate_up,
                  .a = all_x,
                  .b = params.FusedWeight(gate_up_, 2),
                  .bias = gate_up_bias_ >= 0 ? params.FusedWeight(gate_up_bias_, 2) : Tensor(),
                  .transpose_b = true});
  if (!y.defined()) return;
  ctx.ops.GluForward(
      {.y = act, .gate = gate_up.Columns(0, F_), .up = gate_up.Columns(F_, F_), .activation = activation_});
  // Row-split: one rank's part of the sum has the bias.
  const Tensor all_y = border.AllRows(memory.scratch.rows, y);
  ctx.ops.Matmul({.c = all_y,
                  .a = act,
                  .b = params.Weight(down_),
                  .bias = down_bias_ >= 0 && border.index() == 0 ? params.Weight(down_bias_) : Tensor(),
                  .transpose_b = true});
  border.SumTokens(y, all_y);
  if (drops(ctx)) Drop(ctx, y, y);
}

void Ffn::Backward(const LayerContext& ctx, const Memory& memory, const BackwardArgs& a) const {
  const int64_t N = ctx.N();
  const ParamStore& params = ctx.params;
  const TensorBoundary border(ctx.axes.tensor);
  CAROUSEL_CHECK_EQ(border.size(), tensor_size_);
  const Tensor gate_up = memory.saved.gate_up.Rows(0, N), act = memory.scratch.act.Rows(0, N);
  const Tensor rows = memory.scratch.rows;

  // y = dropout(act W_down^T + b)
  Tensor dy = a.dy;
  if (drops(ctx)) {
    dy = border.size() == 1 ? memory.scratch.dropped.Rows(0, N) : border.MyRows(border.AllRows(rows, dy));
    Drop(ctx, dy, a.dy);
  }
  const Tensor all_dy = border.AllRows(rows, dy);
  border.GatherTokens(all_dy, dy);
  const Tensor dact = act;
  ctx.ops.Matmul({.c = dact, .a = all_dy, .b = params.Weight(down_)});

  // act = activation(gate) * up: the gradients take the place of gate and up, and act that of its gradient.
  const Tensor gate = gate_up.Columns(0, F_), up = gate_up.Columns(F_, F_);
  ctx.ops.GluBackward(
      {.dgate = gate, .dup = up, .y = act, .dy = dact, .gate = gate, .up = up, .activation = activation_});
  ctx.ops.Matmul({.c = params.Grad(down_),
                  .a = all_dy,
                  .b = act,
                  .transpose_a = true,
                  .accumulate = params.AddsToGradient(down_)});
  if (down_bias_ >= 0) ctx.ops.ColumnSum({.y = params.Grad(down_bias_), .x = dy});

  // [gate|up] = x W^T + b
  const Tensor dgate_up = gate_up, all_dx = border.AllRows(rows, a.dx);
  ctx.ops.Matmul({.c = all_dx, .a = dgate_up, .b = params.FusedWeight(gate_up_, 2)});
  border.SumTokens(a.dx, all_dx);
}

void Ffn::WeightGradients(const LayerContext& ctx, const Memory& memory, Tensor x) const {
  const ParamStore& params = ctx.params;
  const TensorBoundary border(ctx.axes.tensor);
  const Tensor dgate_up = memory.saved.gate_up.Rows(0, ctx.N());
  if (gate_up_bias_ >= 0) ctx.ops.ColumnSum({.y = params.FusedGrad(gate_up_bias_, 2), .x = dgate_up});
  const Tensor all_x = border.AllRows(memory.scratch.rows, x);
  border.GatherTokens(all_x, x);
  ctx.ops.Matmul({.c = params.FusedGrad(gate_up_, 2),
                  .a = dgate_up,
                  .b = all_x,
                  .transpose_a = true,
                  .accumulate = params.AddsToGradient(gate_up_)});
}
}  // namespace carousel
