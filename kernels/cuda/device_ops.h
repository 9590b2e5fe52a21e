// DeviceOps: Ops as CUDA kernels, one file per op. The same sources are compiled twice: by nvcc for GPUs
// (namespace carousel::cuda) and by the host compiler for the emulation (namespace carousel::simt).
//
// Every method checks its arguments, chooses a configuration by a pure function of the dims and the device,
// enqueues on the context's stream and returns. No method waits, and none adds floating-point numbers
// atomically: two runs give the same bits.
#pragma once
#include "core/ops.h"
#include "kernels/cuda/context.h"

namespace carousel::CAROUSEL_DEVICE_NS {

class DeviceOps final : public Ops {
 public:
  explicit DeviceOps(Context* context) : context_(*context) {}  // the context must outlive this

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
  Context& context_;
};
}  // namespace carousel::CAROUSEL_DEVICE_NS
