#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/mlstm.h"
#include "kernels/cpu/mlstm_reference.h"
#include "kernels/cpu/tile_permission.h"

namespace carousel::cpu {
namespace {
SimdLevel ChosenLevel(const CpuOptions& options) {
  const SimdLevel highest = DetectSimdLevel();
  if (!options.simd_level.has_value()) return highest;
  CAROUSEL_CHECK_MSG(*options.simd_level <= highest,
                     std::string("this machine has no ") + NameOf(*options.simd_level));
  return *options.simd_level;
}
// A processor with matrix tiles has AVX-512 BF16, too.
const NormKernels<uint16_t>& PickNormKernelsBf16(SimdLevel level, [[maybe_unused]] bool use_tiles) {
#if defined(__x86_64__)
  if (use_tiles) return simd_tiles::GetNormKernelsBf16();
#endif
  return CAROUSEL_PICK_SIMD(level, GetNormKernelsBf16);
}
const ActivationKernels<uint16_t>& PickActivationKernelsBf16(SimdLevel level,
                                                             [[maybe_unused]] bool use_tiles) {
#if defined(__x86_64__)
  if (use_tiles) return simd_tiles::GetActivationKernelsBf16();
#endif
  return CAROUSEL_PICK_SIMD(level, GetActivationKernelsBf16);
}
}  // namespace

CpuOps::CpuOps(const CpuOptions& options)
    : reference_(options.reference),
      level_(ChosenLevel(options)),
      use_tiles_(options.use_tiles && level_ == SimdLevel::kV4 && RequestTilePermission()),
      pool_(options.num_threads),
      elementwise_(CAROUSEL_PICK_SIMD(level_, GetElementwiseKernels)),
      norm_f32_(CAROUSEL_PICK_SIMD(level_, GetNormKernelsF32)),
      norm_bf16_(PickNormKernelsBf16(level_, use_tiles_)),
      activation_f32_(CAROUSEL_PICK_SIMD(level_, GetActivationKernelsF32)),
      activation_bf16_(PickActivationKernelsBf16(level_, use_tiles_)),
      matmul_(pool_, elementwise_, level_, use_tiles_) {}

CpuOps::~CpuOps() = default;

int64_t CpuOps::MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) const {
  return cpu::MlstmWorkspaceBytes(shape, compute);
}
void CpuOps::MlstmForward(const MlstmForwardArgs& a) {
  if (reference_) return MlstmReferenceForward(a, pool_);
  cpu::MlstmForward(a, pool_, level_, use_tiles_);
}
void CpuOps::MlstmBackward(const MlstmBackwardArgs& a) {
  if (reference_) return MlstmReferenceBackward(a, pool_);
  cpu::MlstmBackward(a, pool_, level_, use_tiles_);
}
}  // namespace carousel::cpu
