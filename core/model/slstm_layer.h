// sLSTM layer (arXiv:2405.04517), the same in both families: x is the normed block input, (N, D) compute.
//   cc = SiLU(conv(x)), or x without a convolution
//   wx = [cc W_i | cc W_f | x W_z | x W_o], each W head-wise: NH blocks (D/NH, D/NH)     split by heads
//   y = sLSTM(wx, R, b);   out = headnorm(dropout(y))
// There is no projection after it: the feed-forward mixes the heads.
//
// Heads have nothing to do with each other, and a head needs all tokens. So the ranks of the tensor axis, and
// then those of the sequence axis, exchange tokens for heads (core/comm/head_exchange.h): each computes all
// B*T*S tokens of NH / (t*S) heads, and the result goes back the same way. Every parameter is split by heads
// over the tensor axis; ranks of the sequence axis hold the same ones, read those of their heads and add to
// their gradients only.
#pragma once
#include <string>

#include "core/comm/head_exchange.h"
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
  // REQUIRES: params.tensor_size() * (size of the sequence axis) divides NH.
  SlstmLayer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group, int64_t block);

  // Of what the cell computes on this rank: M = N*S rows, all tokens of the B sequences in order, and W =
  // D/(t*S) columns of H = NH/(t*S) heads.
  struct Saved {
    Tensor x;           // (M, W) compute: the input's columns; undefined with one rank
    Tensor conv;        // (M, W) compute: cc; undefined without a convolution
    Tensor gates;       // (M, 4*W) wide: wx, then what the cell keeps
    Tensor c, n, m;     // (M, W) wide: states after each token
    Tensor y;           // (M, W) compute: the cell's output
    Tensor dropped;     // (M, W) compute: dropout(y); undefined without dropout
    Tensor mean, rstd;  // (M, H) wide: of the head norm
  };
  struct Scratch {
    Tensor workspace;  // u8, of the sLSTM op
    Tensor dy;         // (M, W) compute
    Tensor dwx;        // (M, 4*W) compute
    Tensor dconv;      // (M, W) compute; undefined without a convolution
    struct {
      Tensor outside;  // (M, W) compute: the layer's result; its gradient, then that of x
      Tensor between;  // (N, D/t) compute: after one exchange and before the other; only with both
      HeadExchange::Workspace workspace;
    } exchange;  // undefined with one rank
    // Of this rank's heads, [gate][head] as the op takes them; undefined with one rank of the sequence axis,
    // where the parameters themselves lie so.
    struct {
      Tensor recurrent;   // (4*W, D/NH) compute
      Tensor bias;        // (4*W) wide
      Tensor drecurrent;  // (4*W, D/NH) wide
      Tensor dbias;       // (4*W) wide
    } packed;
    // Of Forward where gates are measured; undefined if they never are.
    struct {
      Tensor recurrent;   // (M, W) wide: R y_{t-1} + b of one gate
      Tensor taps, ones;  // (W, 2), (W, 1) compute: the convolution that gives y_{t-1}
    } measured;
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
    Tensor y;                 // (stream rows, D) compute out; undefined: only what Backward reads is wanted,
                              // of memory bound with `train`
    Tensor x;                 // (stream rows, D) compute
    LayerState initial = {};  // optional: where the sequences continue. Only with one rank
    LayerState last = {};     // optional out; may alias initial. Only with one rank
  };
  void Forward(const LayerContext&, const Memory&, const ForwardArgs&) const;

  // Sequences are taken to start from the zero state and nothing is known of a gradient of the last state.
  struct BackwardArgs {
    Tensor dx;      // (stream rows, D) compute out
    Tensor dy;      // (stream rows, D) compute
    Tensor x = {};  // (stream rows, D) compute: as forward; read only with one rank
  };
  void Backward(const LayerContext&, const Memory&, const BackwardArgs&) const;

 private:
  // What this rank computes: `width` columns, which begin at `first_column` of the tensor rank's D/t.
  struct Part {
    int64_t num_heads, width, first_column;
    int64_t head_dim, conv_kernel;
    bool is_whole;           // neither axis has a second rank
    bool shares_parameters;  // the sequence axis has one: the cell is a part of what the parameters are for
    SlstmShape Shape(int64_t B, int64_t T) const { return {.B = B, .T = T, .NH = num_heads, .D = head_dim}; }
    CausalConvShape ConvShape(int64_t B, int64_t T) const {
      return {.B = B, .T = T, .C = width, .K = conv_kernel};
    }
    // This part of a parameter, or of its gradient.
    Tensor Of(Tensor parameter) const { return parameter.Rows(first_column, width); }
  };
  Part PartOf(const ModelAxes& axes) const;
  // Where the cell's elements lie in the whole micro-batch's.
  ElementPlaces Places(const LayerContext&, const Part&) const;
  // The four gates' R and b of this rank's heads, one below the other.
  struct Recurrence {
    Tensor weight, bias;
  };
  Recurrence Weights(const LayerContext&, const Memory&, const Part&) const;
  // Where the op adds their gradients: to zeros if they must be added to the parameters' after it.
  Recurrence Gradients(const LayerContext&, const Memory&, const Part&) const;
  void AddGradients(const LayerContext&, const Part&, const Recurrence&) const;
  // The pre-activations of the input and forget gates, as the cell has them: wx, (M, 4*W), is what it was
  // given. Begin before the cell overwrites wx, End when y is there.
  void BeginMeasure(const LayerContext&, const Memory&, Tensor wx) const;
  void EndMeasure(const LayerContext&, const Memory&, const Part&, Tensor resets) const;
  // From the stream's rows to the cell's and back. With one rank both tensors are the same.
  void ToCell(const LayerContext&, const Memory&, Tensor cell, Tensor stream) const;
  void ToStream(const LayerContext&, const Memory&, Tensor stream, Tensor cell) const;

  ModelSpec spec_;
  int64_t block_;
  int64_t tensor_size_;
  int conv_weight_ = -1, conv_bias_ = -1;
  int gate_weight_ = -1;  // first of igate, fgate, zgate, ogate
  int recurrent_ = -1;    // first of the four recurrent weights
  int bias_ = -1;         // first of the four biases
  int norm_weight_ = -1;
};
}  // namespace carousel
