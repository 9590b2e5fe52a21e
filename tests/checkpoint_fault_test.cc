// A save that fails or dies at any single call: the checkpoints that were there stay, and are what is found.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>

#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/save_fault_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

// Warnings about injected faults are not of interest.
class CheckpointFault : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
};

absl::Status SaveAlone(MemoryFileSystem& files, int64_t step) {
  return SaveStep("run", step, static_cast<uint64_t>(step), 2, nullptr, &files, kSmallFiles);
}

TEST_F(CheckpointFault, OneFailingCallNeverCostsTheCheckpointThatWasThere) {
  ExpectHarmlessFailures(SaveAlone);
}

TEST_F(CheckpointFault, ACrashAtAnyCallLeavesAWholeCheckpointToResumeFrom) {
  ExpectAWholeCheckpointAfterDeaths(SaveAlone, /*num_random=*/3);
}

// Otherwise the test above would not notice that nobody syncs them.
TEST_F(CheckpointFault, ARecordThatNobodySyncedIsLostInACrash) {
  const auto files = WithTwoCheckpoints(SaveAlone);
  files->AppendTo("run/metrics.jsonl", RecordOf(3));
  files->CrashNow(MemoryFileSystem::Crash::kLoseAll, 0);
  EXPECT_EQ(*files->Contents("run/metrics.jsonl"), RecordOf(1) + RecordOf(2));
}

TEST_F(CheckpointFault, ACrashDuringTheFirstSaveLeavesNoCheckpointOrAWholeOne) {
  MemoryFileSystem clean;
  ASSERT_TRUE(SaveAlone(clean, 1).ok());
  int none = 0, whole = 0;
  for (int64_t k = 0; k <= clean.num_calls(); ++k) {
    for (const auto crash : {MemoryFileSystem::Crash::kLoseAll, MemoryFileSystem::Crash::kKeepAll}) {
      MemoryFileSystem files;
      files.SetFault(DeadFrom(k));
      const absl::Status saved = SaveAlone(files, 1);
      files.CrashNow(crash, 0);
      const int64_t step = ResumesFrom(files);
      EXPECT_TRUE(step == 1 || (step == -1 && !saved.ok())) << k;
      ++(step == 1 ? whole : none);
    }
  }
  EXPECT_GT(none, 20);
  EXPECT_GT(whole, 5);
}

TEST_F(CheckpointFault, OneRanksErrorIsEveryRanksError) {
  for (const char* const victim :
       {"model-00000", "model-00001", "model-00002", "optim-00002", "MANIFEST.pb"}) {
    MemoryFileSystem files;
    const auto save = [&](int64_t step) {
      std::vector<absl::Status> statuses(3);
      RunLocalRanks(3, [&](Communicator& c) {
        statuses[static_cast<size_t>(c.rank())] =
            SaveStep("run", step, static_cast<uint64_t>(step), 0, &c, &files);
      });
      EXPECT_EQ(statuses[0], statuses[1]);
      EXPECT_EQ(statuses[0], statuses[2]);
      return statuses[0];
    };
    ASSERT_TRUE(save(1).ok());
    files.SetFault([&](int64_t, const std::string& call, const std::string& path) {
      return call == "write" && path.find(victim) != std::string::npos
                 ? absl::ResourceExhaustedError(absl::StrCat("writing ", path, ": No space left on device"))
                 : absl::OkStatus();
    });
    const absl::Status saved = save(2);
    EXPECT_EQ(saved.code(), absl::StatusCode::kResourceExhausted) << victim;
    EXPECT_NE(std::string(saved.message()).find(victim), std::string::npos) << saved;
    files.SetFault(nullptr);
    EXPECT_FALSE(HasLeftovers(files));
    EXPECT_EQ(ResumesFrom(files), 1);
    ASSERT_TRUE(save(3).ok());
    EXPECT_EQ(ResumesFrom(files), 3);
  }
}

TEST_F(CheckpointFault, AnErrorWhileReadingReachesEveryRank) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveAlone(files, 1).ok());
  files.SetFault(nullptr);
  EXPECT_EQ(ResumesFrom(files), 1);
  const int64_t num_calls = files.num_calls();
  for (int64_t k = 0; k < num_calls; ++k) {
    files.SetFault([&](int64_t index, const std::string&, const std::string&) {
      return index == k ? absl::UnavailableError("injected") : absl::OkStatus();
    });
    std::vector<absl::Status> statuses(2);
    RunLocalRanks(2, [&](Communicator& c) {
      RankState state(SmallModel(), 2, c.rank(), 0);
      TrainState train;
      statuses[static_cast<size_t>(c.rank())] =
          LoadNewestGood("run", state.slices(), &train, {.communicator = &c, .files = &files}).status();
    });
    EXPECT_EQ(statuses[0], statuses[1]);
    EXPECT_FALSE(statuses[0].ok()) << k;
  }
}

TEST_F(CheckpointFault, AFullDiskIsNoticedBeforeAnythingIsWritten) {
  const auto files = WithTwoCheckpoints(SaveAlone);
  files->SetFreeBytes(1000);
  int writes = 0;
  files->SetFault([&](int64_t, const std::string& call, const std::string& path) {
    // The lease is taken first, and lies on the same disk.
    writes += (call == "write" || call == "create") && path.find("/.lease") == std::string::npos;
    return absl::OkStatus();
  });
  const absl::Status saved = SaveAlone(*files, 3);
  EXPECT_EQ(saved.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(saved.message()).find("1000 are free"), std::string::npos) << saved;
  EXPECT_EQ(writes, 0);
  EXPECT_EQ(ResumesFrom(*files), 2);
}

