// Saving while training goes on: the same bytes as a save that waits, of the step that was asked for, through
// bounded memory; and what happens when the disk hangs.
#include "checkpoints/background_saver.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <set>
#include <tuple>
#include <utility>

#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/background_save_testing.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
const BackgroundSaveOptions kSmall = {.staging_bytes = 4 * kMiB};

// Three tensors of together 24 MiB with their moments; rows do not end where blocks do.
std::vector<TestTensor> LargerModel() { return {{"a", {1000, 1027}}, {"b", {3, 333, 701}}, {"c", {350003}}}; }

bool Has(const absl::Status& status, const std::string& part) {
  return std::string(status.message()).find(part) != std::string::npos;
}
bool IsShard(const std::string& path) { return path.find(".safetensors") != std::string::npos; }

// The value that was saved is that of `seed`.
void ExpectSaved(FileSystem* files, const std::string& dir, const std::vector<TestTensor>& model,
                 uint64_t seed) {
  RankState loaded(model, 1, 0, 0);
  const absl::Status status = LoadCheckpoint(dir, loaded.slices(), nullptr, nullptr, files);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(loaded.Holds(seed));
}

TEST(BackgroundSaver, WritesTheSameBytesAsASaveThatWaits) {
  for (const auto& [world, pool] : {std::pair(1, true), {2, true}, {3, true}, {1, false}, {3, false}}) {
    for (const int64_t max_file_bytes : {int64_t{600}, int64_t{1} << 30}) {
      MemoryFileSystem waiting, background;
      RunLocalRanks(world, [&](Communicator& c) {
        const absl::Status saved = SaveStep("run", 5, 7, 0, &c, &waiting, max_file_bytes);
        EXPECT_TRUE(saved.ok()) << saved;
        RankState state(SmallModel(), world, c.rank(), 7);
        BackgroundSaver saver(pool ? kSmall : BackgroundSaveOptions{}, nullptr);
        ASSERT_TRUE(saver.Start(RequestFor("run", 5, 0, state, &c, &background, max_file_bytes)).ok());
        EXPECT_TRUE(saver.in_flight());
        const SaveOutcome outcome = StepUntilEnd(saver, &c);
        EXPECT_TRUE(outcome.status.ok()) << outcome.status;
        EXPECT_EQ(outcome.step, 5);
        EXPECT_GT(outcome.num_bytes, 0);
        EXPECT_FALSE(saver.in_flight());
        EXPECT_EQ(saver.most_staging_bytes_used() > 0, pool);
      });
      const std::vector<std::string> paths = waiting.AllFiles();
      EXPECT_EQ(paths, background.AllFiles());
      int compared = 0;
      for (const std::string& path : paths) {
        // The manifests say when; the lease says who.
        if (path.find("step-") == std::string::npos || path.find("MANIFEST") != std::string::npos) continue;
        EXPECT_EQ(*waiting.Contents(path), *background.Contents(path)) << path;
        ++compared;
      }
      EXPECT_GE(compared, 4);
      ExpectSaved(&background, "run/checkpoints/step-000000005", SmallModel(), 7);
    }
  }
}

TEST(BackgroundSaver, SavesTheStateOfItsStepAlthoughLaterStepsChangeIt) {
  constexpr int kWorld = 2;
  MemoryFileSystem memory;
  Gate gate;
  ObservedFiles files(memory, [&](const std::string& call, const std::string& path) {
    if (call == "write" && IsShard(path)) gate.Pass();
  });
  RunLocalRanks(kWorld, [&](Communicator& c) {
    RankState state(SmallModel(), kWorld, c.rank(), 5);
    BackgroundSaver saver(kSmall, nullptr);
    ASSERT_TRUE(saver.Start(RequestFor("run", 5, 0, state, &c, &files)).ok());
    for (uint64_t step = 6; step < 9; ++step) {
      EXPECT_FALSE(OneStep(saver, &c).has_value());
      for (const StateSlice& slice : state.slices()) FillRandomBits(slice, step);
    }
    c.Barrier();
    gate.Open();
    const SaveOutcome outcome = StepUntilEnd(saver, &c);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_TRUE(state.Holds(8));
  });
  ExpectSaved(&memory, "run/checkpoints/step-000000005", SmallModel(), 5);
}

