#include "kernels/cpu/mlstm.h"

#include <algorithm>

#include "kernels/cpu/mlstm_check.h"
#include "kernels/cpu/mlstm_internal.h"
#include "kernels/cpu/mlstm_reference.h"
#include "kernels/cpu/simd/mlstm_kernels.h"
#include "kernels/cpu/tile_permission.h"

namespace carousel::cpu {
namespace {

MlstmHeadDims DimsOf(const MlstmShape& s, DType compute) {
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

enum class Pass { kForward, kBackward };

// Cuts the scratch of one pair out of `scratch`. Forward keeps one state, backward one before every chunk and
// the last.
MlstmHeadScratch CutScratch(MlstmScratch& scratch, const MlstmHeadDims& d, Pass pass) {
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
  const int64_t num_states = pass == Pass::kForward ? 1 : CeilDiv(d.T, d.L) + 1;
  take({&x.C}, num_states * d.Kp * d.Vp);
  take({&x.n}, num_states * d.Kp);
  if (pass == Pass::kBackward) {
    take({&x.dq, &x.dk}, d.Lp * d.Kp);
    take({&x.dv, &x.pack_LV[1]}, d.Lp * d.Vp);
    take({&x.G}, d.Lp * d.Lp);
    take({&x.dC}, d.Kp * d.Vp);
    take({&x.dn}, d.Kp);
  }
  return x;
}
int64_t SlotBytes(const MlstmHeadDims& dims, Pass pass) {
  MlstmScratch count(nullptr);
  CutScratch(count, dims, pass);
  return count.used_bytes();
}

MlstmComputeRows ComputeRows(const Tensor& x, const MlstmShape& s, int64_t b, int64_t head, int64_t width) {
  const int64_t offset = b * s.T * x.row_stride + head * width;
  return {static_cast<std::byte*>(x.data) + offset * SizeOf(x.dtype), x.row_stride};
}
MlstmWideRows WideRows(const Tensor& x, const MlstmShape& s, int64_t b, int64_t head) {
  const HeadRows<float> rows = HeadRowsOf<float>(x, s, b, head, 1);
  return {rows.data, rows.row_stride};
}
MlstmHeadState StateOf(const MlstmState& state, const MlstmShape& s, int64_t b, int64_t head) {
  const HeadState<float> view = HeadStateOf<float>(state, s, b, head);
  return {view.C, view.n, view.m};
}

const MlstmKernels& PickKernels(SimdLevel level, DType compute, bool use_tiles) {
#if defined(__x86_64__)
  if (use_tiles && compute == DType::kBF16 && MlstmTilesAvailable(level))
    return simd_tiles::GetMlstmKernels();
#endif
  return CAROUSEL_PICK_SIMD(level, GetMlstmKernels);
}
}  // namespace

int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) {
  const int64_t reference_bytes = MlstmReferenceWorkspaceBytes(shape, compute);
  if (compute == DType::kF64) return reference_bytes;
  const MlstmHeadDims dims = DimsOf(shape, compute);
  const int64_t slot_bytes = std::max(SlotBytes(dims, Pass::kForward), SlotBytes(dims, Pass::kBackward));
  return std::max(reference_bytes, MlstmNumSlots(shape) * slot_bytes + kMlstmAlign);
}

bool MlstmTilesAvailable(SimdLevel level) { return level == SimdLevel::kV4 && RequestTilePermission(); }

void MlstmForward(const MlstmForwardArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles) {
  const MlstmShape& s = args.shape;
  const DType compute = args.q.dtype;
  CheckMlstmForward(args, MlstmWorkspaceBytes(s, compute));
  if (compute == DType::kF64) return MlstmReferenceForward(args, pool);
  const MlstmHeadDims dims = DimsOf(s, compute);
  const MlstmKernels& kernels = PickKernels(level, compute, use_tiles);
  const int64_t slot_bytes = SlotBytes(dims, Pass::kForward);
  ForEachHead(s, args.workspace, slot_bytes, pool, [&](int64_t b, int64_t head, std::byte* slot) {
    MlstmScratch scratch(slot);
    const MlstmHeadForward pair = {.h = ComputeRows(args.h, s, b, head, s.DHV),
                                   .denominator = WideRows(args.denominator, s, b, head),
                                   .m = WideRows(args.m, s, b, head),
                                   .last = StateOf(args.last, s, b, head),
                                   .q = ComputeRows(args.q, s, b, head, s.DHQK),
                                   .k = ComputeRows(args.k, s, b, head, s.DHQK),
                                   .v = ComputeRows(args.v, s, b, head, s.DHV),
                                   .i_pre = WideRows(args.i_pre, s, b, head),
                                   .f_pre = WideRows(args.f_pre, s, b, head),
                                   .reset = ResetsOf(args.reset, s, b),
                                   .initial = StateOf(args.initial, s, b, head),
                                   .scratch = CutScratch(scratch, dims, Pass::kForward)};
    (s.T == 1 ? kernels.step : kernels.forward)(dims, pair);
  });
}

void MlstmBackward(const MlstmBackwardArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles) {
  const MlstmShape& s = args.shape;
  const DType compute = args.q.dtype;
  CheckMlstmBackward(args, MlstmWorkspaceBytes(s, compute));
  if (compute == DType::kF64) return MlstmReferenceBackward(args, pool);
  MlstmHeadDims dims = DimsOf(s, compute);
  dims.exact_normalizer_gradient = args.normalizer_gradient == NormalizerGradient::kExact;
  const MlstmKernels& kernels = PickKernels(level, compute, use_tiles);
  const int64_t slot_bytes = SlotBytes(dims, Pass::kBackward);
  ForEachHead(s, args.workspace, slot_bytes, pool, [&](int64_t b, int64_t head, std::byte* slot) {
    MlstmScratch scratch(slot);
    const MlstmHeadBackward pair = {.dq = ComputeRows(args.dq, s, b, head, s.DHQK),
                                    .dk = ComputeRows(args.dk, s, b, head, s.DHQK),
                                    .dv = ComputeRows(args.dv, s, b, head, s.DHV),
                                    .di_pre = WideRows(args.di_pre, s, b, head),
                                    .df_pre = WideRows(args.df_pre, s, b, head),
                                    .dinitial = StateOf(args.dinitial, s, b, head),
                                    .dh = ComputeRows(args.dh, s, b, head, s.DHV),
                                    .dlast = StateOf(args.dlast, s, b, head),
                                    .q = ComputeRows(args.q, s, b, head, s.DHQK),
                                    .k = ComputeRows(args.k, s, b, head, s.DHQK),
                                    .v = ComputeRows(args.v, s, b, head, s.DHV),
                                    .i_pre = WideRows(args.i_pre, s, b, head),
                                    .f_pre = WideRows(args.f_pre, s, b, head),
                                    .reset = ResetsOf(args.reset, s, b),
                                    .initial = StateOf(args.initial, s, b, head),
                                    .h = ComputeRows(args.h, s, b, head, s.DHV),
                                    .denominator = WideRows(args.denominator, s, b, head),
                                    .m = WideRows(args.m, s, b, head),
                                    .scratch = CutScratch(scratch, dims, Pass::kBackward)};
    kernels.backward(dims, pair);
  });
}

void MlstmForward(const MlstmForwardArgs& args, ThreadPool& pool, SimdLevel level) {
  MlstmForward(args, pool, level, /*use_tiles=*/true);
}
void MlstmBackward(const MlstmBackwardArgs& args, ThreadPool& pool, SimdLevel level) {
  MlstmBackward(args, pool, level, /*use_tiles=*/true);
}
}  // namespace carousel::cpu
