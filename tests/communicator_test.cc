// Ranks as threads: the contract, and mistakes that must be reported and not hang.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <thread>

#include "communicator_contract.h"
#include "core/base/exit_code.h"
#include "core/comm/collective_call.h"
#include "parallel/local_communicator.h"

namespace carousel {
namespace {

TEST(LocalCommunicator, KeepsTheContractForEveryNumberOfRanks) {
  for (const int P : {1, 2, 3, 4, 7}) {
    RunLocalRanks(P, [](Communicator& c) {
      for (const int64_t n : {0, 1, 5, 1025, 20000}) CheckCommunicatorContract(c, n);
    });
  }
}

TEST(LocalCommunicator, SplitsIntoGroupsThatWorkSideBySide) {
  for (const int P : {1, 2, 3, 5, 8}) {
    RunLocalRanks(P, [](Communicator& c) {
      for (int round = 0; round < 3; ++round) CheckSplits(c);
    });
  }
}

TEST(LocalCommunicator, KeepsTheContractWhenCallsAreVerified) {
  RunLocalRanks(3, [](Communicator& c) {
    c.set_verify_calls(true);
    for (const int64_t n : {0, 1, 1025}) CheckCommunicatorContract(c, n);
    CheckSplits(c);
  });
}

TEST(LocalCommunicator, RepeatsItsBitsUnderAnySchedule) {
  // Many short collectives in a row: a rank that runs ahead must not disturb one that lags.
  RunLocalRanks(4, [](Communicator& c) {
    for (int round = 0; round < 300; ++round) {
      float x = ContractValue<float>(c.rank(), round);
      c.AllReduceSum(Tensor(&x, DType::kF32, {1}));
      ASSERT_EQ(x, RankOrderSum<float>(4, round));
    }
  });
}

TEST(LocalCommunicator, PairsTalkWhileOthersCompute) {
  RunLocalRanks(4, [](Communicator& c) {
    int64_t x = c.rank();
    const int partner = c.rank() ^ 1;
    for (int round = 0; round < 100; ++round) {
      int64_t y = -1;
      if (c.rank() < partner) {
        c.Send(Tensor(&x, DType::kI64, {1}), partner);
        c.Recv(Tensor(&y, DType::kI64, {1}), partner);
      } else {
        c.Recv(Tensor(&y, DType::kI64, {1}), partner);
        c.Send(Tensor(&x, DType::kI64, {1}), partner);
      }
      ASSERT_EQ(y, partner);
    }
  });
}

TEST(SelfCommunicator, KeepsTheContract) {
  const std::unique_ptr<Communicator> self = MakeSelfCommunicator();
  EXPECT_EQ(self->rank(), 0);
  EXPECT_EQ(self->size(), 1);
  for (const int64_t n : {0, 1, 100}) CheckCommunicatorContract(*self, n);
  CheckSplits(*self);
}

TEST(SumInRankOrder, TakesTheOrderAndNothingElse) {
  // 1e8 + 1 == 1e8 in f32: only ((big + -big) + 1) keeps the one.
  const float big = 1e8f, minus = -1e8f, one = 1.0f;
  float sum = 0;
  const void* kept[] = {&big, &minus, &one};
  SumInRankOrder(&sum, kept, 3, 1, DType::kF32);
  EXPECT_EQ(sum, 1.0f);
  const void* lost[] = {&one, &big, &minus};
  SumInRankOrder(&sum, lost, 3, 1, DType::kF32);
  EXPECT_EQ(sum, 0.0f);
  // No zero is added: -0 stays -0.
  const float minus_zero = -0.0f;
  const void* zeros[] = {&minus_zero, &minus_zero};
  SumInRankOrder(&sum, zeros, 2, 1, DType::kF32);
  EXPECT_TRUE(std::signbit(sum));
}

// ---- mistakes

void RunTwo(const std::function<void(Communicator&)>& body) { RunLocalRanks(2, body); }

class CommunicatorDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { ::testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

TEST_F(CommunicatorDeathTest, DifferentCollectivesAreReported) {
  EXPECT_DEATH(RunTwo([](Communicator& c) {
                 float x[2] = {};
                 if (c.rank() == 0) {
                   c.AllReduceSum(Tensor(x, DType::kF32, {2}));
                 } else {
                   c.Broadcast(Tensor(x, DType::kF32, {2}), 1);
                 }
               }),
               "rank 0 waits in AllReduceSum\\(2 x f32\\).*rank 1 waits in Broadcast\\(2 x f32, root 1\\)");
}

TEST_F(CommunicatorDeathTest, DifferentCountsAndDtypesAreReported) {
  EXPECT_DEATH(RunTwo([](Communicator& c) {
                 float x[2] = {};
                 c.AllReduceSum(Tensor(x, DType::kF32, {1 + c.rank()}));
               }),
               "their calls do not match");
  EXPECT_DEATH(RunTwo([](Communicator& c) {
                 double x = 0;
                 c.AllReduceSum(Tensor(&x, c.rank() == 0 ? DType::kI64 : DType::kF64, {1}));
               }),
               "rank 1 waits in AllReduceSum\\(1 x f64\\)");
}

TEST_F(CommunicatorDeathTest, ARankThatHasFinishedIsReported) {
  EXPECT_DEATH(RunTwo([](Communicator& c) {
                 if (c.rank() == 0) c.Barrier();
               }),
               "rank 0 waits in Barrier\\(\\).*rank 1 has finished");
}

TEST_F(CommunicatorDeathTest, ADeadlockAcrossGroupsIsReportedWithEveryRanksPlace) {
  // Ranks 0 and 1 wait for each other in different groups; 2 and 3 wait for them in others.
  EXPECT_DEATH(
      RunLocalRanks(4,
                    [](Communicator& c) {
                      const std::unique_ptr<Communicator> row = c.Split(c.rank() / 2);
                      const std::unique_ptr<Communicator> column = c.Split(c.rank() % 2);
                      row->set_name("row");
                      column->set_name("column");
                      float x = 0;
                      if (c.rank() == 0) row->AllReduceSum(Tensor(&x, DType::kF32, {1}));
                      if (c.rank() == 1) c.Barrier();
                      if (c.rank() == 2) column->Send(Tensor(&x, DType::kF32, {1}), 0);
                      if (c.rank() == 3) column->Recv(Tensor(&x, DType::kF32, {1}), 0);
                    }),
      "no rank can go on.*"
      "rank 0 waits in AllReduceSum\\(1 x f32\\) on 'row' at tests/communicator_test.cc:[0-9]+, a group "
      "of the ranks 0 1.*"
      "rank 1 waits in Barrier\\(\\) at tests/communicator_test.cc:[0-9]+.*"
      "rank 2 waits in Send\\(1 x f32 to rank 0\\) on 'column' at .*, a group of the ranks 0 2.*"
      "rank 3 waits in Recv\\(1 x f32 from rank 0\\) on 'column' at .*, a group of the ranks 1 3");
}

TEST_F(CommunicatorDeathTest, AMismatchIsReportedWhileOthersCompute) {
  EXPECT_DEATH(RunLocalRanks(3,
                             [](Communicator& c) {
                               const std::unique_ptr<Communicator> pair = c.Split(c.rank() == 2 ? -1 : 0);
                               if (pair == nullptr) std::this_thread::sleep_for(std::chrono::seconds(60));
                               float x[2] = {};
                               pair->AllReduceSum(Tensor(x, DType::kF32, {1 + c.rank()}));
                             }),
               "their calls do not match.*rank 2 computes");
}

TEST_F(CommunicatorDeathTest, VerifiedCallsNameBothPlaces) {
  EXPECT_EXIT(
      RunTwo([](Communicator& c) {
        c.set_verify_calls(true);
        c.set_name("world");
        float x[2] = {};
        if (c.rank() == 0) {
          c.AllReduceSum(Tensor(x, DType::kF32, {2}));
        } else {
          c.Broadcast(Tensor(x, DType::kF32, {2}), 0);
        }
      }),
      ::testing::ExitedWithCode(kExitFailure),
      "AllReduceSum\\(2 x f32\\)( on 'world')? at tests/communicator_test.cc:[0-9]+, but rank 1 called "
      "Broadcast\\(2 x f32, root 0\\) at tests/communicator_test.cc|"
      "Broadcast\\(2 x f32, root 0\\) on 'world' at tests/communicator_test.cc:[0-9]+, but rank 0 called "
      "AllReduceSum\\(2 x f32\\) at tests/communicator_test.cc");
}

TEST_F(CommunicatorDeathTest, AnExchangeOfDifferentSizesIsReported) {
  EXPECT_DEATH(RunTwo([](Communicator& c) {
                 float x[4] = {};
                 const Tensor four(x, DType::kF32, {4});
                 c.SendRecv(four.Rows(0, 1 + c.rank()), 1 - c.rank(), four.Rows(2, 1), 1 - c.rank());
               }),
               "a send and its receive do not match");
}

TEST_F(CommunicatorDeathTest, TwoSendsThatWaitForEachOtherAreReported) {
  EXPECT_DEATH(RunTwo([](Communicator& c) {
                 float x = 0;
                 c.Send(Tensor(&x, DType::kF32, {1}), 1 - c.rank());
               }),
               "Send\\(1 x f32 to rank 1\\)");
}

TEST_F(CommunicatorDeathTest, WrongArgumentsAreReported) {
  const std::unique_ptr<Communicator> self = MakeSelfCommunicator();
  float x[8] = {};
  const Tensor eight(x, DType::kF32, {8});
  EXPECT_DEATH(CheckAllGather(eight, eight.Rows(0, 3), 0, 2), "8 elements, which is not 2 ranks x 3");
  EXPECT_DEATH(CheckAllGather(eight, eight.Rows(0, 4), 1, 2), "only at block 1");
  EXPECT_DEATH(CheckReduceScatterSum(eight.Rows(2, 4), eight, 0, 2), "only at block 0");
  EXPECT_DEATH(CheckAllToAll(eight.Rows(0, 4), eight.Rows(2, 4), 2), "overlap");
  EXPECT_DEATH(CheckAllToAll(eight.Rows(0, 3), eight.Rows(4, 3), 2), "equal blocks");
  EXPECT_DEATH(CheckAllReduceSum(Tensor(x, DType::kU8, {8})), "there is no sum of u8");
  EXPECT_DEATH(CheckAllReduceSum(eight.Reshape({2, 4}).Columns(0, 2)), "contiguous");
  EXPECT_DEATH(self->Broadcast(eight, 1), "root is rank 1 of 1");
  EXPECT_DEATH(self->Send(eight, 0), "to itself");
}

TEST_F(CommunicatorDeathTest, AbortEndsTheProcessWithTheCode) {
  EXPECT_EXIT(RunTwo([](Communicator& c) {
                if (c.rank() == 1) c.Abort(7);
                c.Barrier();
              }),
              ::testing::ExitedWithCode(7), "");
}
}  // namespace
}  // namespace carousel
