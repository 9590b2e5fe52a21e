// The sm_90a scan that gives dq and q.dq: the kernels of mlstm_scan_sm90_kernel.h for every head width.
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

bool LaunchDQ(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kDQ>(context, args, "MlstmSm90Kernel (dQ)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
