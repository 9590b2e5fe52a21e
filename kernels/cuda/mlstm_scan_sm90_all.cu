// The sm_90a scans that give dq, dk, dv and their dot products together, and the states that they need: the
// kernels of mlstm_scan_sm90_kernel.h and mlstm_scan_sm90_save.h for small heads.
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

bool LaunchStates(Context& context, const MlstmFastScanArgs& args) {
  return ForWidthsOfAll<Sm90Gives::kStates>(args.DHQK, args.DHV, false, [&]<class C>() {
    LaunchConfig<C>(context, args, /*more=*/{}, "MlstmSm90SaveKernel");
    return true;
  });
}
bool LaunchAll(Context& context, const MlstmFastScanArgs& args, const MoreOutputs& more) {
  return ForWidthsOfAll<Sm90Gives::kAll>(args.DHQK, args.DHV, false, [&]<class C>() {
    LaunchConfig<C>(context, args, more, "MlstmSm90Kernel (dQ, dK, dV)");
    return true;
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
