// The sm_90a scan that gives dv: the kernels of mlstm_scan_sm90_kernel.h for every head width.
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

bool LaunchDV(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kDV>(context, args, "MlstmSm90Kernel (dV)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
