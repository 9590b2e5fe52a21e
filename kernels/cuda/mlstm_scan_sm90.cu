// Choosing and launching the sm_90a scans (mlstm_scan_sm90.h).
#include "kernels/cuda/mlstm_scan_sm90.h"

#include <algorithm>

#include "core/base/int_math.h"
#include "kernels/cuda/mlstm_scan.h"
#include "kernels/cuda/mlstm_scan_sm90_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS {

namespace {
// fn.operator()<role>() for the roles that have such scans; otherwise `otherwise`.
template <class R, class Fn>
R ForRole(MlstmRole role, R otherwise, Fn&& fn) {
  switch (role) {
    case MlstmRole::kH:
      return fn.template operator()<MlstmRole::kH>();
    case MlstmRole::kDQ:
      return fn.template operator()<MlstmRole::kDQ>();
    case MlstmRole::kDV:
      return fn.template operator()<MlstmRole::kDV>();
    case MlstmRole::kDK:
      return fn.template operator()<MlstmRole::kDK>();
    case MlstmRole::kDelta:
    case MlstmRole::kForwardState:
    case MlstmRole::kBackwardState:
      break;
  }
  return otherwise;
}
int AnchorParts(int64_t DHQK, int64_t DHV) {
  return mlstm_sm90::ForWidths<MlstmRole::kDK>(DHQK, DHV, 0, [&]<class C>() {
    return C::kSlices * static_cast<int>(NumMlstmBlocks(DHQK, DHV)) * C::kStateThreads;
  });
}
}  // namespace

int64_t MlstmSm90SharedBytes(MlstmRole role, int64_t DHQK, int64_t DHV) {
  return ForRole(role, int64_t{0}, [&]<MlstmRole kRole>() {
    return mlstm_sm90::ForWidths<kRole>(DHQK, DHV, int64_t{0},
                                        []<class C>() { return static_cast<int64_t>(C::kSharedBytes); });
  });
}

bool MlstmSm90Supports(const DeviceInfo& device, int64_t DHQK, int64_t DHV) {
  if (device.compute_capability != 90) return false;
  for (const MlstmRole role : {MlstmRole::kH, MlstmRole::kDQ, MlstmRole::kDV, MlstmRole::kDK}) {
    const int64_t bytes = MlstmSm90SharedBytes(role, DHQK, DHV);
    if (bytes == 0 || bytes > device.max_shared_bytes) return false;
  }
  return true;
}

int64_t MlstmSm90JoinedSharedBytes(int64_t DHQK, int64_t DHV) {
  const auto bytes = []<class C>() { return static_cast<int64_t>(C::kSharedBytes); };
  return std::max({mlstm_sm90::ForWidthsOfDKV(DHQK, DHV, int64_t{0}, bytes),
                   mlstm_sm90::ForWidthsOfAll<mlstm_sm90::Sm90Gives::kAll>(DHQK, DHV, int64_t{0}, bytes),
                   mlstm_sm90::ForWidthsOfAll<mlstm_sm90::Sm90Gives::kStates>(DHQK, DHV, int64_t{0}, bytes)});
}

MlstmSm90Joined MlstmSm90JoinedScans(const DeviceInfo& device, int64_t DHQK, int64_t DHV) {
  const int64_t bytes = MlstmSm90JoinedSharedBytes(DHQK, DHV);
  if (bytes == 0 || bytes > device.max_shared_bytes || !MlstmSm90Supports(device, DHQK, DHV))
    return MlstmSm90Joined::kNone;
  const bool dkv = mlstm_sm90::ForWidthsOfDKV(DHQK, DHV, false, []<class C>() { return true; });
  return dkv ? MlstmSm90Joined::kDKV : MlstmSm90Joined::kAll;
}