TEST(BackgroundSaver, PassesAnyStateThroughAPoolOfBoundedSize) {
  for (const int64_t blocks : {int64_t{1}, int64_t{2}, int64_t{5}}) {
    MemoryFileSystem files;
    RankState state(LargerModel(), 1, 0, 3);
    BackgroundSaver saver({.staging_bytes = blocks * kMiB}, nullptr);
    ASSERT_TRUE(saver.Start(RequestFor("run", 1, 0, state, nullptr, &files)).ok());
    const SaveOutcome outcome = StepUntilEnd(saver, nullptr);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_GT(outcome.num_bytes, 20 * kMiB);
    EXPECT_GE(saver.most_staging_bytes_used(), kMiB);
    EXPECT_LE(saver.most_staging_bytes_used(), blocks * kMiB);
    ExpectSaved(&files, "run/checkpoints/step-000000001", LargerModel(), 3);
  }
}

// Copies at once, and tells when so many blocks of a pool have been copied into.
class CountingCopier final : public StateCopier {
 public:
  CountingCopier(int64_t blocks, Gate* gate) : blocks_(blocks), gate_(gate) {}
  void* Allocate(int64_t bytes) override {
    memory_.resize(static_cast<size_t>(bytes));
    return memory_.data();
  }
  void Free(void*) override {}
  void Begin() override {}
  void Copy(void* host, const void* state, int64_t bytes) override {
    std::memcpy(host, state, static_cast<size_t>(bytes));
    used_.insert((static_cast<char*>(host) - memory_.data()) / kMiB);
    if (static_cast<int64_t>(used_.size()) == blocks_) gate_->Open();
  }
  void Wait() override {}

 private:
  const int64_t blocks_;
  Gate* const gate_;
  std::vector<char> memory_;
  std::set<int64_t> used_;
};

TEST(BackgroundSaver, FillsItsPoolWhileTheDiskIsSlow) {
  for (const int64_t blocks : {int64_t{1}, int64_t{2}, int64_t{5}}) {
    MemoryFileSystem memory;
    Gate gate;  // shards are written once every block of the pool is in use
    ObservedFiles files(memory, [&](const std::string& call, const std::string& path) {
      if (call == "write" && IsShard(path)) gate.Pass();
    });
    RankState state(LargerModel(), 1, 0, 3);
    CountingCopier copier(blocks, &gate);
    BackgroundSaver saver({.staging_bytes = blocks * kMiB}, &copier);
    SaveRequest request = RequestFor("run", 1, 0, state, nullptr, &files);
    request.copier = &copier;
    ASSERT_TRUE(saver.Start(request).ok());
    const SaveOutcome outcome = StepUntilEnd(saver, nullptr);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(saver.most_staging_bytes_used(), blocks * kMiB);
    ExpectSaved(&memory, "run/checkpoints/step-000000001", LargerModel(), 3);
  }
}

// Who looks for hangs must not take a slow disk for one: neither while blocks are copied nor at the end.
TEST(BackgroundSaver, GivesSignsOfLifeWhileItIsWaitedFor) {
  MemoryFileSystem files;
  std::atomic<int64_t> signs = 0;
  RankState state(LargerModel(), 1, 0, 3);
  BackgroundSaver saver({.staging_bytes = kMiB, .progress = [&] { ++signs; }}, nullptr);
  ASSERT_TRUE(saver.Start(RequestFor("run", 1, 0, state, nullptr, &files)).ok());
  saver.WaitUntilStaged();
  const int64_t signs_of_copies = signs;
  EXPECT_GT(signs_of_copies, 2) << "one for each block";
  const std::optional<SaveOutcome> outcome = saver.Finish();
  ASSERT_TRUE(outcome.has_value() && outcome->status.ok());
  EXPECT_GT(signs, signs_of_copies);
}

