// Which way over the borders of the sequence axis is chosen, and by which bytes.
#include "core/model/sequence_choice.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {
// The cells of xLSTM 7B and of the 1.3B model: 8 and 4 heads of 256 x 512.
MlstmShape Segment(int64_t NH, int64_t T, int64_t B = 1) {
  return {.B = B, .T = T, .NH = NH, .DHQK = 256, .DHV = 512, .L = 64};
}
constexpr double kMiB = 1 << 20;

TEST(SequenceChoice, StatesCostTheSameForEveryLength) {
  // Seven states of 4 MiB forward (f32) and as many gradients backward.
  EXPECT_NEAR(static_cast<double>(StateBytes(Segment(8, 1024), 8, DType::kBF16)) / kMiB, 56, 0.3);
  EXPECT_EQ(StateBytes(Segment(8, 1024), 8, DType::kBF16), StateBytes(Segment(8, 131072), 8, DType::kBF16));
  EXPECT_EQ(StateBytes(Segment(8, 64, 3), 8, DType::kF32), 3 * StateBytes(Segment(8, 64), 8, DType::kF32));
  EXPECT_EQ(StateBytes(Segment(8, 64), 8, DType::kF64), 2 * StateBytes(Segment(8, 64), 8, DType::kF32));
  EXPECT_NEAR(static_cast<double>(StateBytes(Segment(4, 1024), 8, DType::kBF16)) / kMiB, 28, 0.2);
}

TEST(SequenceChoice, HeadsCostAsMuchAsTheTokensOfOneRank) {
  // 7/8 of q, k, v and h of 1024 tokens, 21 MiB in bf16, and of their gradients.
  EXPECT_NEAR(static_cast<double>(HeadsBytes(Segment(8, 1024), 8, DType::kBF16)) / kMiB, 42, 0.2);
  EXPECT_EQ(HeadsBytes(Segment(8, 4096), 8, DType::kBF16), 4 * HeadsBytes(Segment(8, 1024), 8, DType::kBF16));
  EXPECT_EQ(HeadsBytes(Segment(8, 1024, 5), 8, DType::kBF16),
            5 * HeadsBytes(Segment(8, 1024), 8, DType::kBF16));
}

// Exact for a cell that can be counted by hand: 2 sequences of 3 tokens, 4 heads of 2 x 5, over 2 ranks, f32.
TEST(SequenceChoice, BytesAreThoseOfTheTensors) {
  const MlstmShape s = {.B = 2, .T = 3, .NH = 4, .DHQK = 2, .DHV = 5, .L = 64};
  // C, n twice; m and G once.
  EXPECT_EQ(StateBytes(s, 2, DType::kF32), 4 * (2 * 4) * (2 * (10 + 2) + 2));
  // Half of 6 tokens by q, k (8 each), v, h (20 each), i, f (4 each), forward and backward.
  EXPECT_EQ(HeadsBytes(s, 2, DType::kF32), 4 * 6 / 2 * 2 * (8 + 8 + 20 + 20 + 4 + 4));
  EXPECT_EQ(HeadsBytes(s, 2, DType::kBF16), 6 / 2 * 2 * (2 * (8 + 8 + 20 + 20) + 4 * (4 + 4)));
}

TEST(SequenceChoice, AutoTakesHeadsForShortSequencesAndStatesForLongOnes) {
  // Over eight ranks the two cost the same at about 11 thousand tokens, for either model.
  for (const int64_t NH : {8, 16}) {
    const auto choice = [&](int64_t T) {
      return ChooseSequenceMode(SequenceMode::kAuto, Segment(NH, T / 8), 8, DType::kBF16);
    };
    EXPECT_EQ(choice(8192), SequenceMode::kHeads);
    EXPECT_EQ(choice(10240), SequenceMode::kHeads);
    EXPECT_EQ(choice(11264), SequenceMode::kState);
    EXPECT_EQ(choice(1 << 20), SequenceMode::kState);
  }
}

TEST(SequenceChoice, AutoTakesTheOneWithFewerBytes) {
  for (int64_t T = 1; T < 20000; T = T * 5 / 4 + 1) {
    for (const int64_t S : {2, 4, 8}) {
      for (const DType compute : {DType::kF32, DType::kBF16, DType::kF64}) {
        const MlstmShape s = Segment(8, T);
        const bool heads = HeadsBytes(s, S, compute) < StateBytes(s, S, compute);
        EXPECT_EQ(ChooseSequenceMode(SequenceMode::kAuto, s, S, compute),
                  heads ? SequenceMode::kHeads : SequenceMode::kState);
      }
    }
  }
}

TEST(SequenceChoice, AutoTakesStatesWhereHeadsDoNotDivide) {
  EXPECT_EQ(ChooseSequenceMode(SequenceMode::kAuto, Segment(4, 16), 4, DType::kBF16), SequenceMode::kHeads);
  EXPECT_EQ(ChooseSequenceMode(SequenceMode::kAuto, Segment(4, 16), 8, DType::kBF16), SequenceMode::kState);
  EXPECT_EQ(ChooseSequenceMode(SequenceMode::kAuto, Segment(6, 16), 4, DType::kBF16), SequenceMode::kState);
}

TEST(SequenceChoice, WhatIsAskedForIsTaken) {
  EXPECT_EQ(ChooseSequenceMode(SequenceMode::kState, Segment(8, 1), 8, DType::kBF16), SequenceMode::kState);
  EXPECT_EQ(ChooseSequenceMode(SequenceMode::kHeads, Segment(8, 1 << 20), 8, DType::kBF16),
            SequenceMode::kHeads);
  EXPECT_DEATH(ChooseSequenceMode(SequenceMode::kHeads, Segment(4, 16), 8, DType::kBF16),
               "do not divide the heads");
}
}  // namespace
}  // namespace carousel
