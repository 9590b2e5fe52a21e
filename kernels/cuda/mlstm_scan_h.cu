// The tensor-core scan that gives h and the denominator: the kernels of mlstm_scan_kernel.h for every head
// width.
#include "kernels/cuda/mlstm_scan_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

bool LaunchH(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kH>(context, args, "MlstmScanKernel (H)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