TEST(BackgroundSaver, TakesNoMoreMemoryThanItsPoolAndAnAllowance) {
  const TempDir dir;
  RankState state(LargerModel(), 1, 0, 3);
  const auto in_use = [] {
    const struct mallinfo2 info = mallinfo2();
    return static_cast<int64_t>(info.uordblks + info.hblkhd);
  };
  const int64_t before = in_use();
  std::atomic<int64_t> most = 0;
  PosixFileSystem posix;
  ObservedFiles files(posix, [&](const std::string&, const std::string&) {
    const int64_t now = in_use();
    if (now > most) most = now;
  });
  constexpr int64_t kPool = 3 * kMiB;
  BackgroundSaver saver({.staging_bytes = kPool}, nullptr);
  EXPECT_EQ(saver.staging_bytes(), kPool);
  ASSERT_TRUE(saver.Start(RequestFor(dir.path(), 1, 0, state, nullptr, &files)).ok());
  const SaveOutcome outcome = StepUntilEnd(saver, nullptr);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  // The buffer of a file, names and places.
  EXPECT_LT(most - before, kPool + 2 * kMiB);
}

TEST(BackgroundSaver, PlansAPoolForTheStateWithinItsLimit) {
  EXPECT_EQ(StagingBytes(0, 0), 2 * kMiB);
  EXPECT_EQ(StagingBytes(10 * kMiB + 1, 0), 13 * kMiB);
  EXPECT_EQ(StagingBytes(10 * kMiB, 4 * kMiB), 4 * kMiB);
  EXPECT_EQ(StagingBytes(int64_t{1} << 40, 0), int64_t{2} << 30);
  EXPECT_EQ(StagingBytes(int64_t{1} << 40, int64_t{8} << 30), int64_t{8} << 30);
}

TEST(BackgroundSaver, ASaveThatIsWaitedForIsThereOnReturn) {
  MemoryFileSystem files;
  RunLocalRanks(2, [&](Communicator& c) {
    RankState state(SmallModel(), 2, c.rank(), 4);
    BackgroundSaver saver(kSmall, nullptr);
    EXPECT_FALSE(saver.Finish().has_value());
    ASSERT_TRUE(saver.Start(RequestFor("run", 4, 0, state, &c, &files)).ok());
    const std::optional<SaveOutcome> outcome = saver.Finish();
    ASSERT_TRUE(outcome.has_value());
    EXPECT_TRUE(outcome->status.ok()) << outcome->status;
    EXPECT_GT(outcome->stalled_seconds, 0);
  });
  ExpectSaved(&files, *FindCheckpoint("run", &files), SmallModel(), 4);
}

TEST(BackgroundSaver, AStepThatIsThereAlreadyIsComparedAndNotWritten) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveStep("run", 4, 4, 0, nullptr, &files).ok());
  for (const uint64_t seed : {4, 5}) {
    int writes = 0;
    files.SetFault([&](int64_t, const std::string& call, const std::string& path) {
      writes += call == "write" && path.find(".lease") == std::string::npos;
      return absl::OkStatus();
    });
    RunLocalRanks(2, [&](Communicator& c) {
      RankState state(SmallModel(), 2, c.rank(), seed);
      BackgroundSaver saver(kSmall, nullptr);
      ASSERT_TRUE(saver.Start(RequestFor("run", 4, 0, state, &c, &files)).ok());
      const absl::Status status = StepUntilEnd(saver, &c).status;
      EXPECT_EQ(status.code(), seed == 4 ? absl::StatusCode::kOk : absl::StatusCode::kAlreadyExists)
          << status;
    });
    EXPECT_EQ(writes, 0);
    files.SetFault(nullptr);
  }
  ExpectSaved(&files, *FindCheckpoint("run", &files), SmallModel(), 4);
}

TEST(BackgroundSaver, ReplicasThatDifferAreRefused) {
  for (const bool equal : {true, false}) {
    MemoryFileSystem files;
    RunLocalRanks(2, [&](Communicator& c) {
      RankState state(SmallModel(), 1, 0, equal || c.rank() == 0 ? 4 : 5);  // all of it on both
      if (c.rank() == 1) {
        for (StateSlice& slice : state.slices()) slice.replica = true;
      }
      BackgroundSaver saver(kSmall, nullptr);
      ASSERT_TRUE(saver.Start(RequestFor("run", 4, 0, state, &c, &files)).ok());
      const absl::Status status = StepUntilEnd(saver, &c).status;
      EXPECT_EQ(status.code(), equal ? absl::StatusCode::kOk : absl::StatusCode::kFailedPrecondition)
          << status;
    });
  }
}

