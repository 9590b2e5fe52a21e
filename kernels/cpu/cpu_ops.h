// CpuOps: Ops on the host. One file per op; each holds the specification in plain loops (for every dtype)
// and, for f32 and bf16, the call of the fast loops of simd/. A CpuOps serves one caller at a time.
#pragma once
#include <memory>

#include "core/ops.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/thread_pool.h"

namespace carousel::cpu {

class CpuOps final : public Ops {
 public:
  explicit CpuOps(const CpuOptions& options);
  ~CpuOps() override;

  void Fill(const FillArgs& a) override;
  void Cast(const CastArgs& a) override;
  void Add(const AddArgs& a) override;
  void Matmul(const MatmulArgs& a) override;
  void ColumnSum(const ColumnSumArgs& a) override;
  void EmbeddingForward(const EmbeddingForwardArgs& a) override;
  void EmbeddingBackward(const EmbeddingBackwardArgs& a) override;
  void RmsNormForward(const RmsNormForwardArgs& a) override;
  void RmsNormBackward(const RmsNormBackwardArgs& a) override;
  void LayerNormForward(const LayerNormForwardArgs& a) override;
  void LayerNormBackward(const LayerNormBackwardArgs& a) override;
  void SoftCapForward(const SoftCapForwardArgs& a) override;
  void SoftCapBackward(const SoftCapBackwardArgs& a) override;
  int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) const override;
  void MlstmForward(const MlstmForwardArgs& a) override;
  void MlstmBackward(const MlstmBackwardArgs& a) override;
  void MlstmSummary(const MlstmSummaryArgs& a) override;
  void MlstmFold(const MlstmFoldArgs& a) override;
  void MlstmSummaryBackward(const MlstmSummaryBackwardArgs& a) override;
  void MlstmFoldBackward(const MlstmFoldBackwardArgs& a) override;
  void HeadNormGateForward(const HeadNormGateForwardArgs& a) override;
  void HeadNormGateBackward(const HeadNormGateBackwardArgs& a) override;
  void Dropout(const DropoutArgs& a) override;
  void GluForward(const GluForwardArgs& a) override;
  void GluBackward(const GluBackwardArgs& a) override;
  void BlockLinearForward(const BlockLinearForwardArgs& a) override;
  void BlockLinearBackward(const BlockLinearBackwardArgs& a) override;
  void CausalConvForward(const CausalConvForwardArgs& a) override;
  void CausalConvBackward(const CausalConvBackwardArgs& a) override;
  int64_t SlstmWorkspaceBytes(const SlstmShape& shape, DType compute) const override;
  void SlstmForward(const SlstmForwardArgs& a) override;
  void SlstmBackward(const SlstmBackwardArgs& a) override;
  void CrossEntropy(const CrossEntropyArgs& a) override;
  void CrossEntropyStats(const CrossEntropyStatsArgs& a) override;
  void CrossEntropyFromStats(const CrossEntropyFromStatsArgs& a) override;
  void AdamW(const AdamWArgs& a) override;
  void SquaredNorm(const SquaredNormArgs& a) override;
  void SumExactly(const ExactSumArgs& a) override;
  void TensorStats(const TensorStatsArgs& a) override;
  void Digest(const DigestArgs& a) override;

 private:
  // Whether an op of this compute type runs on the fast loops.
  bool Fast(DType compute) const { return !reference_ && compute != DType::kF64; }
  // Room for `count` values that lives until the next call; grows, never shrinks.
  float* ScratchF32(int64_t count) { return scratch_f32_.Reserve(count); }
  double* ScratchF64(int64_t count) { return scratch_f64_.Reserve(count); }

  // The fast loops of compute type T: float, or uint16_t for bf16.
  template <class T>
  const NormKernels<T>& norm() const {
    if constexpr (sizeof(T) == 2) {
      return norm_bf16_;
    } else {
      return norm_f32_;
    }
  }
  template <class T>
  const ActivationKernels<T>& activation() const {
    if constexpr (sizeof(T) == 2) {
      return activation_bf16_;
    } else {
      return activation_f32_;
    }
  }
  // The bodies of the ops by type; T as above.
  template <class T>
  void FastRmsNormForward(const RmsNormForwardArgs& a);
  template <class T>
  void FastRmsNormBackward(const RmsNormBackwardArgs& a);
  template <class T>
  void FastLayerNormForward(const LayerNormForwardArgs& a);
  template <class T>
  void FastLayerNormBackward(const LayerNormBackwardArgs& a);
  template <class T>
  void FastHeadNormGateForward(const HeadNormGateForwardArgs& a);
  template <class T>
  void FastHeadNormGateBackward(const HeadNormGateBackwardArgs& a);
  template <class T>
  void FastGluForward(const GluForwardArgs& a);
  template <class T>
  void FastGluBackward(const GluBackwardArgs& a);
  template <class T>
  void FastCrossEntropy(const CrossEntropyArgs& a);
  void FastCrossEntropyStats(const CrossEntropyStatsArgs& a);
  template <class T>
  void FastCrossEntropyFromStats(const CrossEntropyFromStatsArgs& a);
  // y[c] += sum over rows of partial (rows, columns), the last step of a gradient of weights.
  void AddPartials(float* y, const float* partials, int64_t rows, int64_t columns);

  const bool reference_;
  const SimdLevel level_;
  const bool use_tiles_;
  ThreadPool pool_;
  const ElementwiseKernels& elementwise_;
  const NormKernels<float>& norm_f32_;
  const NormKernels<uint16_t>& norm_bf16_;
  const ActivationKernels<float>& activation_f32_;
  const ActivationKernels<uint16_t>& activation_bf16_;
  MatmulEngine matmul_;
  AlignedBuffer<float> scratch_f32_;
  AlignedBuffer<double> scratch_f64_;
};
}  // namespace carousel::cpu
