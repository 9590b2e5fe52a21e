// The tensor-core scan that gives dv: the kernels of mlstm_scan_kernel.h for every head width.
#include "kernels/cuda/mlstm_scan_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

bool LaunchDV(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kDV>(context, args, "MlstmScanKernel (DV)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
