// One writer per run directory: on one machine, between machines, after crashes, with a clock of the test.
#include "checkpoints/run_lease.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <new>
#include <thread>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/directory_probe.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/run_lease_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

constexpr char kLease[] = "run/checkpoints/.lease";

LeaseOptions OptionsOf(FileSystem& files, LeaseClock& clock, const std::string& host, int64_t pid) {
  return {.files = &files,
          .clock = &clock,
          .owner = {.host = host, .machine = "boot-of-" + host, .pid = pid, .pid_space = "1"},
          .attempt = 7,
          .thread = false};
}
bool Has(const absl::Status& status, const std::string& part) {
  return std::string(status.message()).find(part) != std::string::npos;
}
// What a process leaves that is killed.
void Leak(std::unique_ptr<RunLease> lease) { (void)lease.release(); }

class RunLeaseTest : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
  void TearDown() override { SetMinLogLevel(LogLevel::INFO); }

  MemoryFileSystem disk_;
  OtherMachine a_{disk_}, b_{disk_};
  TestClock clock_;
};

TEST_F(RunLeaseTest, ASecondProcessIsRefusedAndToldWhoHoldsItSinceWhenAndWhatToDo) {
  auto held = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242));
  ASSERT_TRUE(held.ok()) << held.status();
  const absl::Status second = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4243)).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Has(second, "process 4242 on node1, attempt 7, since 2026-01-02 03:04:05 UTC")) << second;
  EXPECT_TRUE(Has(second, "stop it, or use another run_dir")) << second;
  EXPECT_FALSE(Has(second, "remove")) << second;  // of no use: the lock shows that it lives
  EXPECT_EQ(clock_.Seconds(), 0);                 // at once
  EXPECT_TRUE((*held)->StillHeld().ok());
  held->reset();
  EXPECT_EQ(disk_.Contents(kLease), nullptr);
  EXPECT_TRUE(RunLease::Acquire("run", OptionsOf(b_, clock_, "node2", 1)).ok());
  EXPECT_EQ(clock_.Seconds(), 0);
}

TEST_F(RunLeaseTest, AProcessThatDiedOnThisMachineIsSucceededAtOnce) {
  Leak(*RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242)));
  a_.Kill();
  ASSERT_NE(disk_.Contents(kLease), nullptr);
  const auto next = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4243));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(clock_.Seconds(), 0);
  EXPECT_NE(disk_.Contents(kLease)->find("pid=4243"), std::string::npos);
}

TEST_F(RunLeaseTest, ALivingHolderOnAnotherMachineIsNotRobbedHoweverSlowItIs) {
  auto held = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242));
  ASSERT_TRUE(held.ok());
  // From far too often to just before the limit of 60 s.
  for (const double interval : {1.0, 5.0, 30.0, 57.0}) {
    double next = clock_.Seconds() + interval;
    clock_.on_sleep = [&] {
      if (clock_.Seconds() < next) return;
      next += interval;
      EXPECT_TRUE((*held)->Beat().ok());
    };
    const absl::Status refused = RunLease::Acquire("run", OptionsOf(b_, clock_, "node2", 1)).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << interval;
    EXPECT_TRUE(Has(refused, "process 4242 on node1")) << refused;
    EXPECT_TRUE(Has(refused, "certain that it is dead: remove run/checkpoints/.lease")) << refused;
    EXPECT_TRUE((*held)->StillHeld().ok());
  }
}

TEST_F(RunLeaseTest, ADeadMachineIsSucceededAfterTheLimitAndASlowHolderLearnsThatItLost) {
  auto slow = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242));
  ASSERT_TRUE(slow.ok());
  auto next = RunLease::Acquire("run", OptionsOf(b_, clock_, "node2", 1));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GE(clock_.Seconds(), 60);
  EXPECT_LE(clock_.Seconds(), 80);
  // It was only asleep: it may not write any more, not even its lease.
  for (const absl::Status& lost : {(*slow)->StillHeld(), (*slow)->Beat()}) {
    EXPECT_EQ(lost.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(Has(lost, "taken over by process 1 on node2")) << lost;
  }
  slow->reset();
  EXPECT_TRUE((*next)->StillHeld().ok());  // nor remove that of its successor
  EXPECT_TRUE((*next)->Beat().ok());
}

