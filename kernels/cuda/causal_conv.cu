#include "kernels/cuda/device_ops.h"

namespace carousel::CAROUSEL_DEVICE_NS {

void DeviceOps::CausalConvForward(const CausalConvForwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
void DeviceOps::CausalConvBackward(const CausalConvBackwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
}  // namespace carousel::CAROUSEL_DEVICE_NS
