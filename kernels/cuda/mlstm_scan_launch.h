// Which ScanConfig a role and head width takes, and launching it. Each role is compiled in a file of its own.
#pragma once
#include "kernels/cuda/mlstm_blocks.h"
#include "kernels/cuda/mlstm_scan.h"
#include "kernels/cuda/mlstm_scan_kernel.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

// 128 rows of the state per block, or all 64. More than 256 columns are too many for a warp: two column
// groups of 64 rows.
template <MlstmRole kRole, int kDHQK, int kDHV, bool kBlocked = false>
struct ConfigOf {
  static constexpr bool kRowsAreValues = kRole == MlstmRole::kH || kRole == MlstmRole::kDV;
  static constexpr int kRowDim = kRowsAreValues ? kDHV : kDHQK, kColumns = kRowsAreValues ? kDHQK : kDHV;
  static constexpr int kColumnGroups = kColumns > 256 ? 2 : 1;
  static constexpr int kRowWarps = kColumnGroups > 1 || kRowDim < 128 ? 4 : 8;
  static constexpr int kStages = kColumns >= 256 ? 2 : 3;
  // As many as registers allow without spills.
  static constexpr int kBlocksPerSm =
      kRowWarps * kColumnGroups == 8 ? (kColumns == 64 ? 2 : 1) : (kColumns == 64 ? 4 : 3);
  using Type = ScanConfig<kRole, kRowWarps, kColumnGroups, kColumns, kStages, kBlocksPerSm, kBlocked>;
  static constexpr int kSlices = kRowDim / Type::kRows;
  static_assert(kSlices * Type::kRows == kRowDim && kSlices <= kMlstmScanMaxSlices);
};

// fn.operator()<ConfigOf>() for the widths that have a scan, or of a block of the heads that are cut;
// otherwise `otherwise`.
template <MlstmRole kRole, class R, class Fn>
R ForWidths(int64_t DHQK, int64_t DHV, R otherwise, Fn&& fn) {
  if (DHQK == 64 && DHV == 64) return fn.template operator()<ConfigOf<kRole, 64, 64>>();
  if (DHQK == 64 && DHV == 128) return fn.template operator()<ConfigOf<kRole, 64, 128>>();
  if (DHQK == 128 && DHV == 128) return fn.template operator()<ConfigOf<kRole, 128, 128>>();
  if (DHQK == 128 && DHV == 256) return fn.template operator()<ConfigOf<kRole, 128, 256>>();
  if (DHQK == 192 && DHV == 384) return fn.template operator()<ConfigOf<kRole, 192, 384>>();
  if (DHQK == 256 && DHV == 256) return fn.template operator()<ConfigOf<kRole, 256, 256>>();
  if (DHQK == 256 && DHV == 512) return fn.template operator()<ConfigOf<kRole, 256, 512>>();
  if (DHQK == 384 && DHV == 384) return fn.template operator()<ConfigOf<kRole, 384, 384>>();
  if (DHQK == 512 && DHV == 512) return fn.template operator()<ConfigOf<kRole, 512, 512>>();
  switch (MlstmBlockWidth(DHQK, DHV)) {
    case 256:
      return fn.template operator()<ConfigOf<kRole, 256, 256, true>>();
    case 384:
      return fn.template operator()<ConfigOf<kRole, 384, 384, true>>();
    case 512:
      return fn.template operator()<ConfigOf<kRole, 512, 512, true>>();
    default:
      return otherwise;
  }
}

// False: no scan for these widths.
template <MlstmRole kRole>
bool LaunchRole(Context& context, const MlstmFastScanArgs& args, const char* name) {
  return ForWidths<kRole>(args.DHQK, args.DHV, false, [&]<class Choice>() {
    using C = typename Choice::Type;
    const int64_t column_blocks = NumMlstmColumnBlocks(kRole, args.DHQK, args.DHV),
                  slices = Choice::kSlices * NumMlstmBlocks(args.DHQK, args.DHV) / column_blocks;
    context.Launch(MlstmScanKernel<C>,
                   {.grid = dim3(GridExtent(slices * args.B * args.NH), GridExtent(args.num_segments),
                                 GridExtent(column_blocks)),
                    .block = dim3(C::kThreads),
                    .smem = C::kSharedBytes,
                    .name = name},
                   args);
    return true;
  });
}

// One file each.
bool LaunchH(Context& context, const MlstmFastScanArgs& args);
bool LaunchDQ(Context& context, const MlstmFastScanArgs& args);
bool LaunchDV(Context& context, const MlstmFastScanArgs& args);
bool LaunchDK(Context& context, const MlstmFastScanArgs& args);
bool LaunchForwardState(Context& context, const MlstmFastScanArgs& args);
bool LaunchBackwardState(Context& context, const MlstmFastScanArgs& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
