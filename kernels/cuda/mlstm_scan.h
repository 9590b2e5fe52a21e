// The scan of the mLSTM cell on tensor cores (mma.sync, compute capability 8.0 and later), bf16 only. Roles,
// operands and arguments: mlstm_records.h.
//
// The state stays where it is used: a block keeps 128 (or 64) rows of one pair's matrix state in registers,
// as f32 sums of the tensor cores, from the first chunk to the last, and the chunks pass by in shared memory.
// No state is written to memory but the last one and, by kDQ for kDK, that of every 256th token (the anchors
// of mlstm_records.h: DHQK * DHV / 128 bytes per token and head, written and read once). Operands are bf16:
// the state is rounded once per chunk for the product with `read`, the weights W (read.upd) once for the
// product with `row`, and y row once for the update. Sums, exponents, the normaliser (n as three bf16 terms,
// which hold all of its 24 bits; the sum over u of the weights before they are rounded) and the dot products
// are f32. There is no role kDelta.
//
// dots are split over MlstmScanSlices parts, to be added in order. Nothing is added atomically: two runs give
// the same bits. The number of segments changes results by rounding only.
#pragma once
#include <algorithm>

#include "core/base/int_math.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_blocks.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Records of 32 tokens: with 64, two chunks of 256 or 512 columns do not fit into shared memory, and mma.sync
// gains nothing from longer chunks (the bytes it reads from shared memory per token are the same, the
// products more).
static_assert(kMlstmChunk == 32, "the tensor-core scan needs records of 32 tokens");

// Whether there is a scan for these head widths on this device: (64, 64), (64, 128), (128, 128), (128, 256),
// (192, 384), (256, 256), (256, 512), (384, 384), (512, 512), and heads that are cut into blocks
// (mlstm_blocks.h).
bool MlstmScanSupports(const DeviceInfo& device, int64_t DHQK, int64_t DHV);
// Whether the rows can be read 16 bytes at a time, which every tensor of a scan but `out` must be.
inline bool MlstmScanSupports(const MlstmRows<const bfloat16>& rows) {
  return rows.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

// Parts of the state, each of a block of threads, that a role and its `dots` are split over; 0 if there is no
// scan for these widths.
constexpr int kMlstmScanMaxSlices = 8;  // of a head, or of a block of a head that is cut
constexpr int64_t MlstmScanMaxSlices(int64_t DHQK, int64_t DHV) {
  return kMlstmScanMaxSlices * NumMlstmBlocks(DHQK, DHV);
}
int MlstmScanSlices(MlstmRole role, int64_t DHQK, int64_t DHV);
// Parts of MlstmAnchors::dots; 0 if there is no scan for these widths.
int MlstmScanAnchorParts(int64_t DHQK, int64_t DHV);

// Enqueues one scan, and with heads that are cut LaunchMlstmJoin. REQUIRES: MlstmScanSupports of the widths
// and of every tensor that the role reads. `out` may have any stride and alignment (16-byte stores are used
// where they allow it).
void LaunchMlstmScan(Context& context, MlstmRole role, const MlstmFastScanArgs& args);

// ---- splitting the sequence, for a scan of too few pairs to fill the device: a state role gives every
// segment's state from zero, LaunchMlstmCombine makes of these the states that the segments begin with, and
// the output role runs its segments side by side.

// Segments that fill the device: 1 if the pairs alone do. A pure function of its arguments. B * segments does
// not fall when B or NC grow, so a workspace for a shape is enough for a smaller one.
struct MlstmSegments {
  int64_t num_segments = 1, chunks_per_segment = 0;
};
MlstmSegments PickMlstmSegments(const DeviceInfo& device, const MlstmShape& shape);
// At least B' * PickMlstmSegments(.. B', T' ..).num_segments for every B' <= B and T' <= T: pairs per head of
// `states`.
int64_t MaxMlstmSegmentStates(const DeviceInfo& device, const MlstmShape& shape);

template <class W>
struct MlstmCombineArgs {
  MlstmScanState<W>
      states;  // (num_segments, B * NH) in: from a state role; out: the state each segment begins with
  MlstmScanState<const W> first;  // (B * NH): what the first segment in scan order begins with; null C: zero
  MlstmScanState<W> final;        // (B * NH) out, optional: what the last segment in scan order ends with
  const W* gamma = nullptr;       // (B * NH, NC)
  int64_t num_pairs = 0, DHQK = 0, DHV = 0, NC = 0;
  int64_t num_segments = 1, chunks_per_segment = 0;
  bool reverse = false;  // the last segment comes first
};
template <class W>
void LaunchMlstmCombine(Context& context, const MlstmCombineArgs<W>& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
