// The tensor-core scan that gives dq and q.dq: the kernels of mlstm_scan_kernel.h for every head width.
#include "kernels/cuda/mlstm_scan_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

bool LaunchDQ(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kDQ>(context, args, "MlstmScanKernel (DQ)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
