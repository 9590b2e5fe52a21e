// Sizes of a block of the sm_90a scan, and where things lie in its shared memory.
//
// A block is kStateGroups warpgroups that hold 64 rows of the state each, and one warpgroup for the scores
// that also starts the copies. More than 256 columns are too many for a warpgroup: then two of them hold a
// half of the columns each of the same 64 rows (column groups), and a step is 32 tokens, so that two stages
// fit. A tile is made of boxes: the step's tokens of 64 columns, rows of 128 bytes with the 128-byte swizzle
// of TMA and wgmma. Behind the rows of a box of `upd`, kH has 8 rows more for the normaliser: n as the sum of
// three bf16 rows, and zeros.
#pragma once
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

template <MlstmRole kTheRole, int kTheColumns, int kTheRowDim, bool kTheBlocked = false>
struct Sm90Config {
  static constexpr MlstmRole kRole = kTheRole;
  static constexpr bool kReverse = IsReverse(kRole), kNormalizer = kRole == MlstmRole::kH;
  // Columns and rows are those of a block of a head's state (mlstm_blocks.h).
  static constexpr bool kBlocked = kTheBlocked;
  // The role carries the normaliser as one more column of the state, and gives dots.
  static constexpr bool kDots = kRole == MlstmRole::kDQ || kRole == MlstmRole::kDK;
  static_assert(kDots || kRole == MlstmRole::kH || kRole == MlstmRole::kDV);

  static constexpr int kColumns = kTheColumns, kColumnGroups = kColumns > 256 ? 2 : 1;
  static constexpr int kGroupColumns = kColumns / kColumnGroups;  // of a state group
  static constexpr int kRows = kColumnGroups > 1 || kTheRowDim < 128 ? 64 : 128;
  static constexpr int kRowGroups = kRows / 64, kStateGroups = kRowGroups * kColumnGroups;
  static constexpr int kStateThreads = 128 * kStateGroups, kThreads = kStateThreads + 128;
  static constexpr int kSlices = kTheRowDim / kRows;  // blocks of a pair, a cluster
  static constexpr int kBoxes = kColumns / 64;        // of read, and of upd
  static constexpr int kMyBoxes = kBoxes / kSlices;   // of them, those that a block fetches for the cluster
  static_assert(kSlices * kRows == kTheRowDim && kMyBoxes * kSlices == kBoxes && kSlices <= 8);

  // Tokens of a step, and of it those that a state group finishes.
  static constexpr int kRecords = kColumnGroups > 1 ? 1 : 2, L = kRecords * kMlstmChunk;
  static constexpr int kMyTokens = L / kColumnGroups, kStoreTokens = kMyTokens < 32 ? kMyTokens : 32;
  static constexpr int kStages = kColumns > 384 || (kRecords == 2 && kColumns > 128) ? 2 : 3;

  // Registers per thread after setmaxnreg, where 168 are too few for the state; their sum is what a launch of
  // 384 threads gets.
  static constexpr bool kMovesRegisters = kGroupColumns > 128 || (kDots && kStateGroups == 2);
  static constexpr int kStateRegisters = 216, kScoreRegisters = 72;
  static_assert(!kMovesRegisters || (kStateGroups == 2 && 2 * kStateRegisters + kScoreRegisters == 3 * 168));

  // Bytes: of a box and its rows,
  static constexpr int kLine = 128, kBox = L * kLine, kUpdRows = L + (kNormalizer ? 8 : 0);
  static constexpr int kUpdBox = kUpdRows * kLine;
  // of a stage,
  static constexpr int kUpdAt = kBoxes * kBox, kRowAt = kUpdAt + kBoxes * kUpdBox;
  static constexpr int kRecordAt = kRowAt + kRowGroups * kBox;
  static constexpr int kRecordBytes = sizeof(MlstmFastRecord);
  static constexpr int kStageBytes = kRecordAt + kRecords * 1024;  // records, and what keeps boxes aligned
  static_assert(kRecordBytes <= 1024 && kStageBytes % 1024 == 0);
  static constexpr int kStageCopies = (2 * kBoxes + kRowGroups) * kBox + kRecords * kRecordBytes;
  static constexpr int kAddendAt = offsetof(MlstmFastRecord, addend), kAddendBytes = 4 * kMlstmChunk;
  // and behind the stages: two tiles of weights (rows of read, columns of upd), of each state group a tile of
  // out and one of the rows that dots multiply, two tiles of what the column groups give each other; sums of
  // dots of every warp; 1 / (N + eps) of the tokens of each tile of weights; barriers.
  static constexpr int kGroupTile = kMyTokens * kLine, kGiven = kColumnGroups > 1 ? 128 * 4 * kMyTokens : 0;
  static constexpr int kWeightsAt = kStages * kStageBytes, kOutAt = kWeightsAt + 2 * kBox;
  static constexpr int kDotRowAt = kOutAt + kStateGroups * kGroupTile;
  static constexpr int kExchangeAt = kDotRowAt + (kDots ? kStateGroups * kGroupTile : 0);
  static constexpr int kDotsAt = kExchangeAt + 2 * kGiven;
  static constexpr int kInverseAt = kDotsAt + (kDots ? kStateGroups * 4 * 4 * kMyTokens : 0);
  static constexpr int kBarriersAt = kInverseAt + (kNormalizer ? 2 * 4 * L : 0);
  static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kStages + 2 + (kDots ? kStateGroups : 0));
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
