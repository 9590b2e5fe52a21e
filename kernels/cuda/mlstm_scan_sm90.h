// The scan of the mLSTM cell on the tensor cores of compute capability 9.0 (wgmma, TMA, clusters: sm_90a),
// for the roles kH, kDQ, kDV and kDK in bf16. It takes the arguments and records of the portable scan
// (mlstm_scan.h) and gives what that gives, within the same roundings; other roles, head widths and devices
// take that one.
//
// The state is stationary as there. What differs: a step is two records, 64 tokens, the height of a wgmma
// (one where the state has more than 256 columns); copies are TMA's; and the work of a block is split among
// warpgroups that wait for each other by mbarriers only (mlstm_scan_sm90_kernel.h). `read` and `upd`, which
// all slices of a pair's state need, are fetched once for the cluster of their blocks. Anchors have an order
// of their own: kDQ and kDK of a call must be of the same kind. dots are split over
// MlstmSm90DotParts.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_blocks.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Whether there are such scans for these head widths on this device, the roles above: (64, 64), (64, 128),
// (128, 128), (128, 256), (192, 384), (256, 256), (256, 512), (384, 384), (512, 512), and heads that are cut
// into blocks (mlstm_blocks.h).
bool MlstmSm90Supports(const DeviceInfo& device, int64_t DHQK, int64_t DHV);
// Whether TMA can write the rows: as for what is read, 16-byte addresses and strides.
inline bool MlstmSm90Writes(const MlstmRows<bfloat16>& rows) {
  return rows.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}
// Bytes of shared memory of a block; 0 if there is no such scan.
int64_t MlstmSm90SharedBytes(MlstmRole role, int64_t DHQK, int64_t DHV);

// Parts that dots of kDQ and kDK are split over.
inline int64_t MlstmSm90DotParts(int64_t DHQK, int64_t DHV) {
  return DHQK / 64 * NumMlstmColumnBlocks(MlstmRole::kDQ, DHQK, DHV);
}

// Enqueues one scan. REQUIRES: what LaunchMlstmScan requires, MlstmSm90Supports, MlstmSm90Writes(args.out)
// (not of heads that are cut), and kDQ and kDK: chunks_per_segment is a multiple of kMlstmAnchorChunks, or
// there is one segment.
void LaunchMlstmSm90(Context& context, MlstmRole role, const MlstmFastScanArgs& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
