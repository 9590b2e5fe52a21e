// sLSTM layer (arXiv:2405.04517), the same in both families: x is the normed block input, (N, D) compute.
//   cc = SiLU(conv(x)), or x without a convolution
//   wx = [cc W_i | cc W_f | x W_z | x W_o], each W head-wise: NH blocks (D/NH, D/NH)     split by heads
//   y = sLSTM(wx, R, b);   out = headnorm(dropout(y))
// There is no projection after it: the feed-forward mixes the heads.
#pragma once
#include <string>

#include "core/model/layer_context.h"
#include "core/model/layer_state.h"
#include "core/model/pass_shape.h"
#include "core/model/spec.h"

namespace carousel {

class SlstmLayer {
 public:
  // Registers in `group`, with prefix: conv.weight (D, K), conv.bias; {igate,fgate,zgate,ogate}.weight
  // (D, D/NH), the same four .recurrent_weight (D, D/NH) and .bias (D); multihead_norm.weight (D).
  // `block` is the block's index: the forget gate's bias depends on the depth.
  SlstmLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group, int64_t block);

  struct Saved {
    Tensor conv;        // (N, D) compute: cc; undefined without a convolution
    Tensor gates;       // (N, 4*D) wide: wx, then what the cell keeps
    Tensor c, n, m;     // (N, D) wide: states after each token
    Tensor y;           // (N, D) compute: the cell's output
    Tensor dropped;     // (N, D) compute: dropout(y); undefined without dropout
    Tensor mean, rstd;  // (N, NH) wide: of the head norm
  };
  struct Scratch {
    Tensor workspace;  // u8, of the sLSTM op
    Tensor dy;         // (N, D) compute
    Tensor dwx;        // (N, 4*D) compute
    Tensor dconv;      // (N, D) compute; undefined without a convolution
  };
  struct Memory {
    Saved saved;
    Scratch scratch;
  };
  // train: also what only Backward needs.
  Memory Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape, bool train) const;
  // For B sequences. Category "states".
  LayerState BindState(Arena& arena, DType wide, int64_t B) const;

  struct ForwardArgs {
    Tensor y;                 // (N, D) compute out
    Tensor x;                 // (N, D) compute
    LayerState initial = {};  // optional: where the sequences continue
    LayerState last = {};     // optional out; may alias initial
  };
  void Forward(const LayerContext&, const Memory&, const ForwardArgs&) const;

  // Sequences are taken to start from the zero state and nothing is known of a gradient of the last state.
  struct BackwardArgs {
    Tensor dx;  // (N, D) compute out
    Tensor dy;  // (N, D) compute
    Tensor x;   // (N, D) compute: as forward
  };
  void Backward(const LayerContext&, const Memory&, const BackwardArgs&) const;

 private:
  SlstmShape Shape(int64_t B, int64_t T) const;
  CausalConvShape ConvShape(int64_t B, int64_t T) const;

  ModelSpec spec_;
  int64_t block_;
  int conv_weight_ = -1, conv_bias_ = -1;
  int gate_weight_ = -1;  // first of igate, fgate, zgate, ogate
  int recurrent_ = -1;    // first of the four recurrent weights
  int bias_ = -1;         // first of the four biases
  int norm_weight_ = -1;
};
}  // namespace carousel
