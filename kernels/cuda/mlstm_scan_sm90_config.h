// Sizes of a block of the sm_90a scan, and where things lie in its shared memory.
//
// A block is kStateGroups warpgroups that hold 64 rows of the state each, and one warpgroup for the scores
// that also starts the copies. A tile is made of boxes: 64 tokens of 64 columns, rows of 128 bytes with the
// 128-byte swizzle of TMA and wgmma. Behind the 64 rows of a box of `upd`, kH has 8 rows more for the
// normaliser: n as the sum of three bf16 rows, and zeros.
#pragma once
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

template <MlstmRole kTheRole, int kTheColumns, int kTheRowDim>
struct Sm90Config {
  static constexpr MlstmRole kRole = kTheRole;
  static_assert(kRole == MlstmRole::kH || kRole == MlstmRole::kDV);
  static constexpr bool kReverse = IsReverse(kRole), kNormalizer = kRole == MlstmRole::kH;
  static constexpr int kRecords = 2, L = kRecords * kMlstmChunk;  // tokens of a step
  static_assert(L == 64, "the height of a wgmma");

  static constexpr int kColumns = kTheColumns, kRows = kTheRowDim < 128 ? kTheRowDim : 128;
  static constexpr int kStateGroups = kRows / 64, kThreads = 128 * (kStateGroups + 1);
  static constexpr int kSlices = kTheRowDim / kRows;  // blocks of a pair, a cluster
  static constexpr int kBoxes = kColumns / 64;        // of read, and of upd
  static constexpr int kMyBoxes = kBoxes / kSlices;   // of them, those that a block fetches for the cluster
  static_assert(kSlices * kRows == kTheRowDim && kMyBoxes * kSlices == kBoxes && kSlices <= 8);
  static constexpr int kStages = kColumns > 128 ? 2 : 3;

  // Registers per thread after setmaxnreg, where 168 are too few for the state; their sum is what a launch of
  // 384 threads gets.
  static constexpr bool kMovesRegisters = kColumns > 128;
  static constexpr int kStateRegisters = 208, kScoreRegisters = 88;
  static_assert(!kMovesRegisters || (kStateGroups == 2 && 2 * kStateRegisters + kScoreRegisters == 3 * 168));

  // Bytes: of a box and its rows,
  static constexpr int kLine = 128, kBox = 64 * kLine, kUpdRows = kNormalizer ? 72 : 64;
  static constexpr int kUpdBox = kUpdRows * kLine;
  // of a stage,
  static constexpr int kUpdAt = kBoxes * kBox, kRowAt = kUpdAt + kBoxes * kUpdBox;
  static constexpr int kRecordAt = kRowAt + kStateGroups * kBox;
  static constexpr int kRecordBytes = sizeof(MlstmFastRecord);
  static constexpr int kStageBytes = kRecordAt + 2048;  // two records, and what keeps boxes aligned
  static_assert(kRecords * kRecordBytes <= 2048 && kStageBytes % 1024 == 0);
  static constexpr int kStageCopies = (2 * kBoxes + kStateGroups) * kBox + kRecords * kRecordBytes;
  // and behind the stages: two tiles of weights (rows of read, 64 columns of upd), a tile of out per state
  // group, 1 / (N + eps) of each tile's tokens, barriers.
  static constexpr int kWeightsAt = kStages * kStageBytes, kOutAt = kWeightsAt + 2 * kBox;
  static constexpr int kInverseAt = kOutAt + kStateGroups * kBox;
  static constexpr int kBarriersAt = kInverseAt + (kNormalizer ? 2 * 4 * L : 0);
  static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kStages + 2);
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
