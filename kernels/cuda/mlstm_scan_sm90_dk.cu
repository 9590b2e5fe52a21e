// The sm_90a scan that gives dk and k.dk: the kernels of mlstm_scan_sm90_kernel.h for every head width.
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

bool LaunchDK(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kDK>(context, args, "MlstmSm90Kernel (dK)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