// ---- a disk that hangs

class HangingDisk : public testing::Test {
 protected:
  void SetUp() override {
    SetMinLogLevel(LogLevel::ERROR);
    RunLocalRanks(2, [&](Communicator& c) { EXPECT_TRUE(SaveStep("run", 1, 1, 2, &c, &memory_).ok()); });
  }
  void ExpectOnlyStep1() {
    EXPECT_EQ(ListCheckpoints("run", &memory_)->size(), 1u);
    ExpectSaved(&memory_, *FindCheckpoint("run", &memory_), SmallModel(), 1);
  }

  MemoryFileSystem memory_;
  Gate gate_;
};

TEST_F(HangingDisk, IsGivenUpInTimeWhileStepsGoOnAndUsedAgainWhenItComesBack) {
  for (const char* const victim : {"optim-00001", "MANIFEST.pb.tmp"}) {  // of rank 1; of the commit
    Gate gate;
    ObservedFiles files(memory_, [&](const std::string& call, const std::string& path) {
      if (call == "create" && path.find("step-000000002") != std::string::npos &&
          path.find(victim) != std::string::npos) {
        gate.Pass();
      }
    });
    RunLocalRanks(2, [&](Communicator& c) {
      RankState state(SmallModel(), 2, c.rank(), 2);
      BackgroundSaver saver({.staging_bytes = 4 * kMiB, .timeout_seconds = 0.5}, nullptr);
      ASSERT_TRUE(saver.Start(RequestFor("run", 2, 2, state, &c, &files)).ok());
      int steps = 0;
      const SaveOutcome outcome = StepUntilEnd(saver, &c, &steps);
      EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded) << outcome.status;
      EXPECT_NE(std::string(outcome.status.message()).find("0.5 s"), std::string::npos) << outcome.status;
      EXPECT_GT(steps, 10);
      EXPECT_LT(outcome.stalled_seconds, 3);
      EXPECT_LT(outcome.seconds, 5);
      c.Barrier();
      if (c.rank() == 0) ExpectOnlyStep1();
      c.Barrier();

      const absl::Status again = saver.Start(RequestFor("run", 3, 2, state, &c, &files));
      EXPECT_EQ(again.code(), absl::StatusCode::kUnavailable) << again;
      EXPECT_FALSE(saver.in_flight());
      gate.Open();
      absl::Status started;
      do {
        started = saver.Start(RequestFor("run", 2, 2, state, &c, &memory_));
      } while (absl::IsUnavailable(started));
      ASSERT_TRUE(started.ok()) << started;
      EXPECT_TRUE(StepUntilEnd(saver, &c).status.ok());
    });
    ExpectSaved(&memory_, *FindCheckpoint("run", &memory_), SmallModel(), 2);
    for (const std::string& path : memory_.AllFiles())
      EXPECT_EQ(path.find("/.tmp-"), std::string::npos) << path;
    ASSERT_TRUE(RemoveTree(memory_, "run/checkpoints/step-000000002").ok());
  }
}

TEST_F(HangingDisk, AfterTheCommitIsNoFailureOfTheSave) {
  ObservedFiles files(memory_, [&](const std::string&, const std::string& path) {
    if (path.find("LATEST") != std::string::npos) gate_.Pass();
  });
  RankState state(SmallModel(), 1, 0, 2);
  BackgroundSaver saver({.staging_bytes = 2 * kMiB, .timeout_seconds = 5}, nullptr);
  ASSERT_TRUE(saver.Start(RequestFor("run", 2, 2, state, nullptr, &files)).ok());
  const SaveOutcome outcome = StepUntilEnd(saver, nullptr);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_LT(outcome.seconds, 5);
  EXPECT_TRUE(saver.hung());
  ExpectSaved(&memory_, *FindCheckpoint("run", &memory_), SmallModel(), 2);
  gate_.Open();
}

