// The tensor-core scan that gives dk and k.dk: the kernels of mlstm_scan_kernel.h for every head width.
#include "kernels/cuda/mlstm_scan_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

bool LaunchDK(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kDK>(context, args, "MlstmScanKernel (DK)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
