// ForwardingOps: passes every call on. A base for an Ops that changes or watches a few of them.
#pragma once
#include "core/ops.h"

namespace carousel {

class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(Ops& ops) : ops_(ops) {}  // must outlive this

  void BeginRange(const char* name) override { ops_.BeginRange(name); }
  void EndRange() override { ops_.EndRange(); }
  void Fill(const FillArgs& a) override { ops_.Fill(a); }
  void Cast(const CastArgs& a) override { ops_.Cast(a); }
  void Add(const AddArgs& a) override { ops_.Add(a); }
  void Matmul(const MatmulArgs& a) override { ops_.Matmul(a); }
  void ColumnSum(const ColumnSumArgs& a) override { ops_.ColumnSum(a); }
  void EmbeddingForward(const EmbeddingForwardArgs& a) override { ops_.EmbeddingForward(a); }
  void EmbeddingBackward(const EmbeddingBackwardArgs& a) override { ops_.EmbeddingBackward(a); }
  void RmsNormForward(const RmsNormForwardArgs& a) override { ops_.RmsNormForward(a); }
  void RmsNormBackward(const RmsNormBackwardArgs& a) override { ops_.RmsNormBackward(a); }
  void LayerNormForward(const LayerNormForwardArgs& a) override { ops_.LayerNormForward(a); }
  void LayerNormBackward(const LayerNormBackwardArgs& a) override { ops_.LayerNormBackward(a); }
  void SoftCapForward(const SoftCapForwardArgs& a) override { ops_.SoftCapForward(a); }
  void SoftCapBackward(const SoftCapBackwardArgs& a) override { ops_.SoftCapBackward(a); }
  int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) const override {
    return ops_.MlstmWorkspaceBytes(shape, compute);
  }
  void MlstmForward(const MlstmForwardArgs& a) override { ops_.MlstmForward(a); }
  void MlstmBackward(const MlstmBackwardArgs& a) override { ops_.MlstmBackward(a); }
  void MlstmSummary(const MlstmSummaryArgs& a) override { ops_.MlstmSummary(a); }
  void MlstmFold(const MlstmFoldArgs& a) override { ops_.MlstmFold(a); }
  void MlstmSummaryBackward(const MlstmSummaryBackwardArgs& a) override { ops_.MlstmSummaryBackward(a); }
  void MlstmFoldBackward(const MlstmFoldBackwardArgs& a) override { ops_.MlstmFoldBackward(a); }
  void HeadNormGateForward(const HeadNormGateForwardArgs& a) override { ops_.HeadNormGateForward(a); }
  void HeadNormGateBackward(const HeadNormGateBackwardArgs& a) override { ops_.HeadNormGateBackward(a); }
  void Dropout(const DropoutArgs& a) override { ops_.Dropout(a); }
  void GluForward(const GluForwardArgs& a) override { ops_.GluForward(a); }
  void GluBackward(const GluBackwardArgs& a) override { ops_.GluBackward(a); }
  void BlockLinearForward(const BlockLinearForwardArgs& a) override { ops_.BlockLinearForward(a); }
  void BlockLinearBackward(const BlockLinearBackwardArgs& a) override { ops_.BlockLinearBackward(a); }
  void CausalConvForward(const CausalConvForwardArgs& a) override { ops_.CausalConvForward(a); }
  void CausalConvBackward(const CausalConvBackwardArgs& a) override { ops_.CausalConvBackward(a); }
  int64_t SlstmWorkspaceBytes(const SlstmShape& shape, DType compute) const override {
    return ops_.SlstmWorkspaceBytes(shape, compute);
  }
  void SlstmForward(const SlstmForwardArgs& a) override { ops_.SlstmForward(a); }
  void SlstmBackward(const SlstmBackwardArgs& a) override { ops_.SlstmBackward(a); }
  void CrossEntropy(const CrossEntropyArgs& a) override { ops_.CrossEntropy(a); }
  void CrossEntropyStats(const CrossEntropyStatsArgs& a) override { ops_.CrossEntropyStats(a); }
  void CrossEntropyFromStats(const CrossEntropyFromStatsArgs& a) override { ops_.CrossEntropyFromStats(a); }
  void AdamW(const AdamWArgs& a) override { ops_.AdamW(a); }
  void SquaredNorm(const SquaredNormArgs& a) override { ops_.SquaredNorm(a); }
  void SumExactly(const ExactSumArgs& a) override { ops_.SumExactly(a); }
  void TensorStats(const TensorStatsArgs& a) override { ops_.TensorStats(a); }
  void Digest(const DigestArgs& a) override { ops_.Digest(a); }

 protected:
  Ops& ops_;
};
}  // namespace carousel
