// Going back to the newest good checkpoint: what is loaded, what is set aside, what a crash on the way
// leaves.
#include "checkpoints/rollback.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {

constexpr char kRun[] = "run", kStore[] = "run/checkpoints/";
using Names = std::vector<std::string>;

class Rollback : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
  // Checkpoints 1 to 5; 1 and 3 are good, there are losses of 2 and 5.
  std::unique_ptr<MemoryFileSystem> Run() {
    auto files = std::make_unique<MemoryFileSystem>();
    for (int64_t step = 1; step <= 5; ++step) {
      EXPECT_TRUE(SaveStep(kRun, step, static_cast<uint64_t>(step), 0, nullptr, files.get()).ok());
    }
    for (const int64_t step : {1, 3}) EXPECT_TRUE(MarkGood(kRun, step, files.get()).ok());
    for (const int64_t step : {2, 5}) EXPECT_TRUE(RecordValidationLoss(kRun, step, 1.5, files.get()).ok());
    return files;
  }
  absl::StatusOr<WentBack> GoBack(FileSystem& files, bool fallback = false) {
    return GoBackToGood(kRun, state_.slices(), &train_, {.fallback = fallback, .files = &files});
  }
  // Names of directories in the store.
  static Names Steps(FileSystem& files) {
    Names found;
    const auto names = files.ListDirectory("run/checkpoints");
    EXPECT_TRUE(names.ok());
    for (const std::string& name : *names) {
      if (absl::StrContains(name, "step-")) found.push_back(name);
    }
    return found;
  }

  RankState state_{SmallModel(), 1, 0, 0};
  TrainState train_;
};

TEST_F(Rollback, TheNewestGoodOneIsLoadedAndLaterOnesAreSetAside) {
  const auto files = Run();
  const auto went = GoBack(*files);
  ASSERT_TRUE(went.ok()) << went.status();
  EXPECT_EQ(went->dir, absl::StrCat(kStore, "step-000000003"));
  EXPECT_EQ(went->set_aside, (Names{absl::StrCat(kStore, ".aside-step-000000005"),
                                    absl::StrCat(kStore, ".aside-step-000000004")}));
  EXPECT_EQ(train_, StateAt(3));
  EXPECT_TRUE(state_.Holds(3));
  EXPECT_EQ(Steps(*files), (Names{".aside-step-000000004", ".aside-step-000000005", "step-000000001",
                                  "step-000000002", "step-000000003"}));
  // Whole as they were, but no load and no policy meets them, and no mark of them is left.
  for (const std::string& dir : went->set_aside) EXPECT_TRUE(OpenCheckpoint(dir, files.get()).ok()) << dir;
  EXPECT_EQ(*files->ListDirectory("run/checkpoints/marks"),
            (Names{"step-000000001.good", "step-000000002.loss", "step-000000003.good"}));
  EXPECT_EQ(*FindCheckpoint(kRun, files.get()), went->dir);
  EXPECT_TRUE(absl::StartsWith(*files->Contents("run/checkpoints/LATEST"), "step-000000003 "));
  ASSERT_TRUE(SweepLeftovers(kRun, files.get()).ok());
  ASSERT_TRUE(PruneCheckpoints(kRun, {.keep_last = 1}, files.get()).ok());
  EXPECT_EQ(Steps(*files), (Names{".aside-step-000000004", ".aside-step-000000005", "step-000000003"}));
}

TEST_F(Rollback, ASecondTimeGetsOtherNames) {
  const auto files = Run();
  ASSERT_TRUE(GoBack(*files).ok());
  ASSERT_TRUE(SaveStep(kRun, 4, 44, 0, nullptr, files.get()).ok());
  const auto went = GoBack(*files);
  ASSERT_TRUE(went.ok()) << went.status();
  EXPECT_EQ(went->set_aside, Names{absl::StrCat(kStore, ".aside-step-000000004-2")});
  // Nothing is later than the newest.
  EXPECT_EQ(GoBack(*files)->set_aside, Names{});
}

