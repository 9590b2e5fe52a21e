#include "kernels/cpu/mlstm.h"

#include <algorithm>

#include "kernels/cpu/mlstm_check.h"
#include "kernels/cpu/mlstm_head.h"
#include "kernels/cpu/mlstm_reference.h"
#include "kernels/cpu/tile_permission.h"

namespace carousel::cpu {

int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) {
  const int64_t reference_bytes = MlstmReferenceWorkspaceBytes(shape, compute);
  if (compute == DType::kF64) return reference_bytes;
  const MlstmHeadDims dims = MlstmDimsOf(shape, compute);
  const int64_t slot_bytes =
      std::max(MlstmSlotBytes(dims, MlstmPass::kForward), MlstmSlotBytes(dims, MlstmPass::kBackward));
  return std::max(reference_bytes, MlstmNumSlots(shape) * slot_bytes + kMlstmAlign);
}

bool MlstmTilesAvailable(SimdLevel level) { return level == SimdLevel::kV4 && RequestTilePermission(); }

void MlstmForward(const MlstmForwardArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles) {
  const MlstmShape& s = args.shape;
  const DType compute = args.q.dtype;
  CheckMlstmForward(args, MlstmWorkspaceBytes(s, compute));
  if (compute == DType::kF64) return MlstmReferenceForward(args, pool);
  const MlstmHeadDims dims = MlstmDimsOf(s, compute);
  const MlstmKernels& kernels = PickMlstmKernels(level, compute, use_tiles);
  const int64_t slot_bytes = MlstmSlotBytes(dims, MlstmPass::kForward);
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
                                   .scratch = CutMlstmScratch(scratch, dims, MlstmPass::kForward)};
    (s.T == 1 ? kernels.step : kernels.forward)(dims, pair);
  });
}

void MlstmBackward(const MlstmBackwardArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles) {
  const MlstmShape& s = args.shape;
  const DType compute = args.q.dtype;
  CheckMlstmBackward(args, MlstmWorkspaceBytes(s, compute));
  if (compute == DType::kF64) return MlstmReferenceBackward(args, pool);
  MlstmHeadDims dims = MlstmDimsOf(s, compute);
  dims.exact_normalizer_gradient = args.normalizer_gradient == NormalizerGradient::kExact;
  const MlstmKernels& kernels = PickMlstmKernels(level, compute, use_tiles);
  const int64_t slot_bytes = MlstmSlotBytes(dims, MlstmPass::kBackward);
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
                                    .scratch = CutMlstmScratch(scratch, dims, MlstmPass::kBackward)};
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
