// Sizes of a block of the sm_90a scan, and where things lie in its shared memory.
//
// A block is kStateGroups warpgroups that hold 64 rows of the state each, and one warpgroup for the scores
// that also starts the copies. More than 256 columns are too many for a warpgroup: then two of them hold a
// half of the columns each of the same 64 rows (column groups), and a step is 32 tokens, so that two stages
// fit. A tile is made of boxes: the step's tokens of 64 columns, rows of 128 bytes with the 128-byte swizzle
// of TMA and wgmma. Behind the rows of a box of `upd`, kH has 8 rows more for the normaliser: n as the sum of
// three bf16 rows, and zeros.
//
// Small heads, where a block holds all rows of the state, have scans that give more than `out` (Sm90Gives):
// one more warpgroup makes dv, and another dq, and k comes with the stage. Then kDQ becomes a scan that
// leaves states and gives nothing else.
#pragma once
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

// kOut: what the role gives. kDK alone: kDKV dv too, kAll dv and dq too. kDQ alone: kStates no dq, but the
// state before every fourth chunk.
enum class Sm90Gives : uint8_t { kOut, kDKV, kAll, kStates };

template <MlstmRole kTheRole, int kTheColumns, int kTheRowDim, Sm90Gives kGives = Sm90Gives::kOut,
          bool kTheBlocked = false>
struct Sm90Config {
  static constexpr MlstmRole kRole = kTheRole;
  static constexpr bool kReverse = IsReverse(kRole), kNormalizer = kRole == MlstmRole::kH;
  // Columns and rows are those of a block of a head's state (mlstm_blocks.h).
  static constexpr bool kBlocked = kTheBlocked;
  // The role carries the normaliser as one more column of the state, and gives dots.
  static constexpr bool kDots = kRole == MlstmRole::kDQ || kRole == MlstmRole::kDK;
  static_assert(kDots || kRole == MlstmRole::kH || kRole == MlstmRole::kDV);
  static constexpr bool kGivesDV = kGives == Sm90Gives::kDKV || kGives == Sm90Gives::kAll;
  static constexpr bool kGivesDQ = kGives == Sm90Gives::kAll, kStatesOnly = kGives == Sm90Gives::kStates;

  static constexpr int kColumns = kTheColumns, kColumnGroups = kColumns > 256 ? 2 : 1;
  static constexpr int kGroupColumns = kColumns / kColumnGroups;  // of a state group
  static constexpr int kRows = kColumnGroups > 1 || kTheRowDim < 128 ? 64 : 128;
  static constexpr int kRowGroups = kRows / 64, kStateGroups = kRowGroups * kColumnGroups;
  static constexpr int kStateThreads = 128 * kStateGroups;
  static constexpr int kThreads = kStateThreads + (kStatesOnly ? 0 : 128) + kGivesDV * 128 + kGivesDQ * 128;
  static constexpr int kSlices = kTheRowDim / kRows;  // blocks of a pair, a cluster
  static constexpr int kBoxes = kColumns / 64;        // of read, and of upd
  static constexpr int kMyBoxes = kBoxes / kSlices;   // of them, those that a block fetches for the cluster
  static_assert(kSlices * kRows == kTheRowDim && kMyBoxes * kSlices == kBoxes && kSlices <= 8);
  static_assert(!kGivesDV || (kRole == MlstmRole::kDK && kColumnGroups == 1 && kSlices == 1));
  static_assert(!kStatesOnly || kRole == MlstmRole::kDQ);
  static_assert((!kGivesDQ && !kStatesOnly) || kRows == 64);

  // Tokens of a step, and of it those that a state group finishes.
  static constexpr int kRecords = kColumnGroups > 1 ? 1 : 2, L = kRecords * kMlstmChunk;
  static constexpr int kMyTokens = L / kColumnGroups, kStoreTokens = kMyTokens < 32 ? kMyTokens : 32;
  static constexpr bool kTwoStages = kColumns > 384 || (kRecords == 2 && kColumns > 128) ||
                                     (kGivesDV && kRowGroups == 2);
  static constexpr int kStages = kTwoStages ? 2 : 3;