TEST_F(CheckpointFault, AThreadThatReadsAheadAndHasNoMemoryFailsTheLoad) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveAlone(files, 1).ok());
  files.SetFault([main = std::this_thread::get_id()](int64_t, const std::string& call, const std::string&) {
    if (call == "read" && std::this_thread::get_id() != main) throw std::bad_alloc();
    return absl::OkStatus();
  });
  RankState state(SmallModel(), 1, 0, 0);
  TrainState train;
  const absl::Status loaded = LoadNewestGood("run", state.slices(), &train, {.files = &files}).status();
  EXPECT_EQ(loaded.code(), absl::StatusCode::kResourceExhausted) << loaded;
  EXPECT_NE(std::string(loaded.message()).find("no host memory"), std::string::npos) << loaded;
}

// ---- the real file system

// How many of the pages of a file are in memory.
int64_t CachedPages(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY);
  EXPECT_GE(fd, 0);
  const size_t num_bytes = std::filesystem::file_size(path);
  void* const memory = mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, fd, 0);
  EXPECT_NE(memory, MAP_FAILED);
  std::vector<unsigned char> resident((num_bytes + 4095) / 4096);
  EXPECT_EQ(mincore(memory, num_bytes, resident.data()), 0);
  munmap(memory, num_bytes);
  close(fd);
  return std::count_if(resident.begin(), resident.end(), [](unsigned char page) { return page & 1; });
}

// Whether files of a directory are nowhere but in memory.
bool IsInMemory(const std::string& dir) {
  struct statfs info;
  EXPECT_EQ(statfs(dir.c_str(), &info), 0) << dir;
  constexpr long kTmpfs = 0x01021994;
  return info.f_type == kTmpfs;
}

TEST_F(CheckpointFault, WhatIsReadAfterDroppingItFromMemoryComesFromTheDisk) {
  // Where temporary files are in memory, the directory that the tests were built in is on a disk.
  const TempDir temporary;
  const std::string dir = IsInMemory(temporary.path()) ? "." : temporary.path();
  const std::string path = dir + "/dropped_from_memory";
  PosixFileSystem files;
  ASSERT_TRUE(WriteFile(files, path, std::string(8 << 20, 'x')).ok());
  ASSERT_GT(CachedPages(path), 1000);
  EXPECT_TRUE(files.SyncFile(path).ok());
  EXPECT_TRUE(files.DropCached(path).ok());
  const int64_t pages_left = CachedPages(path);
  std::filesystem::remove(path);
  EXPECT_EQ(files.DropCached(path).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(files.SyncFile(path).code(), absl::StatusCode::kNotFound);
  if (IsInMemory(dir)) GTEST_SKIP() << "there is no disk here: all but the pages in memory was checked";
  EXPECT_EQ(pages_left, 0);
}

TEST_F(CheckpointFault, AFileThatCannotGrowIsReportedAndTheCheckpointStays) {
  const TempDir dir;
  ASSERT_TRUE(SaveStep(dir.path(), 1, 1, 2, nullptr, nullptr).ok());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // No file may grow beyond 4500 bytes: the header of a shard fits, its tensors do not.
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {4500, 4500};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
    const absl::Status saved = SaveStep(dir.path(), 2, 2, 2, nullptr, nullptr);
    _exit(absl::IsResourceExhausted(saved) ? 0 : 1);
  }
  int wait_status = 0;
  ASSERT_EQ(waitpid(child, &wait_status, 0), child);
  EXPECT_TRUE(WIFEXITED(wait_status));
  EXPECT_EQ(WEXITSTATUS(wait_status), 0);
  EXPECT_EQ(*FindCheckpoint(dir.path()), dir.path() + "/checkpoints/step-000000001");
  for (const auto& entry : std::filesystem::directory_iterator(dir.path() + "/checkpoints")) {
    EXPECT_NE(entry.path().filename().string().rfind(".tmp-", 0), 0u) << entry.path();
  }
}

TEST_F(CheckpointFault, KilledAtRandomMomentsARunResumesFromItsNewestCheckpoint) {
  const TempDir dir;
  ASSERT_TRUE(SaveStep(dir.path(), 1, 1, 2, nullptr, nullptr).ok());
  int64_t last = 1;
  // A save takes from one to some hundred milliseconds here or there; longer each time until it got
  // somewhere.
  for (int round = 0; round < 8 || (last == 1 && round < 30); ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t step = last + 1;; ++step) {
        if (!SaveStep(dir.path(), step, static_cast<uint64_t>(step), 2, nullptr, nullptr).ok()) {
          _exit(1);
        }
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5 + 67 * round));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int wait_status = 0;
    ASSERT_EQ(waitpid(child, &wait_status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(wait_status)) << "a save failed";

    RankState state(SmallModel(), 1, 0, 0);
    TrainState train;
    const auto found = LoadNewestGood(dir.path(), state.slices(), &train, {});
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_TRUE(state.Holds(static_cast<uint64_t>(train.step)));
    ASSERT_GE(train.step, last);
    last = train.step;
  }
  EXPECT_GT(last, 1);
  // The lease of the dead is gone; what they left behind is swept.
  ASSERT_TRUE(SaveStep(dir.path(), last + 1, 5, 2, nullptr, nullptr).ok());
  int checkpoints = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path() + "/checkpoints")) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(name.rfind(".tmp-", 0) != 0 && name.rfind(".trash-", 0) != 0) << name;
    checkpoints += name.rfind("step-", 0) == 0;
  }
  EXPECT_EQ(checkpoints, 2);
}
}  // namespace
}  // namespace carousel
