// A save in the background of a run of two ranks that fails or dies at any single call: steps go on, and what
// was there before is found.
#include <gtest/gtest.h>

#include <set>

#include "checkpoints/background_saver.h"
#include "checkpoints/checkpoint.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/background_save_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {

constexpr int kWorld = 2;
constexpr int64_t kSmallFiles = 600;  // bytes of tensors per shard: several files

class BackgroundSaveFault : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
};

// Saves `step` with its number as the seed, in the background. What every rank was told.
std::vector<absl::Status> SaveInBackground(MemoryFileSystem& files, int64_t step) {
  std::vector<absl::Status> statuses(kWorld);
  RunLocalRanks(kWorld, [&](Communicator& c) {
    RankState state(SmallModel(), kWorld, c.rank(), static_cast<uint64_t>(step));
    BackgroundSaver saver({.staging_bytes = 4 << 20}, nullptr);
    absl::Status& status = statuses[static_cast<size_t>(c.rank())];
    status = saver.Start(RequestFor("run", step, 2, state, &c, &files, kSmallFiles));
    if (status.ok()) status = StepUntilEnd(saver, &c).status;
    EXPECT_FALSE(OneStep(saver, &c).has_value());  // steps go on
  });
  EXPECT_EQ(statuses[0], statuses[1]);
  return statuses;
}
std::unique_ptr<MemoryFileSystem> WithTwoCheckpoints() {
  auto files = std::make_unique<MemoryFileSystem>();
  RunLocalRanks(kWorld, [&](Communicator& c) {
    for (const int64_t step : {1, 2}) {
      const uint64_t seed = static_cast<uint64_t>(step);
      EXPECT_TRUE(SaveStep("run", step, seed, 2, &c, files.get(), kSmallFiles).ok());
    }
  });
  return files;
}
// The step that a run would go on from, all of its values verified; -1 if there is none.
int64_t ResumesFrom(FileSystem& files) {
  RankState state(SmallModel(), 1, 0, 0);
  TrainState train;
  const auto dir = LoadNewestGood("run", state.slices(), &train, {.files = &files});
  if (absl::IsNotFound(dir.status())) return -1;
  EXPECT_TRUE(dir.ok()) << dir.status();
  EXPECT_TRUE(state.Holds(static_cast<uint64_t>(train.step)));
  return train.step;
}
bool HasLeftovers(const MemoryFileSystem& files) {
  for (const std::string& path : files.AllFiles()) {
    if (path.find("/.tmp-") != std::string::npos || path.find("/.trash-") != std::string::npos) return true;
  }
  return false;
}
int64_t CallsOfASave() {
  const auto files = WithTwoCheckpoints();
  files->SetFault(nullptr);
  EXPECT_TRUE(SaveInBackground(*files, 3)[0].ok());
  return files->num_calls();
}
void ExpectNextSaveCleansUp(MemoryFileSystem& files) {
  files.SetFault(nullptr);
  const absl::Status saved = SaveInBackground(files, 4)[0];
  ASSERT_TRUE(saved.ok()) << saved;
  EXPECT_EQ(ResumesFrom(files), 4);
  EXPECT_FALSE(HasLeftovers(files));
  EXPECT_EQ(ListCheckpoints("run", &files)->size(), 2u);
}

