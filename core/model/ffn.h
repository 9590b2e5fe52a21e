// Gated feed-forward: y = dropout((act(x W_gate^T) * (x W_up^T)) W_down^T), each map with a bias if
// has_ffn_bias(). act is SiLU in the large family and GELU in the paper family. Column-split (gate, up), then
// row-split (down).
#pragma once
#include <string>

#include "core/model/layer_context.h"
#include "core/model/spec.h"

namespace carousel {

class Ffn {
 public:
  // Registers the parameters prefix + "proj_up_gate.weight", ... in `group`. `block` is the block's index.
  Ffn(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group, int64_t block);

  struct Saved {
    Tensor gate_up;  // (N, 2*F) compute: gate and up side by side; Backward overwrites it with its gradient
    Tensor act;      // (N, F) compute: silu(gate) * up
  };
  struct Scratch {
    Tensor dact;     // (N, F) compute
    Tensor dropped;  // (N, D) compute: gradient after dropout; undefined without dropout
  };
  struct Memory {
    Saved saved;
    Scratch scratch;
  };
  Memory Bind(Arena& arena, int64_t num_tokens, bool train) const;

  // y (N, D) compute out, x (N, D) compute. An undefined y leaves the down projection out: all that Backward
  // needs is then in `memory` (recomputation).
  void Forward(const LayerContext&, const Memory&, Tensor y, Tensor x) const;
  // Once per Forward.
  struct BackwardArgs {
    Tensor dx;  // (N, D) compute out
    Tensor dy;  // (N, D) compute
    Tensor x;   // (N, D) compute: as forward
  };
  void Backward(const LayerContext&, const Memory&, const BackwardArgs&) const;

 private:
  DType compute_;
  int64_t D_, F_, block_;
  GluActivation activation_;
  double dropout_;
  int gate_up_ = -1, gate_up_bias_ = -1;  // first of proj_up_gate, proj_up
  int down_ = -1, down_bias_ = -1;
};
}  // namespace carousel
