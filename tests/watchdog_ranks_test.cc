// Ranks that hang in each other's calls: processes over TCP, each with a watchdog of its own. What the
// transport would notice after half an hour ends after the watchdog's limit.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <thread>

#include "core/base/exit_code.h"
#include "launcher/watch/flight_report.h"
#include "launcher/watch/watchdog.h"
#include "tests/tcp_testing.h"

namespace carousel {
namespace {
using testing::RankResult;

constexpr double kLimitSeconds = 2;

// Runs `body` on so many ranks, in the section of a step, and returns how they ended.
std::vector<RankResult> RunWatched(int size, const std::string& records,
                                   const std::function<void(Session&, Watchdog&)>& body) {
  const TempDir meeting;
  return testing::RunProcesses(size, [&](Communicator& host) {
    Watchdog watchdog({});
    TcpOptions options = testing::TestTcpOptions("file:" + meeting.path(), host.rank(), size);
    options.peer.waiting = [&watchdog](const std::string& call, const std::vector<int>& ranks) {
      watchdog.Waiting(call, ranks);
    };
    absl::StatusOr<std::unique_ptr<Session>> session = StartTcpSession(options);
    ASSERT_TRUE(session.ok()) << session.status();
    watchdog.Identify(host.rank(), size, "node" + std::to_string(host.rank()), {});
    watchdog.SetDirectory(records);
    watchdog.SetLimits({.setup_seconds = kLimitSeconds, .step_seconds = kLimitSeconds});
    watchdog.Watch((*session)->world());
    (*session)->world().Barrier();
    watchdog.Enter(Watchdog::Section::kStep);
    SetProcessStep(12);
    body(**session, watchdog);
    std::fflush(nullptr);
    _exit(1);  // not reached where the ranks hang
  });
}

std::string Report(const std::string& records) {
  std::ifstream file(records + "/report.txt");
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

void Says(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << part << "\nin: " << text;
}

void ExpectAllEndedInTime(const std::vector<RankResult>& results,
                          std::chrono::steady_clock::time_point start) {
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, kExitTransport) << result.errors;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::duration<double>(kLimitSeconds + 13));
}

// With verify_calls each rank waits for the other's description of a call on its own axis.
TEST(WatchdogRanks, CallsOnDifferentAxesEndWithBothPlaces) {
  const TempDir dir;
  const auto start = std::chrono::steady_clock::now();
  const std::vector<RankResult> results = RunWatched(2, dir.path(), [](Session& session, Watchdog& watchdog) {
    Communicator& world = session.world();
    world.set_verify_calls(true);
    const std::unique_ptr<Communicator> tensor = world.Split(0), shard = world.Split(0);
    tensor->set_name("tensor");
    shard->set_name("shard");
    watchdog.Watch(*tensor);
    watchdog.Watch(*shard);
    float x[2] = {};
    if (world.rank() == 0) {
      tensor->AllReduceSum(Tensor(x, DType::kF32, {2}), CallSite{"core/one.cc", 11});
    } else {
      shard->AllReduceSum(Tensor(x, DType::kF32, {2}), CallSite{"core/two.cc", 22});
    }
  });
  ExpectAllEndedInTime(results, start);
  const std::string report = Report(dir.path());
  Says(report, "ranks 0 and 1 wait for each other, in calls that do not belong together");
  Says(report, "AllReduceSum(2 x f32) on 'tensor' #0 at core/one.cc:11, waits for rank 1");
  Says(report, "AllReduceSum(2 x f32) on 'shard' #0 at core/two.cc:22, waits for rank 0");
}

// Rank 2 of three sleeps instead of computing; rank 0 waits for rank 1, which waits for it.
TEST(WatchdogRanks, ARankThatSleepsIsNamedByAllThatWaitForIt) {
  const TempDir dir;
  const auto start = std::chrono::steady_clock::now();
  const std::vector<RankResult> results = RunWatched(3, dir.path(), [](Session& session, Watchdog& watchdog) {
    Communicator& world = session.world();
    const int rank = world.rank();
    const std::unique_ptr<Communicator> front = world.Split(rank == 2 ? -1 : 0),
                                        back = world.Split(rank == 0 ? -1 : 0);
    for (const auto& [part, name] : {std::pair(front.get(), "front"), std::pair(back.get(), "back")}) {
      if (part == nullptr) continue;
      part->set_name(name);
      watchdog.Watch(*part);
    }
    if (rank == 0) front->Barrier();
    if (rank == 1) back->Barrier();
    std::this_thread::sleep_for(std::chrono::seconds(60));
  });
  ExpectAllEndedInTime(results, start);
  const std::string report = Report(dir.path());
  Says(report, "suspect: rank 2 (node2): in no collective call, a step for ");
  Says(report, "ranks 0 and 1 wait for it");
}
}  // namespace
}  // namespace carousel
