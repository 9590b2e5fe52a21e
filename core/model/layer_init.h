// What several layers share: initial distributions (arXiv:2405.04517, arXiv:2503.13427), the mLSTM's shape,
// states.
#pragma once
#include <cmath>

#include "core/model/layer_state.h"
#include "core/model/param_store.h"
#include "core/model/spec.h"

namespace carousel {

// N(0, 2 / (5 D)): maps out of the stream.
inline ParamInit SmallInit(int64_t D) {
  return {.rule = InitRule::kNormal, .a = std::sqrt(2.0 / (5.0 * static_cast<double>(D)))};
}
// N(0, (2 / (num_blocks sqrt(D)))^2): maps back to the stream; num_blocks is the model's depth.
inline ParamInit WangInit(int64_t D, int64_t num_blocks) {
  return {.rule = InitRule::kNormal,
          .a = 2.0 / static_cast<double>(num_blocks) / std::sqrt(static_cast<double>(D))};
}
inline ParamInit IgateBiasInit(const ModelSpec& spec) {
  if (spec.igate_bias_std > 0) {
    return {.rule = InitRule::kNormal, .a = spec.igate_bias_std, .b = spec.igate_bias_init};
  }
  return {.rule = InitRule::kConstant, .a = spec.igate_bias_init};
}

// The mLSTM cell of either family.
inline MlstmShape MlstmShapeOf(const ModelSpec& spec, int64_t B, int64_t T) {
  return {.B = B,
          .T = T,
          .NH = spec.num_heads,
          .DHQK = spec.head_dim_qk(),
          .DHV = spec.head_dim_v(),
          .L = spec.chunk_length,
          .input_gate = spec.input_gate,
          .normalize = spec.input_gate == InputGate::kExponential || spec.normalize_sigmoid,
          .eps = spec.cell_eps};
}

// Zero is the start state. Category "states".
inline MlstmState BindMlstmState(Arena& arena, DType wide, const MlstmShape& s) {
  return {.C = arena.Persistent("states", wide, {s.B, s.NH, s.DHQK, s.DHV}),
          .n = arena.Persistent("states", wide, {s.B, s.NH, s.DHQK}),
          .m = arena.Persistent("states", wide, {s.B, s.NH})};
}
inline SlstmState BindSlstmState(Arena& arena, DType wide, const SlstmShape& s) {
  const auto bind = [&] { return arena.Persistent("states", wide, {s.B, s.NH * s.D}); };
  return {.y = bind(), .c = bind(), .n = bind(), .m = bind()};
}
// Not defined for a kernel of one token, which carries nothing.
inline Tensor BindConvState(Arena& arena, DType wide, const CausalConvShape& s) {
  return s.K > 1 ? arena.Persistent("states", wide, {s.B, s.K - 1, s.C}) : Tensor();
}
}  // namespace carousel
