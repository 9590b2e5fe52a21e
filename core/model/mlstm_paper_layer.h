// mLSTM layer of the paper family (arXiv:2405.04517): x is the normed block input, (N, D) compute.
//   [xm | z] = x W_up^T;   cc = SiLU(conv(xm))                                           column-split
//   q = BD_q(cc), k = BD_k(cc), v = BD_v(xm): block-diagonal maps
//   [i_pre | f_pre] = [q|k|v] W_if^T + b_if: over all heads' columns
//   h = mLSTM(q, k, v, i_pre, f_pre);   g = (headnorm(h) + skip * cc) * SiLU(z)
//   y = dropout(g W_down^T)                                                              row-split
// Every linear map has a bias if use_bias; the convolution and the gates always have one.
#pragma once
#include <string>

#include "core/model/layer_context.h"
#include "core/model/layer_state.h"
#include "core/model/pass_shape.h"
#include "core/model/spec.h"

namespace carousel {

class MlstmPaperLayer {
 public:
  // Registers in `group`, with prefix (W = qk_dim = v_dim): proj_up.weight (2*W, D); conv.weight (W, K),
  // conv.bias; {q,k,v}.weight (W, block); {igate,fgate}_preact.weight (NH, 3*W), .bias; multihead_norm.weight
  // (W); skip (W); proj_down.weight (D, W). `block` is the block's index.
  MlstmPaperLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group,
                  int64_t block);

  struct Saved {
    Tensor xz;           // (N, 2*W) compute: xm, z
    Tensor conv;         // (N, W) compute: cc
    Tensor qkv;          // (N, 3*W) compute
    Tensor gates;        // (N, 2*NH) wide: i_pre, f_pre
    Tensor h;            // (N, W) compute
    Tensor denominator;  // (N, NH) wide
    Tensor m;            // (N, NH) wide
    Tensor mean, rstd;   // (N, NH) wide: of the head norm
    Tensor gated;        // (N, W) compute: input of the down-projection
  };
  struct Scratch {
    Tensor workspace;       // u8, of the mLSTM op
    Tensor dropped;         // (N, D) compute: gradient after dropout; undefined without dropout
    Tensor dgated;          // (N, W) compute
    Tensor dh;              // (N, W) compute
    Tensor dqkv;            // (N, 3*W) compute
    Tensor dgates;          // (N, 2*NH) wide
    Tensor dgates_rounded;  // (N, 2*NH) compute; undefined if compute == wide
    Tensor dconv;           // (N, W) compute
    Tensor dxz;             // (N, 2*W) compute
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
  MlstmShape Shape(int64_t B, int64_t T) const;
  CausalConvShape ConvShape(int64_t B, int64_t T) const;

  ModelSpec spec_;
  int64_t block_;
  int up_ = -1, up_bias_ = -1;
  int conv_weight_ = -1, conv_bias_ = -1;
  int q_ = -1, q_bias_ = -1;        // first of q, k, v
  int gate_ = -1, gate_bias_ = -1;  // first of igate_preact, fgate_preact
  int norm_weight_ = -1, skip_ = -1;
  int down_ = -1, down_bias_ = -1;
};
}  // namespace carousel
