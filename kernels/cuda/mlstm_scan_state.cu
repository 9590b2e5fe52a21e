// The tensor-core scans that give the states of segments: the kernels of mlstm_scan_kernel.h for every head
// width.
#include "kernels/cuda/mlstm_scan_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

bool LaunchForwardState(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kForwardState>(context, args, "MlstmScanKernel (forward state)");
}
bool LaunchBackwardState(Context& context, const MlstmFastScanArgs& args) {
  return LaunchRole<MlstmRole::kBackwardState>(context, args, "MlstmScanKernel (backward state)");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
