// The tensor-core scan that gives the numerator times dh, and the signed normaliser, for the gradient of the
// denominator: the kernels of mlstm_scan_kernel.h for every head width.
#include "kernels/cuda/mlstm_scan_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

bool LaunchDelta(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kDelta>(context, args, "MlstmScanKernel (Delta)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
