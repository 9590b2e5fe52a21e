// RangedOps: another Ops, with a profiler's range around every op, named after it.
#pragma once
#include "core/ops.h"
#include "kernels/cuda/nvtx.h"

namespace carousel::CAROUSEL_DEVICE_NS {

class RangedOps final : public Ops {
 public:
  explicit RangedOps(Ops* ops) : ops_(*ops) {}  // must outlive this

  void BeginRange(const char* name) override { nvtx::Push(name); }
  void EndRange() override { nvtx::Pop(); }
  int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) const override {
    return ops_.MlstmWorkspaceBytes(shape, compute);
  }
  int64_t SlstmWorkspaceBytes(const SlstmShape& shape, DType compute) const override {
    return ops_.SlstmWorkspaceBytes(shape, compute);
  }
#define CAROUSEL_RANGED_OP(Op, Args)   \
  void Op(const Args& args) override { \
    const OpsRange range(*this, #Op);  \
    ops_.Op(args);                     \
  }
  CAROUSEL_RANGED_OP(Fill, FillArgs)
  CAROUSEL_RANGED_OP(Cast, CastArgs)
  CAROUSEL_RANGED_OP(Add, AddArgs)
  CAROUSEL_RANGED_OP(Matmul, MatmulArgs)
  CAROUSEL_RANGED_OP(ColumnSum, ColumnSumArgs)
  CAROUSEL_RANGED_OP(EmbeddingForward, EmbeddingForwardArgs)
  CAROUSEL_RANGED_OP(EmbeddingBackward, EmbeddingBackwardArgs)
  CAROUSEL_RANGED_OP(RmsNormForward, RmsNormForwardArgs)
  CAROUSEL_RANGED_OP(RmsNormBackward, RmsNormBackwardArgs)
  CAROUSEL_RANGED_OP(LayerNormForward, LayerNormForwardArgs)
  CAROUSEL_RANGED_OP(LayerNormBackward, LayerNormBackwardArgs)
  CAROUSEL_RANGED_OP(SoftCapForward, SoftCapForwardArgs)
  CAROUSEL_RANGED_OP(SoftCapBackward, SoftCapBackwardArgs)
  CAROUSEL_RANGED_OP(MlstmForward, MlstmForwardArgs)
  CAROUSEL_RANGED_OP(MlstmBackward, MlstmBackwardArgs)
  CAROUSEL_RANGED_OP(MlstmSummary, MlstmSummaryArgs)
  CAROUSEL_RANGED_OP(MlstmFold, MlstmFoldArgs)
  CAROUSEL_RANGED_OP(MlstmSummaryBackward, MlstmSummaryBackwardArgs)
  CAROUSEL_RANGED_OP(MlstmFoldBackward, MlstmFoldBackwardArgs)
  CAROUSEL_RANGED_OP(HeadNormGateForward, HeadNormGateForwardArgs)
  CAROUSEL_RANGED_OP(HeadNormGateBackward, HeadNormGateBackwardArgs)
  CAROUSEL_RANGED_OP(Dropout, DropoutArgs)
  CAROUSEL_RANGED_OP(GluForward, GluForwardArgs)
  CAROUSEL_RANGED_OP(GluBackward, GluBackwardArgs)
  CAROUSEL_RANGED_OP(BlockLinearForward, BlockLinearForwardArgs)
  CAROUSEL_RANGED_OP(BlockLinearBackward, BlockLinearBackwardArgs)
  CAROUSEL_RANGED_OP(CausalConvForward, CausalConvForwardArgs)
  CAROUSEL_RANGED_OP(CausalConvBackward, CausalConvBackwardArgs)
  CAROUSEL_RANGED_OP(SlstmForward, SlstmForwardArgs)
  CAROUSEL_RANGED_OP(SlstmBackward, SlstmBackwardArgs)
  CAROUSEL_RANGED_OP(CrossEntropy, CrossEntropyArgs)
  CAROUSEL_RANGED_OP(CrossEntropyStats, CrossEntropyStatsArgs)
  CAROUSEL_RANGED_OP(CrossEntropyFromStats, CrossEntropyFromStatsArgs)
  CAROUSEL_RANGED_OP(AdamW, AdamWArgs)
  CAROUSEL_RANGED_OP(SquaredNorm, SquaredNormArgs)
  CAROUSEL_RANGED_OP(SumExactly, ExactSumArgs)
  CAROUSEL_RANGED_OP(TensorStats, TensorStatsArgs)
  CAROUSEL_RANGED_OP(Digest, DigestArgs)
#undef CAROUSEL_RANGED_OP

 private:
  Ops& ops_;
};
}  // namespace carousel::CAROUSEL_DEVICE_NS
