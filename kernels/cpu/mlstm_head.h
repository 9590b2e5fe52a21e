// What the fast passes of the mLSTM cell share on the host's side: sizes, scratch and views of one (batch,
// head) pair, and the choice of kernels.
#pragma once
#include "kernels/cpu/mlstm.h"
#include "kernels/cpu/mlstm_internal.h"
#include "kernels/cpu/simd/mlstm_kernels.h"

namespace carousel::cpu {

inline MlstmHeadDims MlstmDimsOf(const MlstmShape& s, DType compute) {
  const int64_t L = MlstmChunkLength(s);
  return {.T = s.T,
          .L = L,
          .K = s.DHQK,
          .V = s.DHV,
          .Lp = RoundUp(L, kMlstmPad),
          .Kp = RoundUp(s.DHQK, kMlstmPad),
          .Vp = RoundUp(s.DHV, kMlstmPad),
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.DHQK))),
          .eps = static_cast<float>(s.eps),
          .bf16 = compute == DType::kBF16,
          .sigmoid_input_gate = s.input_gate == InputGate::kSigmoid,
          .normalize = s.normalize,
          .exact_normalizer_gradient = true};
}

enum class MlstmPass { kForward, kBackward };

// Cuts the scratch of one pair out of `scratch`. Forward keeps one state (the passes over segments do with
// the same scratch), backward one before every chunk and the last.
inline MlstmHeadScratch CutMlstmScratch(MlstmScratch& scratch, const MlstmHeadDims& d, MlstmPass pass) {
  const auto take = [&](std::initializer_list<float**> members, int64_t num_elems) {
    for (float** const member : members) *member = scratch.Take<float>(num_elems);
  };
  MlstmHeadScratch x = {};
  take({&x.f, &x.g, &x.w, &x.m, &x.floor, &x.alpha, &x.a, &x.rho, &x.inverse, &x.decay_row}, d.Lp);
  take({&x.partial}, d.Lp * 16);
  x.q = scratch.Take<float>(d.Lp * d.Kp);
  x.k = scratch.Take<float>(d.Lp * d.Kp);
  x.v = scratch.Take<float>(d.Lp * d.Vp);
  take({&x.pack_LK[0], &x.pack_LK[1]}, d.Lp * d.Kp);
  take({&x.u, &x.pack_LV[0]}, d.Lp * d.Vp);
  take({&x.S, &x.pack_LL}, d.Lp * d.Lp);
  take({&x.pack_KV}, d.Kp * d.Vp);
  const int64_t num_states = pass == MlstmPass::kForward ? 1 : CeilDiv(d.T, d.L) + 1;
  take({&x.C}, num_states * d.Kp * d.Vp);
  take({&x.n}, num_states * d.Kp);
  take({&x.dn}, d.Kp);
  if (pass == MlstmPass::kBackward) {
    take({&x.dq, &x.dk}, d.Lp * d.Kp);
    take({&x.dv, &x.pack_LV[1]}, d.Lp * d.Vp);
    take({&x.G}, d.Lp * d.Lp);
    take({&x.dC}, d.Kp * d.Vp);
  }
  return x;
}
inline int64_t MlstmSlotBytes(const MlstmHeadDims& dims, MlstmPass pass) {
  MlstmScratch count(nullptr);
  CutMlstmScratch(count, dims, pass);
  return count.used_bytes();
}

inline MlstmComputeRows ComputeRows(const Tensor& x, const MlstmShape& s, int64_t b, int64_t head,
                                    int64_t width) {
  const int64_t offset = b * s.T * x.row_stride + head * width;
  return {static_cast<std::byte*>(x.data) + offset * SizeOf(x.dtype), x.row_stride};
}
inline MlstmWideRows WideRows(const Tensor& x, const MlstmShape& s, int64_t b, int64_t head) {
  const HeadRows<float> rows = HeadRowsOf<float>(x, s, b, head, 1);
  return {rows.data, rows.row_stride};
}
inline MlstmHeadState StateOf(const MlstmState& state, const MlstmShape& s, int64_t b, int64_t head) {
  const HeadState<float> view = HeadStateOf<float>(state, s, b, head);
  return {view.C, view.n, view.m};
}

inline const MlstmKernels& PickMlstmKernels(SimdLevel level, DType compute, bool use_tiles) {
#if defined(__x86_64__)
  if (use_tiles && compute == DType::kBF16 && MlstmTilesAvailable(level))
    return simd_tiles::GetMlstmKernels();
#endif
  return CAROUSEL_PICK_SIMD(level, GetMlstmKernels);
}
}  // namespace carousel::cpu
