// Gated feed-forward: y = dropout((act(x W_gate^T) * (x W_up^T)) W_down^T), each map with a bias if
// has_ffn_bias(). act is SiLU in the large family and GELU in the paper family.
//
// Gate and up are split by columns over the tensor axis, down by rows: a rank has F = ffn_dim / t features of
// all N tokens in between, and gathers and sums rows of the stream at the two ends (core/comm/
// tensor_boundary.h). x, y and their gradients are the stream's n = N / t rows. Crossings: forward a gather
// of x and a sum of y; backward a gather of dy, a sum of dx, and a gather of x again.
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
  };
  struct Scratch {
    Tensor rows;  // (N, D) compute: rows of all ranks; undefined with one rank
    // (N, F) compute: act(gate) * up. Backward has its gradient here, then itself once more, computed from
    // gate and up with their gradients.
    Tensor act;
    Tensor dropped;  // (N, D) compute: gradient after dropout; undefined without dropout, with several ranks
  };
  struct Memory {
    Saved saved;
    Scratch scratch;
  };
  Memory Bind(Arena& arena, int64_t num_tokens, bool train) const;

  // y (n, D) compute out, x (n, D) compute. An undefined y leaves out what Backward does not need
  // (recomputation).
  void Forward(const LayerContext&, const Memory&, Tensor y, Tensor x) const;
  // Once per Forward.
  struct BackwardArgs {
    Tensor dx;  // (n, D) compute out
    Tensor dy;  // (n, D) compute
  };
  void Backward(const LayerContext&, const Memory&, const BackwardArgs&) const;
  // After it, as in MlstmLayer.
  void WeightGradients(const LayerContext&, const Memory&, Tensor x) const;

 private:
  bool drops(const LayerContext& ctx) const { return dropout_ > 0 && ctx.dropout_key.has_value(); }
  void Drop(const LayerContext&, Tensor y, Tensor x) const;

  DType compute_;
  int64_t D_, F_, block_;  // F_: of this rank
  int64_t tensor_size_;
  GluActivation activation_;
  double dropout_;
  int gate_up_ = -1, gate_up_bias_ = -1;  // first of proj_up_gate, proj_up
  int down_ = -1, down_bias_ = -1;
};
}  // namespace carousel
