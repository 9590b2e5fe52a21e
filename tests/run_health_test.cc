// What a run notes about its checkpoints while it trains: when one counts as good, that training does not
// wait for it, in which order it reaches the disk, and what happens when it does not.
#include "checkpoints/run_health.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/marks.h"
#include "core/base/log.h"
#include "tests/background_save_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {

constexpr char kRun[] = "run";
constexpr double kLong = 60;  // seconds

std::string StepDir(int64_t step) {
  return absl::StrCat("run/checkpoints/step-", std::string(9 - std::to_string(step).size(), '0'), step);
}
absl::Status SaveAt(FileSystem& files, int64_t step) {
  return SaveStep(kRun, step, static_cast<uint64_t>(step), 0, nullptr, &files);
}
std::unique_ptr<MemoryFileSystem> WithCheckpoints(const std::vector<int64_t>& steps) {
  auto files = std::make_unique<MemoryFileSystem>();
  for (const int64_t step : steps) EXPECT_TRUE(SaveAt(*files, step).ok());
  return files;
}
std::vector<CheckpointMarks> MarksOf(FileSystem& files) {
  auto marks = ReadMarks(kRun, &files);
  EXPECT_TRUE(marks.ok()) << marks.status();
  return marks.ok() ? *std::move(marks) : std::vector<CheckpointMarks>();
}
// A step whose marks are waited for.
void Step(RunHealth& health, int64_t step, bool healthy) {
  const absl::Status stepped = health.AfterStep(step, healthy);
  EXPECT_TRUE(stepped.ok()) << stepped;
  const absl::Status finished = health.Finish(kLong);
  EXPECT_TRUE(finished.ok()) << finished;
}

class RunHealthTest : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
};

TEST_F(RunHealthTest, ACheckpointIsGoodAfterSoManyHealthyStepsInARow) {
  const auto files = WithCheckpoints({10, 20});
  auto health = *RunHealth::Open(kRun, 20, 0, 5, files.get());
  const auto good = [&](int64_t step) {
    for (const CheckpointMarks& marks : MarksOf(*files)) {
      if (marks.step == step) return marks.good;
    }
    return false;
  };
  // Step 10 has its five behind it, and nothing was skipped.
  Step(*health, 21, true);
  EXPECT_TRUE(good(10) && !good(20));
  for (int64_t step = 22; step < 25; ++step) Step(*health, step, true);
  EXPECT_FALSE(good(20));
  Step(*health, 25, false);
  ASSERT_TRUE(SaveAt(*files, 26).ok());
  Step(*health, 26, true);
  health->Committed(26);
  for (int64_t step = 27; step < 30; ++step) Step(*health, step, true);
  EXPECT_FALSE(good(20));
  // A restart at 26 remembers step 25.
  health = *RunHealth::Open(kRun, 26, 0, 5, files.get());
  for (int64_t step = 27; step < 30; ++step) Step(*health, step, true);
  EXPECT_FALSE(good(20));
  Step(*health, 30, true);
  EXPECT_TRUE(good(20) && !good(26));
  Step(*health, 31, true);
  EXPECT_TRUE(good(26));
  EXPECT_EQ(*FindGoodCheckpoint(kRun, files.get()), StepDir(26));
}

TEST_F(RunHealthTest, AnUnhealthyStepThatTheDiskRefusedIsRememberedAsSoonAsItTakesIt) {
  const auto files = WithCheckpoints({10});
  auto health = *RunHealth::Open(kRun, 10, 0, 5, files.get());
  files->SetFault([](int64_t, const std::string&, const std::string&) {
    return absl::ResourceExhaustedError("No space left on device");
  });
  EXPECT_TRUE(health->AfterStep(11, false).ok());  // nobody waited for it
  EXPECT_EQ(health->Finish(60).code(), absl::StatusCode::kResourceExhausted);
  files->SetFault(nullptr);
  Step(*health, 12, true);
  ASSERT_TRUE(SaveAt(*files, 12).ok());
  health = *RunHealth::Open(kRun, 12, 0, 5, files.get());
  Step(*health, 15, true);
  EXPECT_FALSE(MarksOf(*files)[0].good);
  Step(*health, 16, true);
  EXPECT_TRUE(MarksOf(*files)[0].good);
}

TEST_F(RunHealthTest, GoingOnFromAnEarlierStepForgetsWhatCameLater) {
  const auto files = WithCheckpoints({10, 20});
  ASSERT_TRUE(RecordValidationLoss(kRun, 10, 3, files.get()).ok());
  ASSERT_TRUE(RecordValidationLoss(kRun, 20, 2, files.get()).ok());
  ASSERT_TRUE(MarkGood(kRun, 20, files.get()).ok());
  auto health = *RunHealth::Open(kRun, 20, 0, 5, files.get());
  Step(*health, 24, false);
  health = *RunHealth::Open(kRun, 10, 0, 5, files.get());
  EXPECT_TRUE(MarksOf(*files)[0].validation_loss.has_value());
  EXPECT_FALSE(MarksOf(*files)[1].validation_loss.has_value());
  EXPECT_FALSE(MarksOf(*files)[1].good);
  // The unhealthy step 24 has not happened in this attempt, but nobody knows when the trouble began.
  Step(*health, 14, true);
  EXPECT_FALSE(MarksOf(*files)[0].good);
  Step(*health, 15, true);
  EXPECT_TRUE(MarksOf(*files)[0].good);
}

// ---- the disk

