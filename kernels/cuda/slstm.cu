#include "kernels/cuda/device_ops.h"

namespace carousel::CAROUSEL_DEVICE_NS {

int64_t DeviceOps::SlstmWorkspaceBytes(const SlstmShape&, DType) const { CAROUSEL_CHECK_MSG(false, "not yet written"); return 0; }
void DeviceOps::SlstmForward(const SlstmForwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
void DeviceOps::SlstmBackward(const SlstmBackwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
}  // namespace carousel::CAROUSEL_DEVICE_NS
