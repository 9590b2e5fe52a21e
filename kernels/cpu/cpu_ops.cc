#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/mlstm.h"
#include "kernels/cpu/mlstm_reference.h"

namespace carousel::cpu {
namespace {
SimdLevel ChosenLevel(const CpuOptions& options) {
  const SimdLevel highest = DetectSimdLevel();
  if (!options.simd_level.has_value()) return highest;
  CAROUSEL_CHECK_MSG(*options.simd_level <= highest,
                     std::string("this machine has no ") + NameOf(*options.simd_level));
  return *options.simd_level;
}
}  // namespace

CpuOps::CpuOps(const CpuOptions& options)
    : reference_(options.reference),
      level_(ChosenLevel(options)),
      pool_(options.num_threads),
      elementwise_(CAROUSEL_PICK_SIMD(level_, GetElementwiseKernels)),
      norm_f32_(CAROUSEL_PICK_SIMD(level_, GetNormKernelsF32)),
      norm_bf16_(CAROUSEL_PICK_SIMD(level_, GetNormKernelsBf16)),
      activation_f32_(CAROUSEL_PICK_SIMD(level_, GetActivationKernelsF32)),
      activation_bf16_(CAROUSEL_PICK_SIMD(level_, GetActivationKernelsBf16)),
      matmul_(pool_, elementwise_) {}

CpuOps::~CpuOps() = default;

float* CpuOps::ScratchF32(int64_t count) {
  if (static_cast<int64_t>(scratch_f32_.size()) < count) scratch_f32_.resize(static_cast<size_t>(count));
  return scratch_f32_.data();
}
double* CpuOps::ScratchF64(int64_t count) {
  if (static_cast<int64_t>(scratch_f64_.size()) < count) scratch_f64_.resize(static_cast<size_t>(count));
  return scratch_f64_.data();
}

int64_t CpuOps::MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) const {
  return cpu::MlstmWorkspaceBytes(shape, compute);
}
void CpuOps::MlstmForward(const MlstmForwardArgs& a) {
  if (reference_) return MlstmReferenceForward(a, pool_);
  cpu::MlstmForward(a, pool_, level_);
}
void CpuOps::MlstmBackward(const MlstmBackwardArgs& a) {
  if (reference_) return MlstmReferenceBackward(a, pool_);
  cpu::MlstmBackward(a, pool_, level_);
}
}  // namespace carousel::cpu
