// The sm_90a scan that gives h and the denominator: the kernels of mlstm_scan_sm90_kernel.h for every head
// width.
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

bool LaunchH(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kH>(context, args, "MlstmSm90Kernel (H)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
