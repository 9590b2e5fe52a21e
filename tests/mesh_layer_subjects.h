// The layers of the large family as subjects of mesh_layer_testing.h.
#pragma once
#include "core/model/block.h"
#include "tests/layer_backward.h"
#include "tests/mesh_layer_testing.h"

namespace carousel::testing {

// y = norm(x), x in the wide stream.
class NormSubject {
 public:
  NormSubject(const ModelSpec& spec, ParamStore& params)
      : D_(spec.embedding_dim), compute_(params.compute()), norm_(spec, params, "norm", 0) {}
  DType activations(const ParamStore&) const { return WideOf(compute_); }
  void Bind(Arena& arena, const Ops&, const PassShape& shape) {
    saved_ = norm_.Bind(arena, shape.stream_rows());
    rounded_ = arena.Persistent("test", compute_, {shape.stream_rows(), D_});
  }
  void Forward(const LayerContext& ctx, Tensor y, Tensor x) {
    norm_.Forward(ctx, saved_, {.y = rounded_, .x = x});
    ctx.ops.Cast({.y = y, .x = rounded_});
  }
  void Backward(const LayerContext& ctx, Tensor dx, Tensor dy, Tensor x) {
    ctx.ops.Cast({.y = rounded_, .x = dy});
    norm_.Backward(ctx, saved_, {.dx = dx, .dy = rounded_, .x = x});
  }

 private:
  int64_t D_;
  DType compute_;
  NormLayer norm_;
  NormLayer::Saved saved_;
  Tensor rounded_;  // y, then dy
};

class FfnSubject {
 public:
  FfnSubject(const ModelSpec& spec, ParamStore& params) : ffn_(spec, params, "ffn.", 0, /*block=*/1) {}
  DType activations(const ParamStore& params) const { return params.compute(); }
  void Bind(Arena& arena, const Ops&, const PassShape& shape) {
    memory_ = ffn_.Bind(arena, shape.N(), /*train=*/true);
  }
  void Forward(const LayerContext& ctx, Tensor y, Tensor x) { ffn_.Forward(ctx, memory_, y, x); }
  void Backward(const LayerContext& ctx, Tensor dx, Tensor dy, Tensor x) {
    LayerBackward(ffn_, ctx, memory_, dx, dy, x);
  }

 private:
  Ffn ffn_;
  Ffn::Memory memory_;
};

class MlstmSubject {
 public:
  MlstmSubject(const ModelSpec& spec, ParamStore& params)
      : compute_(params.compute()), layer_(spec, params, "mlstm_layer.", 0) {}
  DType activations(const ParamStore&) const { return compute_; }
  void Bind(Arena& arena, const Ops& ops, const PassShape& shape) {
    memory_ = layer_.Bind(arena, ops, compute_, shape, /*train=*/true);
  }
  void Forward(const LayerContext& ctx, Tensor y, Tensor x) {
    layer_.Forward(ctx, memory_, {.y = y, .x = x});
  }
  void Backward(const LayerContext& ctx, Tensor dx, Tensor dy, Tensor x) {
    LayerBackward(layer_, ctx, memory_, dx, dy, x);
  }

 private:
  DType compute_;
  MlstmLayer layer_;
  MlstmLayer::Memory memory_;
};

// y = block(x) in the wide stream. Another block with the same weights runs between forward and backward, in
// the memory that a mode shares between blocks.
template <Block::Mode kMode>
class BlockSubject {
 public:
  BlockSubject(const ModelSpec& spec, ParamStore& params)
      : D_(spec.embedding_dim),
        compute_(params.compute()),
        block_(spec, params, "block.", /*group=*/0, /*block=*/0) {}
  DType activations(const ParamStore&) const { return WideOf(compute_); }
  void Bind(Arena& arena, const Ops& ops, const PassShape& shape) {
    delta_ = arena.Persistent("test", compute_, {shape.stream_rows(), D_});
    if (compute_ != WideOf(compute_)) dy_ = arena.Persistent("test", compute_, {shape.stream_rows(), D_});
    memory_ = block_.Bind(arena, ops, shape, kMode);
    other_ = block_.Bind(arena, ops, shape, kMode);
  }
  void Forward(const LayerContext& ctx, Tensor y, Tensor x) {
    Run(ctx, memory_, y, x);
    Run(ctx, other_, {}, y);
  }
  void Backward(const LayerContext& ctx, Tensor dx, Tensor dy, Tensor) {
    ctx.ops.Cast({.y = dx, .x = dy});
    const Tensor rounded = dy_.defined() ? dy_.Rows(0, ctx.stream_rows()) : dx;
    if (dy_.defined()) ctx.ops.Cast({.y = rounded, .x = dx});
    block_.Backward(ctx, memory_, kMode, {.dx = dx, .dy = rounded});
  }

 private:
  void Run(const LayerContext& ctx, const Block::Memory& memory, Tensor y, Tensor x) {
    const int64_t rows = ctx.stream_rows();
    const Tensor x1 = memory.saved.x1.Rows(0, rows), delta = delta_.Rows(0, rows);
    ctx.ops.Cast({.y = x1, .x = x});
    block_.Forward(ctx, memory, {.delta_out = delta, .x = x1});
    if (y.defined()) ctx.ops.Add({.y = y, .a = block_.Stream(memory).Rows(0, rows), .b = delta});
  }

  int64_t D_;
  DType compute_;
  Block block_;
  Block::Memory memory_, other_;
  Tensor delta_;
  Tensor dy_;  // dx rounded; undefined where compute == wide
};
}  // namespace carousel::testing
