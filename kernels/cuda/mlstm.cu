#include "kernels/cuda/device_ops.h"

namespace carousel::CAROUSEL_DEVICE_NS {

int64_t DeviceOps::MlstmWorkspaceBytes(const MlstmShape&, DType) const { CAROUSEL_CHECK_MSG(false, "not yet written"); return 0; }
void DeviceOps::MlstmForward(const MlstmForwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
void DeviceOps::MlstmBackward(const MlstmBackwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
}  // namespace carousel::CAROUSEL_DEVICE_NS
