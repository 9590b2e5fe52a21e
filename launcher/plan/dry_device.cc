#include "launcher/plan/dry_device.h"

#include <cstring>

namespace carousel {

class DryDevice::DryOps final : public Ops {
 public:
  explicit DryOps(const Ops& like) : like_(like) {}

  int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) const override {
    return like_.MlstmWorkspaceBytes(shape, compute);
  }
  int64_t SlstmWorkspaceBytes(const SlstmShape& shape, DType compute) const override {
    return like_.SlstmWorkspaceBytes(shape, compute);
  }
  void Fill(const FillArgs&) override { ++num_ops; }
  void Cast(const CastArgs&) override { ++num_ops; }
  void Add(const AddArgs&) override { ++num_ops; }
  void Matmul(const MatmulArgs&) override { ++num_ops; }
  void ColumnSum(const ColumnSumArgs&) override { ++num_ops; }
  void EmbeddingForward(const EmbeddingForwardArgs&) override { ++num_ops; }
  void EmbeddingBackward(const EmbeddingBackwardArgs&) override { ++num_ops; }
  void RmsNormForward(const RmsNormForwardArgs&) override { ++num_ops; }
  void RmsNormBackward(const RmsNormBackwardArgs&) override { ++num_ops; }
  void LayerNormForward(const LayerNormForwardArgs&) override { ++num_ops; }
  void LayerNormBackward(const LayerNormBackwardArgs&) override { ++num_ops; }
  void SoftCapForward(const SoftCapForwardArgs&) override { ++num_ops; }
  void SoftCapBackward(const SoftCapBackwardArgs&) override { ++num_ops; }
  void MlstmForward(const MlstmForwardArgs&) override { ++num_ops; }
  void MlstmBackward(const MlstmBackwardArgs&) override { ++num_ops; }
  void MlstmSummary(const MlstmSummaryArgs&) override { ++num_ops; }
  void MlstmFold(const MlstmFoldArgs&) override { ++num_ops; }
  void MlstmSummaryBackward(const MlstmSummaryBackwardArgs&) override { ++num_ops; }
  void MlstmFoldBackward(const MlstmFoldBackwardArgs&) override { ++num_ops; }
  void HeadNormGateForward(const HeadNormGateForwardArgs&) override { ++num_ops; }
  void HeadNormGateBackward(const HeadNormGateBackwardArgs&) override { ++num_ops; }
  void Dropout(const DropoutArgs&) override { ++num_ops; }
  void GluForward(const GluForwardArgs&) override { ++num_ops; }
  void GluBackward(const GluBackwardArgs&) override { ++num_ops; }
  void BlockLinearForward(const BlockLinearForwardArgs&) override { ++num_ops; }
  void BlockLinearBackward(const BlockLinearBackwardArgs&) override { ++num_ops; }
  void CausalConvForward(const CausalConvForwardArgs&) override { ++num_ops; }
  void CausalConvBackward(const CausalConvBackwardArgs&) override { ++num_ops; }
  void SlstmForward(const SlstmForwardArgs&) override { ++num_ops; }
  void SlstmBackward(const SlstmBackwardArgs&) override { ++num_ops; }
  void CrossEntropy(const CrossEntropyArgs&) override { ++num_ops; }
  void CrossEntropyStats(const CrossEntropyStatsArgs&) override { ++num_ops; }
  void CrossEntropyFromStats(const CrossEntropyFromStatsArgs&) override { ++num_ops; }
  void AdamW(const AdamWArgs&) override { ++num_ops; }
  void SquaredNorm(const SquaredNormArgs&) override { ++num_ops; }
  void SumExactly(const ExactSumArgs&) override { ++num_ops; }
  void TensorStats(const TensorStatsArgs&) override { ++num_ops; }
  void Digest(const DigestArgs&) override { ++num_ops; }

  int64_t num_ops = 0;

 private:
  const Ops& like_;
};

DryDevice::DryDevice(Device& like) : like_(like), ops_(std::make_unique<DryOps>(like.ops())) {}
DryDevice::~DryDevice() = default;

void* DryDevice::Allocate(int64_t bytes) {
  static_cast<void>(bytes);
  return reinterpret_cast<void*>(uintptr_t{1} << 20);
}

void DryDevice::CopyToHost(void* host_destination, const void*, int64_t bytes) {
  if (bytes > 0) std::memset(host_destination, 0, static_cast<size_t>(bytes));
}

Ops& DryDevice::ops() { return *ops_; }
int64_t DryDevice::num_ops() const { return ops_->num_ops; }
}  // namespace carousel
