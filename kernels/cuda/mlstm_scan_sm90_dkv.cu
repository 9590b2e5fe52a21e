// The sm_90a scan that gives dk, k.dk and dv: the kernels of mlstm_scan_sm90_kernel.h for small heads.
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

bool LaunchDKV(Context& context, const MlstmFastScanArgs& args, const MlstmRows<bfloat16>& dv) {
  return ForWidthsOfDKV(args.DHQK, args.DHV, false, [&]<class C>() {
    LaunchConfig<C>(context, args, {.dv = dv, .dq = {}}, "MlstmSm90Kernel (dK, dV)");
    return true;
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
