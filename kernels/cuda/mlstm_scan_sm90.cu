// Choosing and launching the sm_90a scans (mlstm_scan_sm90.h).
#include "kernels/cuda/mlstm_scan_sm90.h"

#include "core/base/int_math.h"
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS {

int64_t MlstmSm90SharedBytes(MlstmRole role, int64_t DHQK, int64_t DHV) {
  const auto bytes = []<class C>() { return static_cast<int64_t>(C::kSharedBytes); };
  if (role == MlstmRole::kH) return mlstm_sm90::ForWidths<MlstmRole::kH>(DHQK, DHV, int64_t{0}, bytes);
  if (role == MlstmRole::kDV) return mlstm_sm90::ForWidths<MlstmRole::kDV>(DHQK, DHV, int64_t{0}, bytes);
  return 0;
}

bool MlstmSm90Supports(const DeviceInfo& device, MlstmRole role, int64_t DHQK, int64_t DHV) {
  const int64_t bytes = MlstmSm90SharedBytes(role, DHQK, DHV);
  return device.compute_capability == 90 && bytes > 0 && bytes <= device.max_shared_bytes;
}

void LaunchMlstmSm90(Context& context, MlstmRole role, const MlstmFastScanArgs& args) {
  CAROUSEL_CHECK(args.B > 0 && args.NH > 0 && args.num_tokens > 0 && args.num_segments > 0);
  CAROUSEL_CHECK_EQ(args.NC, CeilDiv(args.num_tokens, kMlstmChunk));
  CAROUSEL_CHECK(args.num_segments * args.chunks_per_segment >= args.NC &&
                 (args.num_segments - 1) * args.chunks_per_segment < args.NC);
  CAROUSEL_CHECK(MlstmSm90Writes(args.out));
  const bool launched = role == MlstmRole::kH    ? mlstm_sm90::LaunchH(context, args)
                        : role == MlstmRole::kDV ? mlstm_sm90::LaunchDV(context, args)
                                                 : false;
  CAROUSEL_CHECK_MSG(launched, "no sm_90a scan for this role and these head widths");
}

}  // namespace carousel::CAROUSEL_DEVICE_NS
