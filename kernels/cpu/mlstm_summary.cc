#include "kernels/cpu/cpu_ops.h"

namespace carousel::cpu {
void CpuOps::MlstmSummary(const MlstmSummaryArgs&) { CheckFailed(__FILE__, __LINE__, "MlstmSummary"); }
void CpuOps::MlstmFold(const MlstmFoldArgs&) { CheckFailed(__FILE__, __LINE__, "MlstmFold"); }
void CpuOps::MlstmSummaryBackward(const MlstmSummaryBackwardArgs&) {
  CheckFailed(__FILE__, __LINE__, "MlstmSummaryBackward");
}
void CpuOps::MlstmFoldBackward(const MlstmFoldBackwardArgs&) {
  CheckFailed(__FILE__, __LINE__, "MlstmFoldBackward");
}
}  // namespace carousel::cpu
