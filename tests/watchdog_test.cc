// The watchdog as a thread and as the end of a process. Whole runs: watchdog_run_test.sh.
#include "launcher/watch/watchdog.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>

#include "core/base/exit_code.h"
#include "launcher/watch/flight_report.h"
#include "launcher/watch/thread_stacks.h"
#include "parallel/local_communicator.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {
using Section = Watchdog::Section;

RunSpec::Watchdog Limits(double seconds) {
  return {.setup_seconds = seconds,
          .step_seconds = seconds,
          .evaluation_seconds = seconds,
          .sample_seconds = seconds,
          .save_seconds = seconds,
          .finish_seconds = seconds};
}

// A clock that the test sets, and what the watchdog said at the end.
struct Ended {
  std::atomic<double> now = 100;
  std::atomic<int> code = -1;
  std::atomic<int64_t> num_asked = 0;
  std::mutex mutex;
  std::string reason;
  Watchdog::Options Options() {
    return {.ending =
                [this](int, const std::string& why, const std::vector<std::string>&) {
                  const std::lock_guard<std::mutex> lock(mutex);
                  reason = why;
                },
            .tick_seconds = 0.001,
            .gather_seconds = 0,
            .clock =
                [this] {
                  ++num_asked;
                  return now.load();
                },
            .exit = [this](int exit_code) { code = exit_code; }};
  }
  // In steps that are no jump of the clock: the watchdog looks at each.
  void Pass(double seconds) {
    for (const double end = now + seconds; now < end && code < 0;) {
      now = now + 0.5;
      const int64_t before = num_asked;
      while (num_asked <= before + 1 && code < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  bool Wait() {
    for (int i = 0; i < 3000 && code < 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return code >= 0;
  }
};

TEST(Watchdog, EndsAProcessThatMakesNoProgressAndSaysInWhat) {
  Ended ended;
  Watchdog watchdog(ended.Options());
  watchdog.SetLimits(Limits(5));
  watchdog.Enter(Section::kEvaluation);
  ended.Pass(4);
  EXPECT_EQ(ended.code, -1);
  ended.Pass(3);
  ASSERT_TRUE(ended.Wait());
  EXPECT_EQ(ended.code, kExitTransport);
  const std::lock_guard<std::mutex> lock(ended.mutex);
  EXPECT_NE(ended.reason.find("an evaluation batch made no progress for"), std::string::npos) << ended.reason;
  EXPECT_NE(ended.reason.find("raise watchdog.evaluation_seconds, or watchdog.scale"), std::string::npos)
      << ended.reason;
}

TEST(Watchdog, MarksAndCallsAreProgress) {
  Ended ended;
  const std::unique_ptr<Communicator> self = MakeSelfCommunicator();
  self->set_name("world");
  Watchdog watchdog(ended.Options());
  watchdog.SetLimits(Limits(5));
  watchdog.Watch(*self);
  watchdog.Enter(Section::kStep);
  for (int i = 0; i < 4; ++i) {
    ended.Pass(3);
    self->Barrier();
    ended.Pass(3);
    watchdog.Progress();
  }
  EXPECT_EQ(ended.code, -1);
  watchdog.ForgetCommunicators();
}

// A disk that is slow for once holds up the step after a save: such a save is given up, not the run.
TEST(Watchdog, AStepAfterASaveMayTakeAsLongAsWaitingForOne) {
  Ended ended;
  Watchdog watchdog(ended.Options());
  RunSpec::Watchdog limits = Limits(5);
  limits.save_seconds = 30;
  watchdog.SetLimits(limits);
  for (int i = 0; i < 3; ++i) watchdog.Enter(Section::kStepAfterSave);
  EXPECT_EQ(watchdog.timer().LimitOf(Section::kStepAfterSave), 30);
  ended.Pass(28);
  EXPECT_EQ(ended.code, -1);
  ended.Pass(5);
  ASSERT_TRUE(ended.Wait());
  EXPECT_EQ(ended.code, kExitTransport);
}

// What could keep the process from ending is given up before it ends, not earlier.
TEST(Watchdog, AbandonsTheCallsUnderWayBeforeItEnds) {
  Ended ended;
  const std::unique_ptr<Communicator> self = MakeSelfCommunicator();
  std::atomic<int> num_abandoned = 0;
  Watchdog::Options options = ended.Options();
  options.abandon = [&](Communicator& communicator) { num_abandoned += &communicator == self.get(); };
  Watchdog watchdog(options);
  watchdog.SetLimits(Limits(5));
  watchdog.Watch(*self);
  ended.Pass(4);
  EXPECT_EQ(num_abandoned, 0);
  ended.Pass(3);
  ASSERT_TRUE(ended.Wait());
  EXPECT_EQ(num_abandoned, 1);
  watchdog.ForgetCommunicators();
}

TEST(Watchdog, DisabledItLetsAProcessHang) {
  Ended ended;
  Watchdog watchdog(ended.Options());
  RunSpec::Watchdog limits = Limits(1);
  limits.enabled = false;
  watchdog.SetLimits(limits);
  ended.Pass(20);
  EXPECT_EQ(ended.code, -1);
}

TEST(Watchdog, EndsARankThatWasToldToEndAndDoesNotGetOn) {
  Ended ended;
  std::atomic<bool> told = false;
  Watchdog::Options options = ended.Options();
  options.end_requested = [&told] { return told.load(); };
  Watchdog watchdog(options);
  watchdog.SetLimits(Limits(1000));
  watchdog.Identify(1, 4, "node", {});
  told = true;
  for (int i = 0; i < 5; ++i) {
    ended.Pass(3);
    watchdog.Progress();  // it gets on
  }
  EXPECT_EQ(ended.code, -1);
  ended.Pass(Watchdog::kEndSeconds + 2);
  ASSERT_TRUE(ended.Wait());
  EXPECT_EQ(ended.code, kExitTerminated);
}

TEST(Watchdog, AProcessAloneMayTakeItsTimeToEnd) {
  Ended ended;
  Watchdog::Options options = ended.Options();
  options.end_requested = [] { return true; };
  Watchdog watchdog(options);
  watchdog.SetLimits(Limits(1000));
  ended.Pass(20);
  EXPECT_EQ(ended.code, -1);
}

TEST(Watchdog, GiveUpEndsOnceWithTheCodeThatIsGiven) {
  Ended ended;
  Watchdog watchdog(ended.Options());
  watchdog.GiveUp(kExitHardware, "GPU 3 computes wrong", {"node7"});
  EXPECT_EQ(ended.code, kExitHardware);
  ended.code = -1;
  watchdog.GiveUp(kExitTransport, "late", {});
  EXPECT_EQ(ended.code, -1);
}

TEST(Watchdog, WhoGivesUpBecauseOfAnotherLeavesARecordToo) {
  TempDir dir;
  Ended ended;
  const std::unique_ptr<Communicator> self = MakeSelfCommunicator();
  Watchdog watchdog(ended.Options());
  watchdog.SetLimits(Limits(1000));
  watchdog.Identify(0, 2, "node1", {"node1", "node2"});
  watchdog.SetDirectory(dir.path() + "/flight");
  watchdog.Watch(*self);
  watchdog.Enter(Section::kStep);
  self->Barrier();
  watchdog.GiveUpWithRecord(kExitTransport, "node2 has given no sign of life", {"node2"});
  EXPECT_EQ(ended.code, kExitTransport);
  EXPECT_EQ(ended.reason, "node2 has given no sign of life");
  const auto records = ReadFlightRecords(dir.path());
  ASSERT_TRUE(records.ok()) << records.status();
  ASSERT_EQ(records->size(), 1u);
  const FlightRecord& record = records->front();
  EXPECT_EQ(record.ended_because, "node2 has given no sign of life");
  EXPECT_EQ(record.section, "a step");
  ASSERT_EQ(record.groups.size(), 1u);
  EXPECT_EQ(record.groups[0].num_calls, 1);
  std::ifstream file(FlightRecordPath(dir.path() + "/flight", 0, "txt"));
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_NE(text.find("ended because: node2 has given no sign of life\n"), std::string::npos) << text;
  EXPECT_NE(text.find("thread "), std::string::npos) << text;
  watchdog.ForgetCommunicators();
}

[[gnu::noinline]] void SleepForALongTime() {
  volatile int64_t n = 0;
  while (n < 1000) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    n = n + 1;
  }
}

[[gnu::noinline]] void ComputeUntil(const std::atomic<bool>& stop, std::atomic<int64_t>* rounds) {
  while (!stop) rounds->fetch_add(1);
}

// The signal also meets a thread that computes.
TEST(ThreadStacks, NamesFunctionsOfOtherThreads) {
  PrepareThreadStacks();
  std::atomic<bool> stop = false;
  std::atomic<int64_t> rounds = 0;
  std::thread computes([&] { ComputeUntil(stop, &rounds); });
  while (rounds == 0) std::this_thread::yield();
  const std::string text = StacksOfOtherThreads(5);
  stop = true;
  computes.join();
  EXPECT_NE(text.find("thread "), std::string::npos) << text;
#if !defined(__SANITIZE_THREAD__)  // which delivers signals when a thread calls the library
  EXPECT_NE(text.find("ComputeUntil"), std::string::npos) << text;
#endif
}

// A real process: it hangs, writes its record and the stacks, and ends.
TEST(WatchdogProcess, LeavesARecordWithStacksAndExits71) {
  const TempDir dir;
  const std::string records = dir.path() + "/a/flight", errors = dir.path() + "/err";
  const auto start = std::chrono::steady_clock::now();
  const pid_t child = fork();
  if (child == 0) {
    if (freopen(errors.c_str(), "w", stderr) == nullptr) _exit(1);
    const std::unique_ptr<Communicator> self = MakeSelfCommunicator();
    self->set_name("world");
    Watchdog watchdog({.machine = [] { return std::string("GPU 3: 91 C\n"); }});
    watchdog.Identify(0, 1, "node7", {"node7"});
    watchdog.SetDirectory(records);
    watchdog.SetLimits(Limits(1));
    watchdog.Watch(*self);
    self->Barrier();
    watchdog.Enter(Section::kStep);
    SleepForALongTime();
    _exit(2);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == kExitTransport) << status;
  EXPECT_LE(std::chrono::steady_clock::now() - start, std::chrono::seconds(1 + 15));
  const auto read = [](const std::string& path) {
    std::ifstream file(path);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  };
  const std::string said = read(errors);
  EXPECT_NE(said.find("[rank 0] watchdog: rank 0 of 1 on node7: a step, no progress for 1."),
            std::string::npos)
      << said;
  EXPECT_NE(said.find("Barrier() at "), std::string::npos) << said;
  const std::string text = read(FlightRecordPath(records, 0, "txt"));
  EXPECT_NE(text.find("thread "), std::string::npos) << text;
  EXPECT_NE(text.find("GPU 3: 91 C"), std::string::npos) << text;
#if !defined(__SANITIZE_THREAD__)
  EXPECT_NE(text.find("SleepForALongTime"), std::string::npos) << text;
#endif
  EXPECT_TRUE(ParseFlightRecord(read(FlightRecordPath(records, 0, "json"))).ok());
  EXPECT_EQ(std::filesystem::status(FlightRecordPath(records, 0, "json")).permissions() &
                std::filesystem::perms::others_all,
            std::filesystem::perms::none);
}

// The report itself cannot be written (nobody reads stderr) nor the record (the disk does not answer).
TEST(WatchdogProcess, EndsEvenIfNothingCanBeWritten) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const auto start = std::chrono::steady_clock::now();
  const pid_t child = fork();
  if (child == 0) {
    dup2(pipe_ends[1], STDERR_FILENO);
    const std::string full(1 << 20, 'x');
    Watchdog watchdog({});
    watchdog.SetLimits(Limits(0.5));
    while (write(STDERR_FILENO, full.data(), full.size()) != 0) {  // blocks for ever
    }
    _exit(2);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == kExitTransport) << status;
  EXPECT_LE(std::chrono::steady_clock::now() - start, std::chrono::seconds(1 + 17));
}

// A process that was stopped and goes on is not ended for the time that it did not run.
TEST(WatchdogProcess, SurvivesBeingStopped) {
  const pid_t child = fork();
  if (child == 0) {
    Watchdog watchdog({});
    watchdog.SetLimits(Limits(5));
    for (int i = 0; i < 30; ++i) {
      watchdog.Enter(Section::kStep);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    _exit(0);
  }
  std::this_thread::sleep_for(std::chrono::seconds(1));
  kill(child, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(7));
  kill(child, SIGCONT);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}
}  // namespace
}  // namespace carousel