  // Registers per thread after setmaxnreg, where 168 (of 384 threads) or 128 (of 512) are too few for the
  // state; their sum is what the launch gets.
  static constexpr bool kMovesRegisters = kGroupColumns > 128 || (kDots && kStateGroups == 2) || kGivesDV;
  static constexpr int kStateRegisters = kGivesDQ ? (kColumns > 64 ? 200 : 168) : kGivesDV ? 176 : 216;
  static constexpr int kScoreRegisters = 72;
  static constexpr int kValueRegisters = kGivesDQ ? (kColumns > 64 ? 112 : 128) : 88;
  static constexpr int kQueryRegisters = kColumns > 64 ? 128 : 144;
  static_assert(!kMovesRegisters || kStateGroups * kStateRegisters + kScoreRegisters +
                                            kGivesDV * kValueRegisters + kGivesDQ * kQueryRegisters ==
                                        (kThreads == 384 ? 3 * 168 : 4 * 128));
  static_assert(kThreads == 384 || kThreads == 512 || !kMovesRegisters);

  // Bytes: of a box and its rows,
  static constexpr int kLine = 128, kBox = L * kLine, kUpdRows = L + (kNormalizer ? 8 : 0);
  static constexpr int kUpdBox = kUpdRows * kLine;
  // of a stage,
  static constexpr int kReadBoxes = kStatesOnly ? 0 : kBoxes;
  static constexpr int kUpdAt = kReadBoxes * kBox, kRowAt = kUpdAt + kBoxes * kUpdBox;
  static constexpr int kKeyBoxes = kGivesDV ? kRowGroups : 0, kKeyAt = kRowAt + kRowGroups * kBox;
  static constexpr int kRecordAt = kKeyAt + kKeyBoxes * kBox;
  static constexpr int kRecordBytes = sizeof(MlstmFastRecord);
  static constexpr int kStageBytes = kRecordAt + kRecords * 1024;  // records, and what keeps boxes aligned
  static_assert(kRecordBytes <= 1024 && kStageBytes % 1024 == 0);
  static constexpr int kStageCopies =
      (kReadBoxes + kBoxes + kRowGroups + kKeyBoxes) * kBox + kRecords * kRecordBytes;
  static constexpr int kAddendAt = offsetof(MlstmFastRecord, addend), kAddendBytes = 4 * kMlstmChunk;
  // and behind the stages: two tiles of weights (rows of read, columns of upd), of each state group a tile of
  // out and one of the rows that dots multiply, two tiles of what the column groups give each other;
  // kGivesDV: the tile of dv, and the state rounded, as boxes of 64 columns, of one step or two; kGivesDQ:
  // the tile of dq and a saved state; sums of dots of every warp; 1 / (N + eps) of the tokens of each tile of
  // weights; barriers.
  static constexpr int kGroupTile = kMyTokens * kLine, kGiven = kColumnGroups > 1 ? 128 * 4 * kMyTokens : 0;
  static constexpr int kWeightsAt = kStages * kStageBytes;
  static constexpr int kOutAt = kWeightsAt + (kStatesOnly ? 0 : 2 * kBox);
  static constexpr int kDotRowAt = kOutAt + (kStatesOnly ? 0 : kStateGroups * kGroupTile);
  static constexpr bool kDotTiles = kDots && kGives == Sm90Gives::kOut;
  static constexpr int kExchangeAt = kDotRowAt + (kDotTiles ? kStateGroups * kGroupTile : 0);
  static constexpr int kValuesAt = kExchangeAt + 2 * kGiven;
  static constexpr int kRounded = !kGivesDV ? 0 : kColumns > 64 ? 1 : 2;
  static constexpr int kRoundedBox = kRows * kLine;
  static constexpr int kValueBoxes = !kGivesDV ? 0 : kGivesDQ ? 1 : kBoxes;  // of the tile of dv
  static constexpr int kRoundedAt = kValuesAt + kValueBoxes * kBox;
  static constexpr int kQueriesAt = kRoundedAt + kRounded * kBoxes * kRoundedBox;
  // A state that the kStates scan leaves: boxes of 64 columns as they lie in shared memory, and n.
  static constexpr int kSavedBytes = kBoxes * kRoundedBox + kRows * 4;
  static constexpr int kSavedAt = kQueriesAt + (kGivesDQ ? kBox : 0);
  static constexpr int kDotsAt = kSavedAt + (kGivesDQ || kStatesOnly ? kBoxes * kRoundedBox + 1024 : 0);
  static constexpr int kInverseAt = kDotsAt + (kDots && !kStatesOnly ? kStateGroups * 4 * 4 * kMyTokens : 0);
  static constexpr int kBarriersAt = kInverseAt + (kNormalizer ? 2 * 4 * L : 0);
  static constexpr int kRoleBarriers = kGivesDV ? 2 * kRounded + kGivesDQ : kDots ? kStateGroups : 0;
  static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kStages + 2 + kRoleBarriers);
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