TEST_F(RunHealthTest, TrainingDoesNotWaitForMarksAndTheyComeInOrder) {
  const auto memory = WithCheckpoints({10});
  Gate gate;
  std::vector<std::string> renamed;
  ObservedFiles files(*memory, [&](const std::string& call, const std::string& path) {
    if (path.find("/marks") == std::string::npos) return;
    if (call == "create") gate.Pass();
    if (call == "rename") renamed.push_back(path.substr(path.rfind('/') + 1));
  });
  auto health = *RunHealth::Open(kRun, 10, 0, 2, &files);
  EXPECT_TRUE(health->AfterStep(12, true).ok());  // the disk hangs from here on
  health->RecordLoss(12, 1.5);
  for (int64_t step = 13; step < 100; ++step) EXPECT_TRUE(health->AfterStep(step, step % 2 == 0).ok());
  EXPECT_EQ(health->Finish(0.05).code(), absl::StatusCode::kDeadlineExceeded);
  gate.Open();
  EXPECT_TRUE(health->Finish(kLong).ok());
  // Of many unhealthy steps the last one is written, once.
  EXPECT_EQ(renamed,
            (std::vector<std::string>{"step-000000010.good", "step-000000012.loss", "last_unhealthy"}));
  EXPECT_EQ(**ReadUnhealthyMark(*memory, kRun), 99);
}

TEST_F(RunHealthTest, WhatTheDiskRefusesIsReportedAndTriedAgainAfterEveryStep) {
  const auto files = WithCheckpoints({10});
  auto health = *RunHealth::Open(kRun, 10, 0, 5, files.get());
  const auto wait = [&] { EXPECT_TRUE(health->worker()->WaitIdle(kLong)); };
  for (const bool throws : {false, true}) {
    files->SetFault([throws](int64_t, const std::string&, const std::string&) -> absl::Status {
      if (throws) throw std::bad_alloc();
      return absl::ResourceExhaustedError("No space left on device");
    });
    health->RecordLoss(10, 2.5);
    wait();
    for (int64_t step = 11; step < 14; ++step) {
      const absl::Status told = health->AfterStep(step, true);
      wait();
      if (step > 11) {  // the same once more: not told again
        EXPECT_TRUE(told.ok()) << told;
        continue;
      }
      EXPECT_EQ(told.code(), absl::StatusCode::kResourceExhausted) << told;
      EXPECT_NE(std::string(told.message()).find(throws ? "bad_alloc" : "No space"), std::string::npos)
          << told;
    }
    const absl::Status finished = health->Finish(kLong);
    EXPECT_NE(std::string(finished.message()).find("1 marks of checkpoints were not written"),
              std::string::npos)
        << finished;
    files->SetFault(nullptr);
    EXPECT_TRUE(health->Finish(kLong).ok());
    EXPECT_EQ(MarksOf(*files)[0].validation_loss, 2.5);
  }
}

TEST_F(RunHealthTest, NothingIsWrittenOnceTheLeaseIsLost) {
  const auto files = WithCheckpoints({10});
  const auto lease = *RunLease::Acquire(kRun, LeaseOptions{.files = files.get(), .thread = false});
  auto health = *RunHealth::Open(kRun, 10, 0, 5, files.get(), lease.get());
  health->RecordLoss(10, 2.5);
  EXPECT_TRUE(health->Finish(kLong).ok());
  *files->Contents("run/checkpoints/.lease") = "somebody else's";
  const std::vector<std::string> before = files->AllFiles();
  health->RecordLoss(11, 1.5);
  EXPECT_TRUE(health->worker()->WaitIdle(kLong));
  EXPECT_EQ(health->AfterStep(11, false).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(health->AfterStep(12, false).ok());  // told once
  EXPECT_TRUE(health->Finish(kLong).ok());
  EXPECT_EQ(files->AllFiles(), before);
}

// Dies at every call from an unhealthy step on: a run that finds the checkpoint which was saved after it
// knows of it.
TEST_F(RunHealthTest, NoCheckpointIsOlderOnTheDiskThanTheMarksThatCameBeforeIt) {
  const auto life = [](MemoryFileSystem& files) {
    auto health = *RunHealth::Open(kRun, 10, 0, 5, &files);
    BackgroundSaver saver({.staging_bytes = 4 << 20}, nullptr, health->worker());
    RankState state(SmallModel(), 1, 0, 12);
    static_cast<void>(health->AfterStep(12, false));
    health->RecordLoss(12, 0.5);
    if (saver.Start(RequestFor(kRun, 12, 0, state, nullptr, &files)).ok()) {
      static_cast<void>(StepUntilEnd(saver, nullptr));
    }
    static_cast<void>(health->Finish(kLong));
  };
  const auto whole = WithCheckpoints({10});
  whole->SetFault(nullptr);
  life(*whole);
  const int64_t num_calls = whole->num_calls();
  whole->SetFault(nullptr);
  ASSERT_TRUE(RunHealth::Open(kRun, 10, 0, 5, whole.get()).ok());
  const int64_t calls_of_open = whole->num_calls();
  ASSERT_GT(num_calls, calls_of_open + 40);
  int found = 0;
  for (int64_t k = calls_of_open; k <= num_calls; ++k) {
    for (const auto crash : {MemoryFileSystem::Crash::kLoseAll, MemoryFileSystem::Crash::kKeepAll}) {
      const auto files = WithCheckpoints({10});
      files->SetFault(DeadFrom(k));
      life(*files);
      files->CrashNow(crash, 0);
      if (*FindCheckpoint(kRun, files.get()) != StepDir(12)) continue;
      ++found;
      EXPECT_EQ(*ReadUnhealthyMark(*files, kRun), 12) << k;
      EXPECT_EQ(MarksOf(*files)[1].validation_loss, 0.5) << k;
    }
  }
  EXPECT_GT(found, 5);
}
}  // namespace
}  // namespace carousel