TEST_F(Rollback, WithoutAGoodOneNothingIsChanged) {
  const auto files = std::make_unique<MemoryFileSystem>();
  EXPECT_EQ(GoBack(*files).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(SaveStep(kRun, 1, 1, 0, nullptr, files.get()).ok());
  const absl::Status none = GoBack(*files).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(none.message(), "marked as good")) << none;
  EXPECT_EQ(Steps(*files), Names{"step-000000001"});
}

TEST_F(Rollback, ADamagedGoodOneIsRefusedOrPassedOver) {
  const auto files = Run();
  files->Contents(absl::StrCat(kStore, "step-000000003/optim-00000-of-00001.safetensors"))->back() ^= 1;
  const absl::Status refused = GoBack(*files).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kDataLoss) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "optim-00000")) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "--checkpoint_fallback")) << refused;
  EXPECT_EQ(Steps(*files).size(), 5u);
  EXPECT_EQ(Steps(*files)[0], "step-000000001") << "nothing was set aside";
  const auto went = GoBack(*files, /*fallback=*/true);
  ASSERT_TRUE(went.ok()) << went.status();
  EXPECT_TRUE(state_.Holds(1));
  EXPECT_EQ(Steps(*files), (Names{".aside-step-000000002", ".aside-step-000000004", ".aside-step-000000005",
                                  ".bad-step-000000003", "step-000000001"}));
}

TEST_F(Rollback, EveryRankGoesBackOrNone) {
  for (const bool damaged : {false, true}) {
    const auto files = Run();
    if (damaged) files->Contents(absl::StrCat(kStore, "step-000000003/state.pb"))->back() ^= 1;
    RunLocalRanks(3, [&](Communicator& c) {
      RankState state(SmallModel(), 3, c.rank(), 0);
      TrainState train;
      const auto went =
          GoBackToGood(kRun, state.slices(), &train, {.communicator = &c, .files = files.get()});
      EXPECT_EQ(went.ok(), !damaged) << went.status();
      if (!went.ok()) return;
      EXPECT_EQ(train, StateAt(3));
      EXPECT_TRUE(state.Holds(3));
      EXPECT_EQ(went->set_aside.size(), c.rank() == 0 ? 2u : 0u);
    });
  }
}

TEST_F(Rollback, ACrashAnywhereLosesNoCheckpointAndNextTimeItGoesBack) {
  int64_t num_calls = 0;
  {
    const auto files = Run();
    files->SetFault(nullptr);
    ASSERT_TRUE(GoBack(*files).ok());
    num_calls = files->num_calls();
  }
  ASSERT_GT(num_calls, 20);
  for (int64_t k = 0; k < num_calls; ++k) {
    for (const auto mode : {MemoryFileSystem::Crash::kLoseAll, MemoryFileSystem::Crash::kKeepAll,
                            MemoryFileSystem::Crash::kRandom}) {
      const auto files = Run();
      files->SetFault([&](int64_t index, const std::string&, const std::string&) {
        return index >= k ? absl::UnavailableError("the machine is off") : absl::OkStatus();
      });
      EXPECT_FALSE(GoBack(*files).ok());
      files->CrashNow(mode, static_cast<uint64_t>(k));
      // All five are there, each whole under one of its names.
      const Names names = Steps(*files);
      ASSERT_EQ(names.size(), 5u) << "call " << k;
      for (const std::string& name : names) {
        EXPECT_TRUE(OpenCheckpoint(absl::StrCat(kStore, name), files.get()).ok()) << name << " call " << k;
      }
      const auto went = GoBack(*files);
      ASSERT_TRUE(went.ok()) << went.status() << " call " << k;
      EXPECT_TRUE(state_.Holds(3));
      EXPECT_EQ(Steps(*files).back(), "step-000000003");
    }
  }
}
}  // namespace
}  // namespace carousel
