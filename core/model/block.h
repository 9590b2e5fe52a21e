// One residual block: x1 = block input;  x2 = x1 + mLSTM(norm_mlstm(x1));  output = x2 + FFN(norm_ffn(x2)).
//
// The residual stream is wide. Its additions happen inside the norms: a block hands on the pair (x2, delta)
// with output = x2 + delta, and the next norm adds the two.
#pragma once
#include <string>

#include "core/model/ffn.h"
#include "core/model/mlstm_layer.h"

namespace carousel {

class Block {
 public:
  // Registers "<prefix>norm_mlstm.weight", ... in `group`; prefix is "backbone.blocks.0." or alike.
  Block(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group);

  struct Saved {
    Tensor x1;     // (N, D) wide: the block input. All that a recomputed block keeps
    Tensor u1;     // (N, D) compute: norm_mlstm(x1)
    Tensor rstd1;  // (N) wide
    Tensor x2;     // (N, D) wide: x1 + mixer
    Tensor u2;     // (N, D) compute: norm_ffn(x2)
    Tensor rstd2;  // (N) wide
  };
  struct Scratch {
    Tensor delta;  // (N, D) compute: the mixer's output; in backward the gradient of u2, then of u1
    Tensor dy;     // (N, D) compute: the stream's gradient rounded for the matmuls; unused if compute == wide
  };
  struct Memory {
    Saved saved;
    Scratch scratch;
    MlstmLayer::Memory mixer;
    Ffn::Memory ffn;
  };
  enum class Mode : uint8_t { kInference, kSave, kRecompute };
  // kRecompute: all blocks but for x1 share one region. kInference: blocks share everything.
  Memory Bind(Arena& arena, const Ops& ops, int64_t B, int64_t T, Mode mode) const;

  struct ForwardArgs {
    Tensor delta_out;  // (N, D) compute out: the FFN's output; may alias delta_in
    Tensor x;  // (N, D) wide: the stream so far; may be memory.saved.x1 itself if delta_in is not given
    Tensor delta_in = {};                // (N, D) compute, optional: what is still to be added to x
    MlstmState initial = {}, last = {};  // optional, as MlstmLayer
  };
  // After it, output = memory.saved.x2 + delta_out.
  void Forward(const LayerContext&, const Memory&, const ForwardArgs&) const;
  // dx (N, D) wide: the gradient of the output comes in, the gradient of the block input goes out. Once per
  // Forward. kRecompute: runs Forward from x1 first.
  void Backward(const LayerContext&, const Memory&, Mode mode, Tensor dx) const;

 private:
  struct Norm {
    int weight = -1, bias = -1;
  };
  Norm RegisterNorm(ParamStore& params, const std::string& name, int group) const;

  ModelSpec spec_;
  DType compute_;
  Norm norm_mlstm_;
  MlstmLayer mixer_;
  Norm norm_ffn_;
  Ffn ffn_;
};
}  // namespace carousel
