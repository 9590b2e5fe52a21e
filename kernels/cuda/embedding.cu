#include "kernels/cuda/device_ops.h"

namespace carousel::CAROUSEL_DEVICE_NS {

void DeviceOps::EmbeddingForward(const EmbeddingForwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
void DeviceOps::EmbeddingBackward(const EmbeddingBackwardArgs&) { CAROUSEL_CHECK_MSG(false, "not yet written"); }
}  // namespace carousel::CAROUSEL_DEVICE_NS
