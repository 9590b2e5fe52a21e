// MlstmCell: the mLSTM cell of a layer on any sequence axis. A rank has q, k, v and the gates of its own
// tokens and all heads that it shares with the ranks of the sequence axis, and gets h of the same.
//   one rank: the ops alone.
//   kState: a rank computes its own tokens, from the state that core/comm/sequence_carry.h brings.
//   kHeads: the ranks exchange tokens for heads (core/comm/head_exchange.h), each computes all tokens of NH/S
//     heads, and h goes back; in the backward pass dh goes there and dq, dk, dv and the gates' gradients come
//     back.
// Both compute the same function. The mode is chosen when memory is bound (core/model/sequence_choice.h).
#pragma once
#include "core/comm/sequence_carry.h"
#include "core/model/layer_context.h"
#include "core/model/pass_shape.h"
#include "core/model/spec.h"

namespace carousel {

class MlstmCell {
 public:
  // num_heads: of this rank of the tensor axis.
  MlstmCell(const ModelSpec& spec, int64_t num_heads);

  // Rows of q, k, v, h in the layout that the op runs on: kHeads: (S*N, width/S); else (N, width).
  struct Memory {
    SequenceMode mode = SequenceMode::kAuto;  // kAuto: one rank
    Tensor denominator, m;                    // saved: (N, NH) or (S*N, NH/S) wide
    Tensor workspace;                         // scratch: u8, of the op
    SequenceCarry::Memory carry;              // kState
    struct {                                  // kHeads, saved: what backward reads
      Tensor qkv;    // (N * (2*NH*DHQK + NH*DHV)) compute: q, k, v one after the other
      Tensor h;      // (S*N, NH*DHV/S) compute
      Tensor gates;  // (2 * N*NH) wide: i_pre, f_pre one after the other
    } heads;
    struct {                           // kHeads, scratch
      Tensor exchange, exchange_wide;  // of the exchange
      Tensor dh, dqkv, dgates;         // as h, qkv, gates; only with `train`
    } scratch;
    // Whether Backward reads q, k, v and the gates again from the caller: not in kHeads.
    bool reads_inputs_again() const { return mode != SequenceMode::kHeads; }
  };
  // The mode that Bind will choose: kAuto with one rank.
  SequenceMode ModeFor(const PassShape& shape, DType compute) const;
  // train: also what only Backward needs.
  Memory Bind(Arena& arena, const Ops& ops, DType compute, const PassShape& shape, bool train) const;
  // For B sequences. Category "states".
  MlstmState BindState(Arena& arena, DType wide, int64_t B) const;

  struct ForwardArgs {
    Tensor h;                 // (N, NH*DHV) compute out, strided
    Tensor q, k, v;           // (N, NH*DHQK), (N, NH*DHQK), (N, NH*DHV) compute, strided
    Tensor i_pre, f_pre;      // (N, NH) wide, strided
    MlstmState initial = {};  // optional: where the sequences continue. Only with one rank
    MlstmState last = {};     // optional out; may alias initial. Only with one rank
  };
  void Forward(const LayerContext&, const Memory&, const ForwardArgs&) const;

  struct BackwardArgs {
    Tensor dq, dk, dv;                  // compute out, strided
    Tensor di_pre, df_pre;              // wide out, strided
    Tensor dh;                          // (N, NH*DHV) compute, strided
    Tensor q, k, v, i_pre, f_pre = {};  // as forward; not read unless Memory::reads_inputs_again()
    Tensor h;                           // as forward; likewise
  };
  void Backward(const LayerContext&, const Memory&, const BackwardArgs&) const;

 private:
  // Of T tokens of this rank's heads, and of one rank's part of them in kHeads.
  MlstmShape Shape(int64_t B, int64_t T, int64_t head_parts = 1) const;

  ModelSpec spec_;
  int64_t NH_;
};
}  // namespace carousel
