#include "kernels/cuda/device_ops.h"

namespace carousel::CAROUSEL_DEVICE_NS {

void DeviceOps::HeadNormGateForward(const HeadNormGateForwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
void DeviceOps::HeadNormGateBackward(const HeadNormGateBackwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
}  // namespace carousel::CAROUSEL_DEVICE_NS
