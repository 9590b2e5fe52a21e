// The sLSTM cell (formulas: core/ops.h and slstm_reference.h).
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/slstm_check.h"
#include "kernels/cpu/slstm_reference.h"

namespace carousel::cpu {

int64_t CpuOps::SlstmWorkspaceBytes(const SlstmShape& shape, DType compute) const {
  CheckSlstmShape(shape, compute);
  return SlstmReferenceWorkspaceBytes(shape, compute);
}

void CpuOps::SlstmForward(const SlstmForwardArgs& a) {
  CheckSlstmForward(a, SlstmWorkspaceBytes(a.shape, a.y.dtype));
  SlstmReferenceForward(a, pool_);
}

void CpuOps::SlstmBackward(const SlstmBackwardArgs& a) {
  CheckSlstmBackward(a, SlstmWorkspaceBytes(a.shape, a.y.dtype));
  SlstmReferenceBackward(a, pool_);
}
}  // namespace carousel::cpu
