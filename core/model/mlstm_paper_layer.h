// mLSTM layer of the paper family (arXiv:2405.04517): x is the normed block input, (N, D) compute.
//   [xm | z] = x W_up^T;   cc = SiLU(conv(xm))                                           column-split
//   q = BD_q(cc), k = BD_k(cc), v = BD_v(xm): block-diagonal maps
//   [i_pre | f_pre] = [q|k|v] W_if^T + b_if: over all heads' columns
//   h = mLSTM(q, k, v, i_pre, f_pre);   g = (headnorm(h) + skip * cc) * SiLU(z)
//   y = dropout(g W_down^T)                                                              row-split
// Every linear map has a bias if use_bias; the convolution and the gates always have one.
//
// A rank of the tensor axis has 1/t of the heads: NH and W below are its own, and everything between the
// first and the last matmul is of its own heads, but for the gates: those of every head read all heads' q, k
// and v. Each rank multiplies its columns, the sum over ranks is what the gates are, and a rank goes on with
// its own; in the backward pass all ranks gather the gradients of all gates. x, y and their gradients are the
// stream's n = N / t rows. On a sequence axis the convolution's last K-1 inputs go to the next rank
// (core/comm/conv_halo.h); how the cell runs: core/model/mlstm_cell.h.
#pragma once
#include <string>

#include "core/model/layer_context.h"
#include "core/model/layer_state.h"
#include "core/model/mlstm_cell.h"
#include "core/model/pass_shape.h"
#include "core/model/spec.h"

namespace carousel {

class MlstmPaperLayer {
 public:
  // Registers in `group`, with prefix (W = qk_dim = v_dim): proj_up.weight (2*W, D); conv.weight (W, K),
  // conv.bias; {q,k,v}.weight (W, block); {igate,fgate}_preact.weight (NH, 3*W), .bias; multihead_norm.weight
  // (W); skip (W); proj_down.weight (D, W). `block` is the block's index.
  // REQUIRES: params.tensor_size() divides the heads and the blocks of q, k, v.
  MlstmPaperLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group,
                  int64_t block);

  struct Saved {
    Tensor xz;           // (N, 2*W) compute: xm, z
    Tensor conv;         // (N, W) compute: cc
    Tensor conv_before;  // (B, K-1, W) wide: what the convolution saw before this rank's tokens; undefined
                         // with one rank of the sequence axis
    Tensor qkv;          // (N, 3*W) compute; undefined where the cell keeps its own
    Tensor gates;        // (N, 2*NH*t) wide: i_pre, f_pre of all ranks' heads
    Tensor h;            // (N, W) compute
    Tensor mean, rstd;   // (N, NH) wide: of the head norm
  };
  struct Scratch {
    Tensor rows;            // (N, D) compute: rows of all ranks; undefined with one rank of the tensor axis
    Tensor qkv;             // (N, 3*W) compute: where it is not saved
    Tensor conv_after;      // (B, K-1, W) wide: as conv_before: what goes to the next rank, the gradient of
    Tensor conv_gradient;   //   that, and the gradient of conv_before
    Tensor dropped;         // (n, D) compute: gradient after dropout; undefined without dropout
    Tensor gated;           // (N, W) compute: g; Backward has its gradient here, then itself once more
    Tensor dh;              // (N, W) compute
    Tensor dqkv;            // (N, 3*W) compute
    Tensor dgates;          // (N, 2*NH*t) wide
    Tensor dgates_by_rank;  // (N*t, 2*NH) wide: rank by rank; undefined with one rank of the tensor axis
    Tensor dgates_rounded;  // (N, 2*NH*t) compute; undefined if compute == wide
    Tensor dconv;           // (N, W) compute
    Tensor dxz;             // (N, 2*W) compute
  };
  struct Memory {
    Saved saved;
    Scratch scratch;
    MlstmCell::Memory cell;
  };
  // train: also what only Backward needs.
  Memory Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape, bool train) const;
  // For B sequences. Category "states".
  LayerState BindState(Arena& arena, DType wide, int64_t B) const;

  struct ForwardArgs {
    Tensor y;                 // (n, D) compute out; undefined: only what Backward reads is wanted
    Tensor x;                 // (n, D) compute
    LayerState initial = {};  // optional: where the sequences continue. States: one rank of both axes
    LayerState last = {};     // optional out; may alias initial
  };
  void Forward(const LayerContext&, const Memory&, const ForwardArgs&) const;

  // Sequences are taken to start from the zero state and nothing is known of a gradient of the last state.
  struct BackwardArgs {
    Tensor dx;  // (n, D) compute out
    Tensor dy;  // (n, D) compute
  };
  void Backward(const LayerContext&, const Memory&, const BackwardArgs&) const;
  // After it, as in MlstmLayer.
  void WeightGradients(const LayerContext&, const Memory&, Tensor x) const;

 private:
  CausalConvShape ConvShape(int64_t B, int64_t T) const;
  // Whether the sequence axis has a border that the convolution reaches over.
  bool has_halo(const ModelAxes& axes) const { return axes.sequence.size > 1 && spec_.conv_kernel > 1; }
  void ForwardConv(const LayerContext&, const Memory&, const ForwardArgs&) const;
  // dxm += and the parameters' gradients.
  void BackwardConv(const LayerContext&, const Memory&, Tensor dxm, Tensor dconv) const;
  void ForwardQkv(const LayerContext&, const Memory&, Tensor qkv) const;
  void ForwardGates(const LayerContext&, const Memory&, Tensor qkv) const;
  // Adds to dqkv what the gates of all heads give, of whose gradients scratch holds those of this rank's, and
  // the parameters' gradients.
  void BackwardGates(const LayerContext&, const Memory&, Tensor dqkv, Tensor qkv) const;

  ModelSpec spec_;
  int64_t block_;
  int64_t tensor_size_;
  int64_t NH_, W_;  // of this rank
  MlstmCell cell_;
  int up_ = -1, up_bias_ = -1;
  int conv_weight_ = -1, conv_bias_ = -1;
  int q_ = -1, q_bias_ = -1;        // first of q, k, v
  int gate_ = -1, gate_bias_ = -1;  // first of igate_preact, fgate_preact
  int norm_weight_ = -1, skip_ = -1;
  int down_ = -1, down_bias_ = -1;
};
}  // namespace carousel