TEST_F(BackgroundSaveFault, OneFailingCallCostsNeitherTheRunNorTheCheckpointThatWasThere) {
  const int64_t num_calls = CallsOfASave();
  ASSERT_GT(num_calls, 60);
  int failed = 0, succeeded = 0;
  for (int64_t k = 0; k < num_calls; ++k) {
    // A full disk, or a broken one. A failing write has written half of its bytes.
    for (const absl::Status& error : {absl::ResourceExhaustedError("injected: No space left on device"),
                                      absl::UnavailableError("injected: Input/output error")}) {
      const auto files = WithTwoCheckpoints();
      std::string call;
      files->SetFault([&](int64_t index, const std::string& name, const std::string& path) {
        if (index != k) return absl::OkStatus();
        call = name + " " + path;
        return error;
      });
      const absl::Status saved = SaveInBackground(*files, 3)[0];
      files->SetFault(nullptr);
      const int64_t step = ResumesFrom(*files);
      if (saved.ok()) {
        EXPECT_EQ(step, 3) << call;  // it was about LATEST, old checkpoints, or what had gone before
        ++succeeded;
      } else {
        EXPECT_NE(std::string(saved.message()).find("injected"), std::string::npos) << saved;
        EXPECT_EQ(step,
                  call == "fsync run/checkpoints" && ListCheckpoints("run", files.get())->size() == 3 ? 3 : 2)
            << call;
        ++failed;
      }
      ExpectNextSaveCleansUp(*files);
    }
  }
  EXPECT_GT(failed, 80);
  EXPECT_GT(succeeded, 10);
}

TEST_F(BackgroundSaveFault, ADeathAtAnyCallLeavesAWholeCheckpointToResumeFrom) {
  const int64_t num_calls = CallsOfASave();
  int old_found = 0, new_found = 0;
  for (int64_t k = 0; k <= num_calls; ++k) {
    for (int mode = 0; mode < 3; ++mode) {
      const auto files = WithTwoCheckpoints();
      files->SetFault([&](int64_t index, const std::string&, const std::string&) {
        return index < k ? absl::OkStatus() : absl::UnavailableError("the process is dead");
      });
      const absl::Status saved = SaveInBackground(*files, 3)[0];
      const auto crash = mode == 0   ? MemoryFileSystem::Crash::kLoseAll
                         : mode == 1 ? MemoryFileSystem::Crash::kKeepAll
                                     : MemoryFileSystem::Crash::kRandom;
      files->CrashNow(crash, static_cast<uint64_t>(100 * k + mode));
      const int64_t step = ResumesFrom(*files);
      if (saved.ok()) {
        EXPECT_EQ(step, 3) << "a save that was reported was lost, call " << k << " mode " << mode;
      } else {
        EXPECT_TRUE(step == 2 || step == 3) << step << ", call " << k << " mode " << mode;
      }
      ++(step == 3 ? new_found : old_found);
    }
  }
  EXPECT_GT(old_found, 60);
  EXPECT_GT(new_found, 20);
}

TEST_F(BackgroundSaveFault, TheOtherRanksStopWritingWhenOneHasFailed) {
  MemoryFileSystem memory;
  for (const char* const victim : {"model-00000", "optim-00001"}) {
    memory.SetFault([&](int64_t, const std::string& call, const std::string& path) {
      return call == "write" && path.find(victim) != std::string::npos
                 ? absl::ResourceExhaustedError(absl::StrCat("writing ", path, ": No space left on device"))
                 : absl::OkStatus();
    });
    std::vector<absl::Status> statuses(kWorld);
    RunLocalRanks(kWorld, [&](Communicator& c) {
      RankState state(SmallModel(), kWorld, c.rank(), 9);
      BackgroundSaver saver({.staging_bytes = 4 << 20}, nullptr);
      ASSERT_TRUE(saver.Start(RequestFor("run", 9, 2, state, &c, &memory)).ok());
      statuses[static_cast<size_t>(c.rank())] = StepUntilEnd(saver, &c).status;
    });
    EXPECT_EQ(statuses[0], statuses[1]);
    EXPECT_EQ(statuses[0].code(), absl::StatusCode::kResourceExhausted) << statuses[0];
    EXPECT_NE(std::string(statuses[0].message()).find(victim), std::string::npos) << statuses[0];
    EXPECT_EQ(std::string(statuses[0].message()).find("given up"), std::string::npos) << statuses[0];
    memory.SetFault(nullptr);
    EXPECT_FALSE(HasLeftovers(memory));
    EXPECT_EQ(ResumesFrom(memory), -1);
  }
}
}  // namespace
}  // namespace carousel
