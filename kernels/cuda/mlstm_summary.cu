#include "kernels/cuda/device_ops.h"

namespace carousel::CAROUSEL_DEVICE_NS {
void DeviceOps::MlstmSummary(const MlstmSummaryArgs&) { CheckFailed(__FILE__, __LINE__, "MlstmSummary"); }
void DeviceOps::MlstmFold(const MlstmFoldArgs&) { CheckFailed(__FILE__, __LINE__, "MlstmFold"); }
void DeviceOps::MlstmSummaryBackward(const MlstmSummaryBackwardArgs&) {
  CheckFailed(__FILE__, __LINE__, "MlstmSummaryBackward");
}
void DeviceOps::MlstmFoldBackward(const MlstmFoldBackwardArgs&) {
  CheckFailed(__FILE__, __LINE__, "MlstmFoldBackward");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