namespace {
void CheckArgs(MlstmRole role, const MlstmFastScanArgs& args) {
  CAROUSEL_CHECK(args.B > 0 && args.NH > 0 && args.num_tokens > 0 && args.num_segments > 0);
  CAROUSEL_CHECK_EQ(args.NC, CeilDiv(args.num_tokens, kMlstmChunk));
  CAROUSEL_CHECK(args.num_segments * args.chunks_per_segment >= args.NC &&
                 (args.num_segments - 1) * args.chunks_per_segment < args.NC);
  const bool blocked = MlstmBlockWidth(args.DHQK, args.DHV) > 0;
  CAROUSEL_CHECK(blocked ? args.partials != nullptr && (role != MlstmRole::kH || args.a != nullptr)
                         : MlstmSm90Writes(args.out));
  CAROUSEL_CHECK(args.B * args.num_tokens <= INT_MAX &&
                 args.B * args.NH * MlstmScanMaxSlices(args.DHQK, args.DHV) <= INT_MAX);
  const bool has_anchors = role == MlstmRole::kDQ || role == MlstmRole::kDK;
  CAROUSEL_CHECK(!has_anchors || NumMlstmAnchors(args.NC) == 0 || args.anchors.C != nullptr);
  CAROUSEL_CHECK(!has_anchors ||
                 AnchorParts(args.DHQK, args.DHV) == MlstmScanAnchorParts(args.DHQK, args.DHV));
  CAROUSEL_CHECK(!has_anchors || args.num_segments == 1 || args.chunks_per_segment % kMlstmAnchorChunks == 0);
}
}  // namespace

void LaunchMlstmSm90DKV(Context& context, const MlstmFastScanArgs& args, const MlstmRows<bfloat16>& dv) {
  CheckArgs(MlstmRole::kDK, args);
  CAROUSEL_CHECK(MlstmSm90Writes(dv));
  CAROUSEL_CHECK_MSG(mlstm_sm90::LaunchDKV(context, args, dv),
                     "no sm_90a scan of dk and dv for these head widths");
}
void LaunchMlstmSm90States(Context& context, const MlstmFastScanArgs& args) {
  CheckArgs(MlstmRole::kDQ, args);
  CAROUSEL_CHECK(args.anchors.C != nullptr);
  CAROUSEL_CHECK_MSG(mlstm_sm90::LaunchStates(context, args),
                     "no sm_90a scan of states for these head widths");
}
void LaunchMlstmSm90All(Context& context, const MlstmFastScanArgs& args, const MlstmRows<bfloat16>& dv,
                        const MlstmRows<bfloat16>& dq) {
  CheckArgs(MlstmRole::kDK, args);
  CAROUSEL_CHECK(args.anchors.C != nullptr && args.q_dots != nullptr);
  CAROUSEL_CHECK(MlstmSm90Writes(dv) && MlstmSm90Writes(dq));
  CAROUSEL_CHECK_MSG(mlstm_sm90::LaunchAll(context, args, {.dv = dv, .dq = dq}),
                     "no sm_90a scan of dq, dk and dv for these head widths");
}

void LaunchMlstmSm90(Context& context, MlstmRole role, const MlstmFastScanArgs& args) {
  CheckArgs(role, args);
  const auto launch = [&] {
    switch (role) {
      case MlstmRole::kH:
        return mlstm_sm90::LaunchH(context, args);
      case MlstmRole::kDQ:
        return mlstm_sm90::LaunchDQ(context, args);
      case MlstmRole::kDV:
        return mlstm_sm90::LaunchDV(context, args);
      case MlstmRole::kDK:
        return mlstm_sm90::LaunchDK(context, args);
      case MlstmRole::kDelta:
      case MlstmRole::kForwardState:
      case MlstmRole::kBackwardState:
        break;
    }
    return false;
  };
  CAROUSEL_CHECK_MSG(launch(), "no sm_90a scan for this role and these head widths");
  if (MlstmBlockWidth(args.DHQK, args.DHV) > 0) LaunchMlstmJoin(context, role, args);
}

}  // namespace carousel::CAROUSEL_DEVICE_NS
