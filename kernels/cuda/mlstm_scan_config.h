// What every kernel of the tensor-core scan shares: its sizes and small pieces of arithmetic.
//
// Grid: (slices of the state's rows x pairs, segments, blocks of its columns: 1 but for mlstm_blocks.h).
// Block: kRowWarps x kColumnGroups warps; a warp holds 16 rows x kWarpColumns columns of the state in
// accumulators. One chunk of L tokens:
//
//   1. scores read.upd, an L x L tile shared by all warps, times exp2(alpha + beta), masked: to shared memory
//   2. out^T = x (State read^T): the accumulators become bf16 A fragments where they are
//   3. out^T += row^T weights^T
//   4. out^T goes over the row tile, which only its own warp reads, and leaves at the start of the next chunk
//      in 16-byte stores; dot products and the denominator come from the f32 sums
//   5. State = gamma State + (y row)^T upd; kDQ and kDK: every 8th chunk, the anchor
//
// Two barriers per chunk, three with column groups. Tiles come by cp.async, kStages - 1 chunks ahead, as
// 16-byte pieces that are XOR-swizzled so that ldmatrix reads without bank conflicts.
//
// Shared memory per chunk: 2. and 5. read 64 kWarpColumns bytes per warp each, 1. reads 36 kColumns bytes per
// warp (48 with two score tiles), the copies write a stage. With 128 rows and 256 columns that is 400 KB,
// 3100 cycles of an SM, for 4.8 MFLOP. Global memory: read, upd, row (and q or k for the dot products)
// and out once per slice of rows; the slices of a pair are neighbours in the grid and share `read` and `upd`
// in the second-level cache.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_records.h"
#include "kernels/cuda/mlstm_row_sums.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan {

template <MlstmRole kTheRole, int kTheRowWarps, int kTheColumnGroups, int kTheColumns, int kTheStages,
          int kTheBlocksPerSm, bool kTheBlocked = false>
struct ScanConfig {
  static constexpr MlstmRole kRole = kTheRole;
  static constexpr int kRowWarps = kTheRowWarps, kColumnGroups = kTheColumnGroups, kColumns = kTheColumns;
  static constexpr int kStages = kTheStages, kBlocksPerSm = kTheBlocksPerSm, L = kMlstmChunk;
  static constexpr int kWarps = kRowWarps * kColumnGroups, kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kRowWarps, kWarpColumns = kColumns / kColumnGroups;

  // kColumns are some of the state's columns, and its rows have any number of slices (mlstm_blocks.h).
  static constexpr bool kBlocked = kTheBlocked;

  static constexpr bool kReverse = IsReverse(kRole), kIsState = IsState(kRole);
  static constexpr bool kNormalizer = kRole == MlstmRole::kH;
  static constexpr bool kAddend = kRole == MlstmRole::kDQ || kRole == MlstmRole::kDK;
  static constexpr bool kDots = kAddend;
  // The state's rows are columns of C (values) or rows of C (queries and keys). In the second case the block
  // also keeps its part of n or dn, the state's column of the normaliser.
  static constexpr bool kRowsAreValues = kNormalizer || kRole == MlstmRole::kDV;
  static constexpr bool kNormalizerColumn = !kRowsAreValues;

  // The L x L tile of scores: 16 rows per warp, the columns in kScoreGroups.
  static constexpr int kScoreGroups = kWarps / (L / 16), kScoreTiles = L / kScoreGroups / 8;
  // The tokens of out, 8 per tile; each column group finishes its part of them.
  static constexpr int kOutTiles = L / 8, kMyTiles = kOutTiles / kColumnGroups;
  static_assert(kScoreTiles == 1 || kScoreTiles == 2);
  static_assert(L == 32 && kColumnGroups <= 2);

  // Bytes of shared memory: of a stage,
  static constexpr int kColumnBytes = 2 * kColumns, kRowBytes = 2 * kRows;
  static constexpr int kReadAt = 0, kUpdAt = kIsState ? 0 : L * kColumnBytes;
  static constexpr int kRowAt = kUpdAt + L * kColumnBytes, kRecordAt = kRowAt + L * kRowBytes;
  static constexpr int kGammaAt = kRecordAt + static_cast<int>(sizeof(MlstmFastRecord));
  static constexpr int kStageBytes = kGammaAt + 128;  // one float, and what keeps stages aligned
  // and behind the stages: the rows that dots multiply, the weights, parts of dots and of the normaliser, n,
  // and what the column groups give each other.
  static constexpr int kWeightPitch = 2 * L + 16;
  static constexpr int kDotRowAt = kStages * kStageBytes;
  static constexpr int kWeightsAt = kDotRowAt + (kDots ? L * kRowBytes : 0);
  static constexpr int kDotsAt = kWeightsAt + (kIsState ? 0 : L * kWeightPitch);
  static constexpr int kSumsAt = kDotsAt + (kDots ? 4 * kRowWarps * L : 0);
  static constexpr int kNAt = kSumsAt + (kNormalizer ? 4 * kScoreGroups * L : 0);
  static constexpr int kTermsAt = kNAt + (kNormalizer ? 4 * kColumns : 0);
  static constexpr int kExchangeAt = kTermsAt + (kNormalizer ? 3 * kColumnBytes : 0);
  static constexpr int kSharedBytes =
      kExchangeAt + (kColumnGroups > 1 && !kIsState ? 16 * kMyTiles * kThreads : 0);
  static_assert(kSharedBytes <= 163 * 1024);
};

// Byte offset of 16-byte piece `piece` of row `row`; row_bytes is a multiple of 128. Rows further on by a
// multiple of 8 are offset + rows * row_bytes.
__device__ __forceinline__ int Swizzled(int row, int piece, int row_bytes) {
  return row * row_bytes + ((piece ^ (row & 7)) << 4);
}
// The same row `pieces` pieces further on. `offset` is that of piece 0 or 1 (of pieces 0 to 3 if `pieces` is
// a multiple of 4) in a group of 8; `pieces` is even.
__device__ __forceinline__ int Ahead(int offset, int pieces) {
  return (offset ^ ((pieces & 7) << 4)) + (pieces >> 3) * 128;
}

// Term `index` (0, 1, 2) of x as the sum of three bf16 numbers; 0 for other indices.
__device__ __forceinline__ float Bf16Term(float x, int index) {
  const float high = gpu::to_float(gpu::to_bf16(x));
  const float middle = gpu::to_float(gpu::to_bf16(x - high));
  return index == 0 ? high : index == 1 ? middle : index == 2 ? x - high - middle : 0.0f;
}

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_scan
