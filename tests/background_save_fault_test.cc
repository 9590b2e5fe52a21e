// A save in the background of a run of two ranks that fails or dies at any single call: steps go on, and what
// was there before is found.
#include <gtest/gtest.h>

#include "checkpoints/background_saver.h"
#include "checkpoints/checkpoint.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/background_save_testing.h"
#include "tests/memory_file_system.h"
#include "tests/save_fault_testing.h"

namespace carousel {
namespace {

constexpr int kWorld = 2;

class BackgroundSaveFault : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
};

// In the background, by two ranks: what both were told.
absl::Status SaveInBackground(MemoryFileSystem& files, int64_t step) {
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
  return statuses[0];
}

TEST_F(BackgroundSaveFault, OneFailingCallCostsNeitherTheRunNorTheCheckpointThatWasThere) {
  ExpectHarmlessFailures(SaveInBackground);
}

TEST_F(BackgroundSaveFault, ADeathAtAnyCallLeavesAWholeCheckpointToResumeFrom) {
  ExpectAWholeCheckpointAfterDeaths(SaveInBackground, /*num_random=*/1);
}

TEST_F(BackgroundSaveFault, AnExceptionAtAnyCallIsAFailedSaveAndTheRunGoesOn) {
  const int64_t num_calls = CallsOfASave(SaveInBackground);
  int failed = 0, succeeded = 0;
  for (int64_t k = 0; k < num_calls; ++k) {
    const bool saved = SavesInSpiteOf(
        SaveInBackground, k, []() -> absl::Status { throw std::bad_alloc(); },
        absl::StatusCode::kResourceExhausted, "there is no host memory left");
    ++(saved ? succeeded : failed);
  }
  EXPECT_GT(failed, 40);
  EXPECT_GT(succeeded, 5);
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