TEST_F(RunLeaseTest, AHolderThatGivesItBackWhileWatchedMakesWay) {
  auto held = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242));
  ASSERT_TRUE(held.ok());
  clock_.on_sleep = [&] {
    if (clock_.Seconds() >= 10) held->reset();
  };
  const auto next = RunLease::Acquire("run", OptionsOf(b_, clock_, "node2", 1));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_LT(clock_.Seconds(), 15);
}

TEST_F(RunLeaseTest, WhoWatchesCanBeStopped) {
  Leak(*RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242)));
  LeaseOptions options = OptionsOf(b_, clock_, "node2", 1);
  options.should_stop = [&] { return clock_.Seconds() >= 10; };
  const absl::Status stopped = RunLease::Acquire("run", options).status();
  EXPECT_EQ(stopped.code(), absl::StatusCode::kCancelled) << stopped;
  EXPECT_TRUE(Has(stopped, "process 4242 on node1")) << stopped;
  EXPECT_LT(clock_.Seconds(), 15);
}

TEST_F(RunLeaseTest, OfTwoThatWatchTheSameDeadLeaseOneGetsIt) {
  Leak(*RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242)));
  OtherMachine c(disk_);
  absl::StatusOr<std::unique_ptr<RunLease>> other = absl::UnknownError("");
  TestClock clock_of_c;
  bool began = false;
  clock_.on_sleep = [&] {
    // While b waits whether anybody wrote at the same time, c does.
    if (clock_.Seconds() < 61 || began) return;
    began = true;
    other = RunLease::Acquire("run", OptionsOf(c, clock_of_c, "node3", 3));
  };
  const auto next = RunLease::Acquire("run", OptionsOf(b_, clock_, "node2", 2));
  ASSERT_TRUE(began);
  EXPECT_EQ(next.ok() + other.ok(), 1) << next.status() << other.status();
}

