// What the ranks of a TCP run say and do when one of them dies, fails, differs or does not come: processes.
#include <gtest/gtest.h>

#include <csignal>
#include <regex>
#include <thread>

#include "core/base/exit_code.h"
#include "tcp_testing.h"

namespace carousel {
namespace {
using testing::RankResult;
using testing::RunTcpProcesses;
using Clock = std::chrono::steady_clock;

void Says(const RankResult& result, const std::string& text) {
  EXPECT_NE(result.errors.find(text), std::string::npos) << text << "\nin: " << result.errors;
}
double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}
void Sum(Communicator& c) {
  float x[2] = {};
  c.AllReduceSum(Tensor(x, DType::kF32, {2}));
}

// Rank `victim` of four dies while two others wait in a sum, one of which is of another group, and one
// computes.
void DieAndCheck(int victim) {
  const auto start = Clock::now();
  const std::vector<RankResult> results = RunTcpProcesses(4, [victim](Session& session) {
    Communicator& world = session.world();
    SetProcessStep(12);
    const int place = (world.rank() - victim + 4) % 4;  // 0: dies, 1: its group, 2: the world, 3: computes
    const std::unique_ptr<Communicator> pair = world.Split(place / 2);
    pair->set_name("pair");
    world.Barrier();
    if (place == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      raise(SIGKILL);
    }
    if (place == 1) Sum(*pair);
    if (place == 2) Sum(world);
    std::this_thread::sleep_for(std::chrono::seconds(60));
    return 0;
  });
  EXPECT_LT(SecondsSince(start), 8);
  const std::string gone = "rank " + std::to_string(victim) + " has gone (";
  for (int place = 1; place < 4; ++place) {
    const int rank = (victim + place) % 4;
    const RankResult& result = results[static_cast<size_t>(rank)];
    EXPECT_EQ(result.exit_code, kExitTransport) << rank;
    Says(result, gone);
    Says(result, "[rank " + std::to_string(rank) + "] [step 12] ");
    if (place == 1) Says(result, "AllReduceSum(2 x f32) on 'pair' at tests/tcp_failure_test.cc:");
    if (place == 2) Says(result, "AllReduceSum(2 x f32) on 'world' at tests/tcp_failure_test.cc:");
    if (place == 1) Says(result, "it waited for " + gone.substr(0, 6));
    if (place == 2) Says(result, "it waited for rank");
    if (place == 3) Says(result, "this rank was not in a collective");
  }
  EXPECT_EQ(results[static_cast<size_t>(victim)].signal, SIGKILL);
}

TEST(TcpFailure, ARankThatDiesEndsTheOthersWhateverTheyDo) { DieAndCheck(2); }
TEST(TcpFailure, TheHubThatDiesEndsTheOthersToo) { DieAndCheck(0); }

TEST(TcpFailure, AbortEndsAllRanksWithItsCode) {
  for (const RankResult& result : RunTcpProcesses(3, [](Session& session) {
         if (session.world().rank() == 1) session.world().Abort(5);
         session.world().Barrier();
         return 0;
       })) {
    EXPECT_EQ(result.exit_code, 5) << result.errors;
  }
}

TEST(TcpFailure, ARankThatFinishesWithAnErrorEndsTheOthers) {
  const auto start = Clock::now();
  for (const RankResult& result : RunTcpProcesses(3, [](Session& session) {
         if (session.world().rank() == 1) return 3;
         session.world().Barrier();
         return 0;
       })) {
    EXPECT_EQ(result.exit_code, 3) << result.errors;
  }
  EXPECT_LT(SecondsSince(start), 8);
}

TEST(TcpFailure, RanksThatFailAlikeEndByThemselves) {
  for (const RankResult& result : RunTcpProcesses(3, [](Session&) { return 4; })) {
    EXPECT_EQ(result.exit_code, 4);
    EXPECT_EQ(result.errors, "");
  }
}

TEST(TcpFailure, DifferentCallsAreReported) {
  const std::vector<RankResult> results = RunTcpProcesses(2, [](Session& session) {
    float x[64] = {};
    session.world().AllReduceSum(Tensor(x, DType::kF32, {session.world().rank() == 0 ? 3 : 2}));
    session.world().Barrier();
    return 0;
  });
  EXPECT_EQ(results[0].exit_code, kExitTransport);
  EXPECT_EQ(results[1].exit_code, kExitTransport);
  EXPECT_NE((results[0].errors + results[1].errors).find("the ranks' calls do not match"), std::string::npos);
}

TEST(TcpFailure, VerifiedCallsNameBothPlaces) {
  const std::vector<RankResult> results = RunTcpProcesses(2, [](Session& session) {
    session.world().set_verify_calls(true);
    float x[64] = {};
    if (session.world().rank() == 0) {
      session.world().AllReduceSum(Tensor(x, DType::kF32, {2}));
    } else {
      session.world().Broadcast(Tensor(x, DType::kF32, {2}), 0);
    }
    return 0;
  });
  // Who sees it first says so and ends the job; the other one may not come to say it, too.
  const std::string errors = results[0].errors + results[1].errors;
  const std::string place = " at tests/tcp_failure_test.cc:[0-9]+";
  const std::string sum = "AllReduceSum\\(2 x f32\\)", broadcast = "Broadcast\\(2 x f32, root 0\\)";
  const std::string world = " on 'world'" + place;
  EXPECT_TRUE(
      std::regex_search(errors, std::regex("\\[rank 0\\] the ranks' calls do not match: " + sum + world +
                                           ", but rank 1 called " + broadcast + place + " instead\n|" +
                                           "\\[rank 1\\] the ranks' calls do not match: " + broadcast +
                                           world + ", but rank 0 called " + sum + place + " instead\n")))
      << errors;
}

TEST(TcpFailure, ACallHasATimeLimit) {
  const std::vector<RankResult> results =
      RunTcpProcesses(3,
                      [](Session& session) {
                        if (session.world().rank() == 1)
                          std::this_thread::sleep_for(std::chrono::seconds(30));
                        session.world().Barrier();
                        return 0;
                      },
                      {.timeout_seconds = 3});
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, kExitTransport);
  // Ranks 0 and 2 wait; whichever comes first to the limit says so.
  const RankResult said = {.errors = results[0].errors + results[2].errors};
  Says(said, "Barrier() on 'world' at tests/tcp_failure_test.cc:");
  Says(said, "waited for rank 1 for 3 s, which is the limit");
}

TEST(TcpFailure, ARankThatIsToldToEndSaysWhatItWaitsForAndEnds) {
  const auto start = Clock::now();
  const std::vector<RankResult> results =
      RunTcpProcesses(2,
                      [](Session& session) {
                        if (session.world().rank() == 1)
                          std::this_thread::sleep_for(std::chrono::seconds(60));
                        Sum(session.world());
                        return 0;
                      },
                      {.interrupted = [] { return true; }});
  EXPECT_LT(SecondsSince(start), 12);
  Says(results[0],
       "[rank 0] told to end, while AllReduceSum(2 x f32) on 'world' at tests/tcp_failure_test.cc:");
  Says(results[0], "waits for rank 1");
  EXPECT_EQ(results[0].exit_code, kExitTerminated);
  EXPECT_EQ(results[1].exit_code, kExitTerminated);
}
}  // namespace
}  // namespace carousel
