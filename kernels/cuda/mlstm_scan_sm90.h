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
//
// Small heads are bound by memory, and the three scans of the backward read the same operands. kDV and kDK
// walk over the same state in the same direction: one kernel does the work of both (LaunchMlstmSm90DKV). kDQ
// walks the other way, over C: where there are registers for it, a scan that only leaves states, before every
// fourth chunk, goes first (LaunchMlstmSm90States), and dq comes from the same kernel too
// (LaunchMlstmSm90All). Bytes per token and head:
//
//   heads of DHQK/DHV                     64/64  64/128  128/128
//   kDQ, kDV, kDK                          1936    2768     3928
//   kDQ, kDV and kDK in one                1528    2232     3136   taken for 128/128
//   states, all in one                     1340    1980      -     taken for 64/64 and 64/128
//
// counting q, k, v, dh as often as a scan reads them, dq, dk, dv, 24 of records per scan, 4 of each part of
// the dot products, and states and anchors, written and read.
#pragma once
#include "core/base/int_math.h"
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

// Which scans of the backward there are in one: none, dk and dv for (128, 128), all for (64, 64) and (64,
// 128).
enum class MlstmSm90Joined : uint8_t { kNone, kDKV, kAll };
MlstmSm90Joined MlstmSm90JoinedScans(const DeviceInfo& device, int64_t DHQK, int64_t DHV);
// Bytes of shared memory of the block that needs most of them; 0 for kNone.
int64_t MlstmSm90JoinedSharedBytes(int64_t DHQK, int64_t DHV);

// Enqueues the scans kDV and kDK as one: `args` of kDK, whose results have the same bits as alone, and dv.
// REQUIRES: what LaunchMlstmSm90 requires of kDK, MlstmSm90Joined::kDKV, MlstmSm90Writes(dv).
void LaunchMlstmSm90DKV(Context& context, const MlstmFastScanArgs& args, const MlstmRows<bfloat16>& dv);

// Enqueues kDQ without outputs but `final` and, at anchors.C, the states before every kMlstmSavedChunks-th
// chunk: per pair and such chunk C, bf16, and n. Then the scans kDV, kDK and kDQ as one: `args` of kDK, whose
// results have the same bits as alone, with anchors.C and q_dots, and dv and dq. REQUIRES: as above, kAll,
// MlstmSm90Writes of all three.
inline int64_t MlstmSm90SavedBytes(int64_t num_pairs, int64_t NC, int64_t DHQK, int64_t DHV) {
  return num_pairs * CeilDiv(NC, kMlstmSavedChunks) * (2 * DHQK * DHV + 4 * DHQK);
}
void LaunchMlstmSm90States(Context& context, const MlstmFastScanArgs& args);
void LaunchMlstmSm90All(Context& context, const MlstmFastScanArgs& args, const MlstmRows<bfloat16>& dv,
                        const MlstmRows<bfloat16>& dq);

// Enqueues one scan. REQUIRES: what LaunchMlstmScan requires, MlstmSm90Supports, MlstmSm90Writes(args.out)
// (not of heads that are cut), and kDQ and kDK: chunks_per_segment is a multiple of kMlstmAnchorChunks, or
// there is one segment.
void LaunchMlstmSm90(Context& context, MlstmRole role, const MlstmFastScanArgs& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
