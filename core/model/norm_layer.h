// NormLayer: the norm before a mixer, a feed-forward or the head: RMS norm (large family) or layer norm whose
// stored weight is the scale minus 1 (paper family), with the residual addition before it. It works on the N
// rows of the stream: with a tensor axis each rank has a part of them, and has seen a part of the gradient of
// the weights, of which every rank has all.
#pragma once
#include <string>

#include "core/model/layer_context.h"
#include "core/model/spec.h"

namespace carousel {

class NormLayer {
 public:
  // Registers name + ".weight" and, in the large family with use_bias, name + ".bias" in `group`.
  NormLayer(const ModelSpec& spec, ParamStore& params, const std::string& name, int group);

  struct Saved {
    Tensor mean;  // (N) wide; layer norm only
    Tensor rstd;  // (N) wide
  };
  Saved Bind(Arena& arena, int64_t num_rows) const;

  struct ForwardArgs {
    Tensor y;           // (N, D) compute out
    Tensor sum = {};    // (N, D) wide out: x + delta; required if delta is given
    Tensor x;           // (N, D) wide
    Tensor delta = {};  // (N, D) compute, optional
  };
  void Forward(const LayerContext&, const Saved&, const ForwardArgs&) const;

  struct BackwardArgs {
    Tensor dx;               // (N, D) wide out; may alias dresidual
    Tensor dx_rounded = {};  // (N, D) compute out, optional: dx rounded; may be dy if y is not
    Tensor y = {};           // (N, D) compute out, optional: y of the forward once more; may be dy
    Tensor dy;               // (N, D) compute
    Tensor dresidual = {};   // (N, D) wide, optional, added
    Tensor x;                // (N, D) wide: x + delta of the forward
  };
  void Backward(const LayerContext&, const Saved&, const BackwardArgs&) const;

 private:
  bool layer_norm_;
  double eps_;
  DType wide_;
  int weight_ = -1, bias_ = -1;
};
}  // namespace carousel
