// MlstmCell: the mLSTM cell of a layer on any sequence axis. A rank has q, k, v and the gates of its own
// tokens and all heads that it shares with the ranks of the sequence axis, and gets h of the same.
//   one rank: the ops alone.
//   kState: a rank computes its own tokens, from the state that core/comm/sequence_carry.h brings.
//   kHeads: the ranks exchange tokens for heads (core/comm/head_exchange.h), each computes all tokens of NH/S
//     heads, and h goes back; in the backward pass dh goes there and dq, dk, dv and the gates' gradients come
//     back. Two exchanges in each pass.
// Both compute the same function. The mode is chosen when memory is bound (core/model/sequence_choice.h).
#pragma once
#include "core/comm/head_exchange.h"
#include "core/comm/sequence_carry.h"
#include "core/model/layer_context.h"
#include "core/model/pass_shape.h"
#include "core/model/spec.h"

namespace carousel {

class MlstmCell {
 public:
  // num_heads: of this rank of the tensor axis.
  MlstmCell(const ModelSpec& spec, int64_t num_heads);

  struct Memory {
    SequenceMode mode = SequenceMode::kAuto;  // kAuto: one rank
    Tensor denominator, m;                    // saved: (N, NH) wide; kHeads: (S*N, NH/S)
    Tensor workspace;                         // scratch: u8, of the op
    SequenceCarry::Memory carry;              // kState
    // kHeads: all M = S*N tokens of a part of the heads, NH/S.
    struct Heads {
      Tensor qkv;                        // saved: (M, (2*NH*DHQK + NH*DHV)/S) compute: q, k, v side by side
      Tensor gates;                      // saved: (M, 2*NH/S) wide: i_pre, f_pre
      Tensor h;                          // saved: (M, NH*DHV/S) compute
      HeadExchange::Workspace exchange;  // scratch
      Tensor dqkv, dgates;               // of Backward, in exchange.received: as qkv and gates
      Tensor dh;                         // scratch of Backward: as h
    } heads;
    // Whether Backward reads q, k, v, h and the gates of BackwardArgs: not in kHeads.
    bool reads_inputs() const { return mode != SequenceMode::kHeads; }
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

  // Sequences are taken to start from the zero state and nothing is known of a gradient of the last state.
  struct BackwardArgs {
    Tensor dq, dk, dv;                      // compute out, strided
    Tensor di_pre, df_pre;                  // wide out, strided
    Tensor dh;                              // (N, NH*DHV) compute, strided
    Tensor q = {}, k = {}, v = {}, h = {};  // as forward; may be undefined if not reads_inputs()
    Tensor i_pre = {}, f_pre = {};          // likewise
  };
  void Backward(const LayerContext&, const Memory&, const BackwardArgs&) const;

 private:
  MlstmShape Shape(int64_t B, int64_t T, int64_t heads) const;
  MlstmShape PassShapeOf(const LayerContext&, const Memory&) const;  // what the op runs on

  ModelSpec spec_;
  int64_t NH_;
};
}  // namespace carousel
