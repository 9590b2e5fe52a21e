// mLSTM layer of the large family (arXiv:2503.13427): x is the normed block input, compute.
//   [q|k|v|o_pre] = x W_qkvo^T (+ b);   [i_pre|f_pre] = cap(x W_if^T + b_if)                 column-split
//   h = mLSTM(q, k, v, i_pre, f_pre);   g = sigmoid(o_pre) * headnorm(h);   y = g W_out^T (+ b)   row-split
//
// q, k, v, o and the gates i, f are registered one after the other, so that the forward is two fused matmuls
// (the gates' results are wide) and the backward is one for dx and one for all six weight gradients.
//
// A rank of the tensor axis has 1/t of the heads: NH, qk_dim and v_dim below are its own. Between the two
// matmuls it has all N tokens, x, y and their gradients are the stream's n = N / t rows. Crossings: forward a
// gather of x and a sum of y; backward a gather of dy, a sum of dx, and a gather of x again. How the cell
// runs on a sequence axis: core/model/mlstm_cell.h.
#pragma once
#include <string>

#include "core/model/layer_context.h"
#include "core/model/layer_state.h"
#include "core/model/mlstm_cell.h"
#include "core/model/pass_shape.h"
#include "core/model/spec.h"

namespace carousel {

class MlstmLayer {
 public:
  // Registers the parameters prefix + "q.weight", ... in `group`.
  MlstmLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group);

  // What backward reads. W = 2*qk_dim + 2*v_dim.
  struct Saved {
    Tensor qkvo;   // (N, W) compute: q, k, v, o_pre side by side; (N, v_dim), o_pre alone, where the cell
                   // keeps q, k and v itself
    Tensor gates;  // (N, 2*NH) wide: i_pre, f_pre after the soft cap
    Tensor h;      // (N, v_dim) compute
    Tensor mean, rstd;  // (N, NH) wide: of the head norm
  };
  struct Scratch {
    Tensor rows;    // (N, D) compute: rows of all ranks; undefined with one rank of the tensor axis
    Tensor qkv;     // (N, 2*qk_dim + v_dim) compute: q, k, v where the cell keeps them itself
    Tensor gated;   // (N, v_dim) compute: g; Backward has its gradient here, then itself once more
    Tensor dh;      // (N, v_dim) compute
    Tensor dgates;  // (N, 2*NH) wide
    Tensor dproj;   // (N, W + 2*NH) compute: gradients of q, k, v, o_pre, i_pre, f_pre side by side
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
  // Then, with the scratch as Backward left it: the gradients of the weights that multiply x, (n, D) compute
  // as forward. Apart, so that x need not be saved: the norm's backward, which comes between the two, has it.
  void WeightGradients(const LayerContext&, const Memory&, Tensor x) const;

 private:
  struct Projections;  // views of q, k, v and o_pre
  Projections ProjectionsOf(const Memory& memory, int64_t N) const;

  ModelSpec spec_;
  int64_t tensor_size_;
  int64_t NH_, qk_dim_, v_dim_;  // of this rank
  MlstmCell cell_;
  int qkvo_ = -1;       // first of q, k, v, ogate_preact, igate_preact, fgate_preact (weights)
  int gate_bias_ = -1;  // first of igate_preact, fgate_preact (biases)
  int qkvo_bias_ = -1;  // first of q, k, v, ogate_preact (biases); -1: none
  int norm_weight_ = -1, norm_bias_ = -1;
  int out_weight_ = -1, out_bias_ = -1;
};
}  // namespace carousel
