// Ranks over TCP: the contract, on threads with a session each.
#include "parallel/tcp_communicator.h"

#include <gtest/gtest.h>

#include <ctime>

#include "communicator_contract.h"
#include "parallel/local_communicator.h"
#include "tcp_testing.h"

namespace carousel {
namespace {
using testing::RunTcpRanks;

TEST(TcpCommunicator, KeepsTheContractForEveryNumberOfRanks) {
  for (const int P : {1, 2, 3, 4}) {
    RunTcpRanks(P, [](Session& session) {
      for (const int64_t n : {0, 1, 5, 1025, 100000}) CheckCommunicatorContract(session.world(), n);
    });
  }
}

TEST(TcpCommunicator, KeepsTheContractWithLittleStagingMemory) {
  for (const int64_t staging_bytes : {1, 512, 9000}) {
    RunTcpRanks(3,
                [](Session& session) {
                  for (const int64_t n : {3, 900}) CheckCommunicatorContract(session.world(), n);
                },
                {.staging_bytes = staging_bytes});
  }
}

TEST(TcpCommunicator, KeepsTheContractWhenCallsAreVerified) {
  RunTcpRanks(3, [](Session& session) {
    session.world().set_verify_calls(true);
    for (const int64_t n : {0, 1, 1025}) CheckCommunicatorContract(session.world(), n);
    CheckSplits(session.world());
  });
}

TEST(TcpCommunicator, SplitsIntoGroupsThatWorkSideBySide) {
  for (const int P : {2, 3, 5}) {
    RunTcpRanks(P, [](Session& session) {
      for (int round = 0; round < 3; ++round) CheckSplits(session.world());
    });
  }
}

TEST(TcpCommunicator, RanksOfOneMachineAreLocal) {
  RunTcpRanks(3, [](Session& session) {
    EXPECT_EQ(session.local().size(), 3);
    EXPECT_EQ(session.local().rank(), session.world().rank());
    CheckCommunicatorContract(session.local(), 10);
  });
}

// More than any socket's buffer holds, in both directions at once.
TEST(TcpCommunicator, SendsMoreThanSocketsHold) {
  RunTcpRanks(2, [](Session& session) { CheckSendRecv<int64_t>(session.world(), 4 << 20); });
}

TEST(TcpCommunicator, HasTheBitsOfThreads) {
  const int64_t n = 50000;
  std::vector<float> threads(static_cast<size_t>(n));
  RunLocalRanks(3, [&](Communicator& c) {
    auto x = ContractBuffer<float>::OfRank(c.rank(), n);
    c.AllReduceSum(x.tensor());
    if (c.rank() == 1) threads = x.values;
  });
  RunTcpRanks(3, [&](Session& session) {
    auto x = ContractBuffer<float>::OfRank(session.world().rank(), n);
    session.world().AllReduceSum(x.tensor());
    EXPECT_TRUE(x.SameBits(threads));
  });
}

TEST(TcpCommunicator, AWaitingRankLeavesItsCore) {
  RunTcpRanks(2, [](Session& session) {
    session.world().Barrier();
    timespec start = {}, end = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    if (session.world().rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    session.world().Barrier();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    const double seconds = static_cast<double>(end.tv_sec - start.tv_sec) +
                           1e-9 * static_cast<double>(end.tv_nsec - start.tv_nsec);
    EXPECT_LT(seconds, 0.1);
  });
}
}  // namespace
}  // namespace carousel