TEST_F(HangingDisk, HoldsTrainingNoLongerThanTheTimeoutWhenThePoolIsSmall) {
  ObservedFiles files(memory_, [&](const std::string& call, const std::string& path) {
    if (call == "write" && IsShard(path)) gate_.Pass();
  });
  RankState state(LargerModel(), 1, 0, 2);
  BackgroundSaver saver({.staging_bytes = 2 * kMiB, .timeout_seconds = 0.3}, nullptr);
  ASSERT_TRUE(saver.Start(RequestFor("run", 2, 2, state, nullptr, &files)).ok());
  const SaveOutcome outcome = StepUntilEnd(saver, nullptr);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded) << outcome.status;
  EXPECT_GT(outcome.stalled_seconds, 0.2);
  EXPECT_LT(outcome.stalled_seconds, 2);
  ExpectOnlyStep1();
  gate_.Open();
}

TEST_F(HangingDisk, HoldsTrainingNoLongerThanOtherRanksWaitHoweverLongASaveMayTake) {
  ObservedFiles files(memory_, [&](const std::string& call, const std::string& path) {
    if (call == "write" && IsShard(path)) gate_.Pass();
  });
  RankState state(LargerModel(), 1, 0, 2);
  BackgroundSaver saver({.staging_bytes = 2 * kMiB, .timeout_seconds = 20, .staging_timeout_seconds = 0.3},
                        nullptr);
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(saver.Start(RequestFor("run", 2, 2, state, nullptr, &files)).ok());
  saver.WaitUntilStaged();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  // The disk comes back, but the state has gone on.
  gate_.Open();
  const SaveOutcome outcome = StepUntilEnd(saver, nullptr);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded) << outcome.status;
  ExpectOnlyStep1();
}

TEST_F(HangingDisk, HoldsTrainingNoLongerThanItsLimitsWhileADirectoryIsMade) {
  const BackgroundSaveOptions short_timeout = {.staging_bytes = 2 * kMiB, .timeout_seconds = 0.3};
  const BackgroundSaveOptions short_wait = {.staging_bytes = 2 * kMiB, .directory_seconds = 0.3};
  for (const BackgroundSaveOptions& options : {short_timeout, short_wait}) {
    Gate gate;
    ObservedFiles files(memory_, [&](const std::string& call, const std::string&) {
      if (call == "mkdir") gate.Pass();
    });
    RunLocalRanks(2, [&](Communicator& c) {
      RankState state(SmallModel(), 2, c.rank(), 2);
      BackgroundSaver saver(options, nullptr);
      const absl::Status started = saver.Start(RequestFor("run", 2, 2, state, &c, &files));
      EXPECT_EQ(started.code(), absl::StatusCode::kDeadlineExceeded) << started;
      EXPECT_TRUE(Has(started, "making a directory")) << started;
      EXPECT_FALSE(saver.in_flight());
      c.Barrier();
      gate.Open();
    });
    ExpectOnlyStep1();
  }
}

// To make room on a full disk may take as long as a save may; the message says that this is what took long.
TEST_F(HangingDisk, WaitsForTheRemovalOfOldCheckpointsAsLongAsASaveMayTake) {
  for (const double timeout : {30.0, 0.6}) {
    MemoryFileSystem memory;
    ASSERT_TRUE(SaveStep("run", 1, 1, 0, nullptr, &memory).ok());
    ASSERT_TRUE(SaveStep("run", 2, 2, 0, nullptr, &memory).ok());
    memory.SetFreeBytes(1000);
    Gate gate;
    ObservedFiles files(memory, [&](const std::string& call, const std::string& path) {
      if (call != "rename" || path.find(".trash-") == std::string::npos) return;
      if (timeout < 1) return gate.Pass();
      std::this_thread::sleep_for(std::chrono::milliseconds(600));
      memory.SetFreeBytes(int64_t{1} << 40);
    });
    RankState state(SmallModel(), 1, 0, 3);
    BackgroundSaver saver({.staging_bytes = 2 * kMiB, .timeout_seconds = timeout, .directory_seconds = 0.2},
                          nullptr);
    const absl::Status started = saver.Start(RequestFor("run", 3, 1, state, nullptr, &files));
    if (timeout < 1) {
      EXPECT_EQ(started.code(), absl::StatusCode::kDeadlineExceeded) << started;
      EXPECT_TRUE(Has(started, "0.6 s, while removing older checkpoints, since the disk is full")) << started;
    } else {
      EXPECT_TRUE(started.ok()) << started;
      EXPECT_TRUE(saver.Finish()->status.ok());
      EXPECT_EQ(ListCheckpoints("run", &memory)->size(), 1u);
    }
    gate.Open();
  }
}

