// One residual block: x2 = x1 + mixer(norm(x1));  output = x2 + FFN(norm_ffn(x2)), or x2 without a
// feed-forward (mLSTM blocks of the paper family). The mixer is an mLSTM or an sLSTM, as the spec says for
// this block.
//
// The residual stream is wide. Its additions happen inside the norms: a block hands on the pair (stream,
// delta) with output = stream + delta, and the next norm adds the two. N is the number of the stream's rows
// on this rank; the layers in it gather the rows of the others where they need them.
#pragma once
#include <optional>
#include <string>
#include <variant>

#include "core/model/ffn.h"
#include "core/model/mlstm_layer.h"
#include "core/model/mlstm_paper_layer.h"
#include "core/model/norm_layer.h"
#include "core/model/slstm_layer.h"

namespace carousel {

class Block {
 public:
  // Registers "<prefix>norm_mlstm.weight" (norm_slstm), ... in `group`; prefix is "backbone.blocks.0." or
  // alike, `block` the block's index.
  Block(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group, int64_t block);

  struct Saved {
    Tensor x1;               // (N, D) wide: the block input. All that a recomputed block keeps
    NormLayer::Saved norm1;  // (N) wide
    Tensor x2;               // (N, D) wide: x1 + mixer; this and norm2 only with a feed-forward
    NormLayer::Saved norm2;  // (N) wide
    Tensor u1;               // (N, D) compute: norm(x1), if the mixer's backward reads it (sLSTM)
  };
  struct Scratch {
    Tensor u;      // (N, D) compute: norm(x1), if it is not saved, then norm_ffn(x2). Forward alone
    Tensor delta;  // (N, D) compute: the mixer's output; in backward the gradient of norm_ffn(x2), then
                   // itself; the gradient of norm(x1), then itself
  };
  struct Memory {
    Saved saved;
    Scratch scratch;
    std::variant<MlstmLayer::Memory, MlstmPaperLayer::Memory, SlstmLayer::Memory> mixer;
    Ffn::Memory ffn;
  };
  enum class Mode : uint8_t { kInference, kSave, kRecompute };
  // kRecompute: all blocks but for x1 share one region. kInference: blocks share everything.
  Memory Bind(Arena& arena, const Ops& ops, const PassShape& shape, Mode mode) const;
  // What the mixer carries along B sequences. Category "states".
  LayerState BindState(Arena& arena, int64_t B) const;

  struct ForwardArgs {
    Tensor delta_out;  // (N, D) compute out: what is to be added to Stream(); may alias delta_in. Undefined:
                       // only what Backward reads is wanted, of memory bound for it
    Tensor x;  // (N, D) wide: the stream so far; may be memory.saved.x1 itself if delta_in is not given
    Tensor delta_in = {};                // (N, D) compute, optional: what is still to be added to x
    LayerState initial = {}, last = {};  // optional, as the mixer's
  };
  // After it, output = Stream(memory) + delta_out.
  void Forward(const LayerContext&, const Memory&, const ForwardArgs&) const;
  // The stream after Forward, without delta_out: (bound rows, D) wide.
  Tensor Stream(const Memory& memory) const { return ffn_ ? memory.saved.x2 : memory.saved.x1; }
  struct BackwardArgs {
    Tensor dx;  // (N, D) wide: the gradient of the output comes in, the gradient of the block input goes out
    // (N, D) compute: dx rounded, as the matmuls take it; comes in as dx does and goes out so if round_out
    // (is scratch if not). dx itself where compute == wide.
    Tensor dy;
    bool round_out = true;
  };
  // Once per Forward. kRecompute: runs Forward from x1 first.
  void Backward(const LayerContext&, const Memory&, Mode mode, const BackwardArgs&) const;

 private:
  using Mixer = std::variant<MlstmLayer, MlstmPaperLayer, SlstmLayer>;
  static Mixer MakeMixer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group,
                         int64_t block);
  void MixerForward(const LayerContext&, const Memory&, Tensor y, Tensor x, const LayerState& initial,
                    const LayerState& last) const;
  // Whether the mixer's backward reads its input. If not, its WeightGradients do, after the norm's backward
  // has made it once more.
  bool saves_input() const { return std::holds_alternative<SlstmLayer>(mixer_); }
  void MixerBackward(const LayerContext&, const Memory&, Tensor dx, Tensor dy) const;
  void MixerWeightGradients(const LayerContext&, const Memory&, Tensor x) const;

  int64_t D_;
  DType compute_;
  NormLayer norm_;
  Mixer mixer_;
  std::optional<NormLayer> norm_ffn_;
  std::optional<Ffn> ffn_;
};
}  // namespace carousel