TEST_F(RunLeaseTest, WithoutLocksAndLinksTheCountDecides) {
  OtherMachine a(disk_, false), b(disk_, false);
  auto held = RunLease::Acquire("run", OptionsOf(a, clock_, "node1", getpid()));
  ASSERT_TRUE(held.ok()) << held.status();
  clock_.on_sleep = [&] { EXPECT_TRUE((*held)->Beat().ok()); };
  EXPECT_FALSE(RunLease::Acquire("run", OptionsOf(b, clock_, "node2", 1)).ok());
  EXPECT_FALSE(RunLease::Acquire("run", OptionsOf(a, clock_, "node1", getpid())).ok());
  clock_.on_sleep = nullptr;
  // A process number that is not in use: dead for certain, if it was of this machine.
  held->reset();
  const pid_t child = fork();
  if (child == 0) _exit(0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  Leak(*RunLease::Acquire("run", OptionsOf(a, clock_, "node1", child)));
  const double begin = clock_.Seconds();
  EXPECT_TRUE(RunLease::Acquire("run", OptionsOf(a, clock_, "node1", getpid())).ok());
  EXPECT_EQ(clock_.Seconds(), begin);
}

TEST_F(RunLeaseTest, AContainerOfTheSameMachineThatSeesNeitherLocksNorProcessesOfTheOthersWatches) {
  // One machine, one name; each mounted the directory for itself, and has its own numbers of processes.
  a_.set_domain("0:41");
  b_.set_domain("0:42");
  const auto options = [&](FileSystem& files, const std::string& pid_space) {
    LeaseOptions result = OptionsOf(files, clock_, "node1", getpid() + 1'000'000'000);  // none here
    result.owner.pid_space = pid_space;
    return result;
  };
  auto held = RunLease::Acquire("run", options(a_, "1"));
  ASSERT_TRUE(held.ok()) << held.status();
  clock_.on_sleep = [&] { EXPECT_TRUE((*held)->Beat().ok()); };
  const absl::Status refused = RunLease::Acquire("run", options(b_, "2")).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_TRUE((*held)->StillHeld().ok());
  // With the same numbers of processes it would be known to be gone.
  clock_.on_sleep = nullptr;
  double begin = clock_.Seconds();
  EXPECT_TRUE(RunLease::Acquire("run", options(b_, "1")).ok());
  EXPECT_EQ(clock_.Seconds(), begin);
  // One that died is succeeded after the limit, as on another machine.
  held = RunLease::Acquire("run", options(disk_, "1"));
  ASSERT_TRUE(held.ok()) << held.status();
  Leak(*std::move(held));
  begin = clock_.Seconds();
  EXPECT_TRUE(RunLease::Acquire("run", options(b_, "2")).ok());
  EXPECT_GE(clock_.Seconds() - begin, 60);
}

TEST_F(RunLeaseTest, ClocksThatDifferByMinutesChangeNothing) {
  for (const double minutes : {-90.0, -7.0, 7.0, 90.0}) {
    MemoryFileSystem disk;
    OtherMachine a(disk), b(disk);
    TestClock behind(60 * minutes);
    auto held = RunLease::Acquire("run", OptionsOf(a, clock_, "node1", 4242));
    ASSERT_TRUE(held.ok());
    behind.on_sleep = [&] { EXPECT_TRUE((*held)->Beat().ok()); };
    EXPECT_FALSE(RunLease::Acquire("run", OptionsOf(b, behind, "node2", 1)).ok()) << minutes;
    EXPECT_LT(behind.Seconds(), 10) << minutes;
    behind.on_sleep = nullptr;
    const double begin = behind.Seconds();
    auto next = RunLease::Acquire("run", OptionsOf(b, behind, "node2", 1));
    ASSERT_TRUE(next.ok()) << next.status() << minutes;
    EXPECT_GE(behind.Seconds() - begin, 60) << minutes;
    EXPECT_LE(behind.Seconds() - begin, 80) << minutes;
    EXPECT_TRUE(Has((*held)->Beat(), "process 1 on node2")) << minutes;
  }
}

TEST_F(RunLeaseTest, ItsThreadNoticesThatItWasLostWithoutBeingAsked) {
  LeaseOptions options{.files = &disk_, .beat_seconds = 0.02, .thread = true};
  const auto held = RunLease::Acquire("run", options);
  ASSERT_TRUE(held.ok()) << held.status();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_TRUE((*held)->SeenLost().ok());
  // A disk that does not answer says nothing about it, and neither does a thread without memory.
  for (const bool throws : {false, true}) {
    disk_.SetFault([throws](int64_t, const std::string&, const std::string&) -> absl::Status {
      if (throws) throw std::bad_alloc();
      return absl::UnavailableError("injected: Input/output error");
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    disk_.SetFault(nullptr);
    EXPECT_TRUE((*held)->SeenLost().ok());
  }
  // What a process of another machine leaves that has taken it over.
  MemoryFileSystem other;
  OtherMachine there(other);
  const auto successor = RunLease::Acquire("run", OptionsOf(there, clock_, "node2", 7));
  ASSERT_TRUE(successor.ok());
  disk_.Replace(kLease, *other.Contents(kLease));
  while ((*held)->SeenLost().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(Has((*held)->SeenLost(), "taken over by process 7 on node2")) << (*held)->SeenLost();
  EXPECT_EQ(*disk_.Contents(kLease), *other.Contents(kLease));
}

TEST_F(RunLeaseTest, ALeaseThatCannotBeReadIsWatchedLikeAnyOther) {
  Leak(*RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242)));
  a_.Kill();
  const std::string intact = *disk_.Contents(kLease);
  for (const std::string& damaged : {std::string(), intact.substr(0, 20), "x" + intact}) {
    *disk_.Contents(kLease) = damaged;
    const double begin = clock_.Seconds();
    auto next = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4243));
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_GE(clock_.Seconds() - begin, 60);
    next->reset();
    const auto file = disk_.CreateFile(kLease);
    ASSERT_TRUE(file.ok());
  }
}

TEST_F(RunLeaseTest, ACrashAtAnyCallLeavesADirectoryThatTheNextProcessGetsAtOnce) {
  const auto cycle = [&](MemoryFileSystem& disk) {
    auto lease = RunLease::Acquire("run", OptionsOf(disk, clock_, "node1", 4242));
    if (!lease.ok()) return lease.status();
    CAROUSEL_RETURN_IF_ERROR((*lease)->Beat());
    return (*lease)->StillHeld();
  };
  MemoryFileSystem whole;
  ASSERT_TRUE(cycle(whole).ok());
  const int64_t num_calls = whole.num_calls();
  ASSERT_GT(num_calls, 15);
  for (int64_t k = 0; k <= num_calls; ++k) {
    for (int mode = 0; mode < 4; ++mode) {
      MemoryFileSystem disk;
      disk.SetFault(DeadFrom(k));
      (void)cycle(disk);
      disk.CrashNow(CrashNumber(mode), static_cast<uint64_t>(10 * k + mode));
      const double begin = clock_.Seconds();
      {
        auto next = RunLease::Acquire("run", OptionsOf(disk, clock_, "node1", 4243));
        ASSERT_TRUE(next.ok()) << next.status() << " call " << k << " mode " << mode;
        EXPECT_EQ(clock_.Seconds(), begin) << "call " << k << " mode " << mode;
        EXPECT_TRUE((*next)->StillHeld().ok());
      }
      for (const std::string& path : disk.AllFiles()) EXPECT_EQ(path, "/run/checkpoints/.lease.lock");
    }
  }
}

TEST_F(RunLeaseTest, ADiskThatDoesNotAnswerIsNotTheSameAsALostLease) {
  const auto held = RunLease::Acquire("run", OptionsOf(disk_, clock_, "node1", 4242));
  ASSERT_TRUE(held.ok());
  disk_.SetFault([](int64_t, const std::string&, const std::string&) {
    return absl::UnavailableError("injected: Input/output error");
  });
  EXPECT_EQ((*held)->StillHeld().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ((*held)->Beat().code(), absl::StatusCode::kUnavailable);
  disk_.SetFault(nullptr);
  EXPECT_TRUE((*held)->StillHeld().ok());
  EXPECT_TRUE((*held)->Beat().ok());
  // Somebody followed the advice for a process that is certainly dead, and was wrong.
  ASSERT_TRUE(disk_.RemoveFile(kLease).ok());
  EXPECT_TRUE(Has((*held)->StillHeld(), "was removed"));
}

absl::Status SaveWithLease(FileSystem& files, int64_t step, int64_t keep_last, const RunLease* lease) {
  RankState state(SmallModel(), 1, 0, static_cast<uint64_t>(step));
  SaveRequest request;
  request.run_dir = "run";
  request.state = StateAt(step);
  request.slices = state.slices();
  request.keep = {.keep_last = keep_last};
  request.lease = lease;
  request.files = &files;
  return SaveCheckpoint(request);
}

TEST_F(RunLeaseTest, ASaveOfAHolderThatLostItsLeaseIsNotCommittedAndRemovesNothing) {
  const auto slow = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242));
  ASSERT_TRUE(slow.ok());
  ASSERT_TRUE(SaveWithLease(disk_, 1, 2, slow->get()).ok());
  ASSERT_TRUE(SaveWithLease(disk_, 2, 2, slow->get()).ok());
  const auto next = RunLease::Acquire("run", OptionsOf(b_, clock_, "node2", 1));
  ASSERT_TRUE(next.ok()) << next.status();
  // A save of the new holder is under way, and the disk is full.
  const std::string under_way = "run/checkpoints/.tmp-step-000000003-next";
  ASSERT_TRUE(disk_.CreateDirectory(under_way).ok());
  ASSERT_TRUE(WriteFile(disk_, under_way + "/model", "shard").ok());
  disk_.SetFreeBytes(0);
  const std::vector<std::string> before = disk_.AllFiles();
  const absl::Status refused = SaveWithLease(disk_, 3, 1, slow->get());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_TRUE(Has(refused, "taken over by process 1 on node2")) << refused;
  EXPECT_EQ(disk_.AllFiles(), before);
  EXPECT_EQ(ListCheckpoints("run", &disk_)->size(), 2u);
  disk_.SetFreeBytes(int64_t{1} << 40);
  EXPECT_TRUE(SaveWithLease(disk_, 3, 2, next->get()).ok());
}