TEST_F(HangingDisk, IsGivenUpInTimeByASaveThatTrainingWaitsFor) {
  for (const auto& [call, victim, what] :
       {std::tuple("write", "optim-00001", "writing and syncing shards"),
        std::tuple("fdatasync", "metrics.jsonl", "syncing the records of the run"),
        std::tuple("rename", "MANIFEST.pb", "writing the manifest")}) {
    memory_.AppendTo("run/metrics.jsonl", "{}\n");
    Gate gate;
    ObservedFiles files(memory_, [&, c = std::string(call), v = std::string(victim)](
                                     const std::string& name, const std::string& path) {
      if (name == c && path.find(v) != std::string::npos) gate.Pass();
    });
    RunLocalRanks(2, [&, expected = std::string(what)](Communicator& c) {
      RankState state(SmallModel(), 2, c.rank(), 2);
      BackgroundSaver saver({.staging_bytes = 0, .timeout_seconds = 0.5}, nullptr);
      ASSERT_TRUE(saver.Start(RequestFor("run", 2, 2, state, &c, &files)).ok());
      const SaveOutcome outcome = *saver.Finish();
      EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded) << outcome.status;
      EXPECT_TRUE(Has(outcome.status, "after 0.5 s, while " + expected)) << outcome.status;
      EXPECT_LT(outcome.seconds, 10);
      c.Barrier();
      gate.Open();
      while (saver.hung()) {
      }
      c.Barrier();
      ASSERT_TRUE(saver.Start(RequestFor("run", 2, 2, state, &c, &memory_)).ok());
      EXPECT_TRUE(saver.Finish()->status.ok());
    });
    ExpectSaved(&memory_, *FindCheckpoint("run", &memory_), SmallModel(), 2);
    ASSERT_TRUE(RemoveTree(memory_, "run/checkpoints/step-000000002").ok());
  }
}

TEST(BackgroundSaver, EndsAlthoughTheDiskHangs) {
  SetMinLogLevel(LogLevel::ERROR);
  // What hangs comes back after the saver is gone, and may look at this at any later time: never destroyed.
  struct Disk {
    MemoryFileSystem memory;
    Gate gate;
    std::atomic<bool> came_back = false;
    ObservedFiles files{memory, [this](const std::string& call, const std::string& path) {
                          if (call != "fdatasync" || !IsShard(path) || came_back) return;
                          gate.Pass();
                          came_back = true;
                        }};
  };
  static Disk& disk = *new Disk;
  ASSERT_TRUE(SaveStep("run", 1, 1, 2, nullptr, &disk.memory).ok());
  const auto start = std::chrono::steady_clock::now();
  {
    RankState state(SmallModel(), 1, 0, 2);
    BackgroundSaver saver({.staging_bytes = 2 * kMiB, .timeout_seconds = 0.2}, nullptr);
    ASSERT_TRUE(saver.Start(RequestFor("run", 2, 2, state, nullptr, &disk.files)).ok());
    const std::optional<SaveOutcome> outcome = saver.Finish();
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->status.code(), absl::StatusCode::kDeadlineExceeded) << outcome->status;
    EXPECT_TRUE(saver.hung());
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
  disk.gate.Open();
  while (!disk.came_back) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // it would commit now
  EXPECT_EQ(ListCheckpoints("run", &disk.memory)->size(), 1u);
  ExpectSaved(&disk.memory, *FindCheckpoint("run", &disk.memory), SmallModel(), 1);
}
}  // namespace
}  // namespace carousel