TEST_F(RunLeaseTest, AHolderThatLosesItsLeaseWhileItReadsTheNewCheckpointRemovesNoOlderOne) {
  const auto slow = RunLease::Acquire("run", OptionsOf(a_, clock_, "node1", 4242));
  ASSERT_TRUE(slow.ok());
  ASSERT_TRUE(SaveWithLease(disk_, 1, 1, slow->get()).ok());
  bool lost = false;
  disk_.SetFault([&](int64_t, const std::string& call, const std::string& path) {
    if (call == "open" && path.find("step-000000002/model") != std::string::npos) {
      *disk_.Contents(kLease) = "somebody else's";
      lost = true;
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(SaveWithLease(disk_, 2, 1, slow->get()).ok());
  disk_.SetFault(nullptr);
  EXPECT_TRUE(lost);
  EXPECT_EQ(ListCheckpoints("run", &disk_)->size(), 2u);
}

TEST_F(RunLeaseTest, TheThreadKeepsTheCountRisingWhileOthersAsk) {
  LeaseOptions options = OptionsOf(disk_, clock_, "node1", 4242);
  options.thread = true;
  options.beat_seconds = 0.002;
  const auto held = RunLease::Acquire("run", options);
  ASSERT_TRUE(held.ok());
  std::atomic<int> asked = 0;
  std::vector<std::thread> askers;
  for (int i = 0; i < 3; ++i) {
    askers.emplace_back([&] {
      for (int n = 0; n < 50; ++n) {
        EXPECT_TRUE((*held)->StillHeld().ok());
        ++asked;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(asked, 150);
  EXPECT_TRUE((*held)->Beat().ok());
  EXPECT_EQ(disk_.Contents(kLease)->find("count=0 "), std::string::npos) << *disk_.Contents(kLease);
}

TEST_F(RunLeaseTest, OnARealDiskAKilledProcessLeavesNothingInTheWay) {
  const TempDir dir;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto lease = RunLease::Acquire(dir.path());
    const char byte = lease.ok() ? 'y' : 'n';
    if (write(ready[1], &byte, 1) != 1) _exit(1);
    pause();
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  const absl::Status refused = RunLease::Acquire(dir.path()).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Has(refused, absl::StrCat("process ", child, " on "))) << refused;
  ASSERT_EQ(kill(child, SIGKILL), 0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  close(ready[0]);
  close(ready[1]);
  auto lease = RunLease::Acquire(dir.path());
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE((*lease)->Beat().ok());
  EXPECT_TRUE((*lease)->StillHeld().ok());
  lease->reset();
  PosixFileSystem files;
  EXPECT_FALSE(files.Stat(dir.path() + "/checkpoints/.lease")->exists);
}

// ---- the probe of the directory

TEST_F(RunLeaseTest, AProbeTriesEveryCallOnEveryRankAndLeavesNothing) {
  for (const int world : {1, 3}) {
    MemoryFileSystem whole;
    const auto probe = [&](FileSystem& files) {
      std::vector<absl::Status> statuses(static_cast<size_t>(world));
      RunLocalRanks(world, [&](Communicator& c) {
        statuses[static_cast<size_t>(c.rank())] =
            ProbeRunDirectory("run", world == 1 ? nullptr : &c, true, &files);
      });
      for (const absl::Status& status : statuses) EXPECT_EQ(status, statuses[0]);
      return statuses[0];
    };
    ASSERT_TRUE(probe(whole).ok());
    EXPECT_TRUE(whole.AllFiles().empty());
    int failed = 0;
    for (int64_t k = 0; k < whole.num_calls(); ++k) {
      MemoryFileSystem files;
      std::string call;
      files.SetFault([&](int64_t index, const std::string& name, const std::string& path) {
        if (index != k) return absl::OkStatus();
        call = absl::StrCat(name, " ", path);
        return absl::ResourceExhaustedError("injected: No space left on device");
      });
      const absl::Status probed = probe(files);
      if (!probed.ok()) {
        ++failed;
        EXPECT_EQ(probed.code(), absl::StatusCode::kResourceExhausted) << call;
        EXPECT_TRUE(Has(probed, "injected") && Has(probed, "run directory")) << probed;
      } else {
        EXPECT_EQ(call.substr(0, 6), "unlink") << call;  // of what is not there any more
      }
      files.SetFault(nullptr);
      ASSERT_TRUE(SweepLeftovers("run", &files).ok());
      EXPECT_TRUE(files.AllFiles().empty()) << call;
    }
    EXPECT_GT(failed, 15);
  }
}

TEST_F(RunLeaseTest, AProbeSaysWhenARankSeesAnotherDirectory) {
  MemoryFileSystem shared, alone;
  std::vector<absl::Status> statuses(2);
  RunLocalRanks(2, [&](Communicator& c) {
    FileSystem& files = c.rank() == 0 ? shared : alone;
    EXPECT_TRUE(CreateDirectories(files, "run/checkpoints").ok());
    statuses[static_cast<size_t>(c.rank())] = ProbeRunDirectory("run", &c, true, &files);
  });
  EXPECT_EQ(statuses[0], statuses[1]);
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kFailedPrecondition) << statuses[0];
  EXPECT_TRUE(Has(statuses[0], "rank 1") && Has(statuses[0], "that all ranks share")) << statuses[0];
}
}  // namespace
}  // namespace carousel
