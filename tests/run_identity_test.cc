// Runs and their checkpoints are not mixed up: what is of another run is neither loaded nor removed nor
// written to, whatever it is called; what was moved or copied is still the same run.
#include "checkpoints/run_identity.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/rewrite.h"
#include "checkpoints/rollback.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

const char kA[] = "0123456789abcdef0123456789abcdef", kB[] = "fedcba9876543210fedcba9876543210";

std::string StepDir(const std::string& run, int64_t step) {
  return absl::StrCat(run, "/checkpoints/step-", std::string(9 - std::to_string(step).size(), '0'), step);
}

class RunIdentity : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
  void Save(const std::string& run, int64_t step, const std::string& id) {
    const absl::Status saved =
        SaveStep(run, step, static_cast<uint64_t>(step), 0, nullptr, &files_, 1 << 30, id);
    ASSERT_TRUE(saved.ok()) << saved;
  }
  // Runs a (id kA) and b (id kB).
  void MakeRuns() {
    for (const int64_t step : {1, 2}) Save("a", step, kA);
    for (const int64_t step : {2, 3}) Save("b", step, kB);
    ASSERT_TRUE(WriteRunId("a", kA, &files_).ok());
    ASSERT_TRUE(WriteRunId("b", kB, &files_).ok());
  }
  // Copies the files of a directory.
  void Copy(const std::string& from, const std::string& to) {
    ASSERT_TRUE(CreateDirectories(files_, to).ok());
    const auto names = files_.ListDirectory(from);
    ASSERT_TRUE(names.ok());
    for (const std::string& name : *names) {
      const auto bytes = ReadFile(files_, JoinPath(from, name), 1 << 30);
      ASSERT_TRUE(bytes.ok() && WriteFile(files_, JoinPath(to, name), *bytes).ok());
    }
  }
  absl::StatusOr<std::string> Load(const std::string& run, bool fallback) {
    return LoadNewestGood(run, state_.slices(), &train_, {.fallback = fallback, .files = &files_});
  }
  static void ExpectNames(const absl::Status& status, absl::StatusCode code,
                          const std::vector<std::string>& parts) {
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& part : parts) {
      EXPECT_TRUE(absl::StrContains(status.message(), part)) << part << " in " << status;
    }
  }

  MemoryFileSystem files_;
  RankState state_{SmallModel(), 1, 0, 0};
  TrainState train_;
};

TEST_F(RunIdentity, IdsDifferAndHaveOneForm) {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) ids.insert(NewRunId());
  EXPECT_EQ(ids.size(), 1000u);
  for (const std::string& id : ids) EXPECT_TRUE(IsRunId(id)) << id;
  for (const char* const text : {"", "runs/demo", "imported", "0123456789abcdef0123456789abcde",
                                 "0123456789abcdef0123456789abcdef0", "0123456789ABCDEF0123456789abcdef"}) {
    EXPECT_FALSE(IsRunId(text)) << text;
  }
}

TEST_F(RunIdentity, TheFileSaysTheIdAndEveryFlippedBitOfItCountsAsNoFile) {
  ASSERT_TRUE(CreateDirectories(files_, "a").ok());
  EXPECT_EQ(*ReadRunIdFile("a", &files_), "");
  ASSERT_TRUE(WriteRunId("a", kA, &files_).ok());
  EXPECT_EQ(*ReadRunIdFile("a", &files_), kA);
  std::string& contents = *files_.Contents("a/run_id");
  const std::string intact = contents;
  for (size_t bit = 0; bit < 8 * intact.size(); ++bit) {
    contents = intact;
    contents[bit / 8] = static_cast<char>(contents[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_EQ(*ReadRunIdFile("a", &files_), "") << bit;
  }
  for (size_t size = 0; size < intact.size(); ++size) {
    contents = intact.substr(0, size);
    EXPECT_EQ(*ReadRunIdFile("a", &files_), "") << size;
  }
  contents = intact;
  // Said already: nothing is written, so a full disk does not matter.
  files_.SetFault([](int64_t, const std::string& call, const std::string&) {
    return call == "create" ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  });
  EXPECT_TRUE(WriteRunId("a", kA, &files_).ok());
  EXPECT_FALSE(WriteRunId("a", kB, &files_).ok());
}

TEST_F(RunIdentity, ADamagedOrMissingFileIsMadeUpForByTheCheckpoints) {
  MakeRuns();
  files_.Contents("a/run_id")->pop_back();
  EXPECT_EQ(*RunIdOf("a", true, &files_), kA);
  ASSERT_TRUE(files_.RemoveFile("a/run_id").ok());
  EXPECT_EQ(*RunIdOf("a", true, &files_), kA);
  EXPECT_TRUE(Load("a", false).ok());
  // Also where one manifest is damaged.
  files_.Contents(StepDir("a", 2) + "/MANIFEST.pb")->back() ^= 1;
  EXPECT_EQ(*RunIdOf("a", true, &files_), kA);
  EXPECT_EQ(*RunIdOf("nowhere", true, &files_), "");
}

TEST_F(RunIdentity, ACheckpointOfAnotherRunIsRefusedAndFallbackPassesItOver) {
  MakeRuns();
  Copy(StepDir("b", 3), StepDir("a", 3));
  const std::vector<std::string> both = {StepDir("a", 3) + "/MANIFEST.pb", kA, kB, "a/run_id"};
  ExpectNames(Load("a", false).status(), absl::StatusCode::kDataLoss, both);
  ExpectNames(RunIdOf("a", true, &files_).status(), absl::StatusCode::kFailedPrecondition, both);
  for (const std::string& dir : {StepDir("a", 3), StepDir("./a", 3), StepDir("a/", 3) + "//"}) {
    EXPECT_EQ(OpenCheckpoint(dir, &files_).status().code(), absl::StatusCode::kDataLoss) << dir;
  }
  EXPECT_FALSE(CheckpointTensors::Open(StepDir("a", 3), &files_).ok());
  EXPECT_FALSE(LoadCheckpoint(StepDir("a", 3), state_.slices(), nullptr, &train_, &files_).ok());
  const auto report = VerifyCheckpoint(StepDir("a", 3), nullptr, &files_);
  ASSERT_TRUE(report.ok());
  ASSERT_EQ(report->problems.size(), 1u);
  EXPECT_TRUE(absl::StrContains(report->problems[0], kB)) << report->problems[0];
  const auto loaded = Load("a", true);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*loaded, StepDir("a", 2));
  EXPECT_TRUE(state_.Holds(2));
  EXPECT_TRUE(files_.Stat("a/checkpoints/.bad-step-000000003")->exists) << "set aside, not removed";
  EXPECT_TRUE(Load("b", false).ok());
}

TEST_F(RunIdentity, AManifestOfAnotherRunInPlaceOfTheOwnIsRefused) {
  MakeRuns();
  *files_.Contents(StepDir("a", 2) + "/MANIFEST.pb") = *files_.Contents(StepDir("b", 2) + "/MANIFEST.pb");
  ExpectNames(Load("a", false).status(), absl::StatusCode::kDataLoss,
              {StepDir("a", 2) + "/MANIFEST.pb", kA, kB, "--checkpoint_fallback"});
  EXPECT_EQ(*Load("a", true), StepDir("a", 1));
}

TEST_F(RunIdentity, TwoRunsInADirectoryWithoutAnIdAreRefused) {
  Save("a", 1, kA);
  Save("a", 2, kB);
  ExpectNames(RunIdOf("a", true, &files_).status(), absl::StatusCode::kFailedPrecondition,
              {StepDir("a", 1), StepDir("a", 2), kA, kB, "move"});
}

TEST_F(RunIdentity, WhatWasMovedOrCopiedIsTheSameRun) {
  MakeRuns();
  ASSERT_TRUE(files_.Rename("a", "elsewhere").ok());
  EXPECT_EQ(*RunIdOf("elsewhere", true, &files_), kA);
  EXPECT_TRUE(Load("elsewhere", false).ok());
  // A single checkpoint may lie anywhere else.
  Copy(StepDir("elsewhere", 1), "backup/one");
  EXPECT_TRUE(OpenCheckpoint("backup/one", &files_).ok());
  // And comes back.
  Copy("backup/one", StepDir("elsewhere", 7));
  EXPECT_TRUE(OpenCheckpoint(StepDir("elsewhere", 7), &files_).ok());
}

TEST_F(RunIdentity, CheckpointsFromBeforeThereWereIdsLoadAnywhere) {
  Save("a", 1, "runs/a");
  EXPECT_EQ(*RunIdOf("a", true, &files_), "");
  EXPECT_TRUE(Load("a", false).ok());
  ASSERT_TRUE(WriteRunId("a", kA, &files_).ok());
  EXPECT_TRUE(Load("a", false).ok());
  Save("a", 2, kA);
  Save("a", 3, "runs/elsewhere");
  EXPECT_EQ(*RunIdOf("a", true, &files_), kA);
  EXPECT_TRUE(Load("a", false).ok());
  EXPECT_TRUE(state_.Holds(3));
  ASSERT_TRUE(PruneCheckpoints("a", {.keep_last = 1}, &files_).ok());
  EXPECT_EQ(*ListCheckpoints("a", &files_), std::vector<std::string>{StepDir("a", 3)});
}

TEST_F(RunIdentity, NothingOfAnotherRunIsCountedOrRemoved) {
  MakeRuns();
  Save("a", 4, kA);
  for (const int64_t step : {2, 3}) Copy(StepDir("b", step), StepDir("a", 3 * step));  // 6 and 9
  ASSERT_TRUE(MarkGood("a", 9, &files_).ok());
  ASSERT_TRUE(MarkGood("a", 2, &files_).ok());
  const auto marks = ReadMarks("a", &files_);
  ASSERT_TRUE(marks.ok());
  std::vector<bool> foreign;
  for (const CheckpointMarks& m : *marks) foreign.push_back(m.foreign);
  EXPECT_EQ(foreign, (std::vector<bool>{false, false, false, true, true}));
  EXPECT_EQ(*FindGoodCheckpoint("a", &files_), StepDir("a", 2));
  ASSERT_TRUE(PruneCheckpoints("a", {.keep_last = 1}, &files_).ok());
  // 4 is the newest of the run, 2 the newest good one.
  EXPECT_EQ(*ListCheckpoints("a", &files_),
            (std::vector<std::string>{StepDir("a", 2), StepDir("a", 4), StepDir("a", 6), StepDir("a", 9)}));
  EXPECT_EQ(DescribeKeepReasons(KeepReasons(*marks, {.keep_last = 1})[4]), "of another run");
}

TEST_F(RunIdentity, NothingIsWrittenIntoTheDirectoryOfAnotherRun) {
  MakeRuns();
  const std::vector<std::string> before = files_.AllFiles();
  ExpectNames(SaveStep("b", 9, 9, 0, nullptr, &files_, 1 << 30, kA), absl::StatusCode::kFailedPrecondition,
              {kA, kB, "b/run_id"});
  const RewriteOptions options{.files = &files_};
  ExpectNames(ReshardCheckpoint(StepDir("a", 1), "b", 2, 1 << 30, options).status(),
              absl::StatusCode::kFailedPrecondition, {kA, kB, "b belongs to"});
  ExpectNames(MergeCheckpoint(StepDir("a", 1), "b/all.safetensors", false, options).status(),
              absl::StatusCode::kFailedPrecondition, {kA, kB});
  for (const char* const out : {"a/checkpoints/all.safetensors", "b/checkpoints/all.safetensors",
                                "a/checkpoints/step-000000002/all.safetensors"}) {
    ExpectNames(MergeCheckpoint(StepDir("a", 1), out, false, options).status(),
                absl::StatusCode::kFailedPrecondition, {out, "among the checkpoints"});
  }
  // Where the id is known from a checkpoint alone, and from a checkpoint of an unknown run.
  ASSERT_TRUE(files_.RemoveFile("b/run_id").ok());
  EXPECT_FALSE(ReshardCheckpoint(StepDir("a", 1), "b", 2, 1 << 30, options).ok());
  Save("old", 1, "runs/old");
  ExpectNames(ReshardCheckpoint(StepDir("old", 1), "b", 2, 1 << 30, options).status(),
              absl::StatusCode::kFailedPrecondition, {kB, "unknown run"});
  ExpectNames(ReshardCheckpoint(StepDir("a", 2), "old", 2, 1 << 30, options).status(),
              absl::StatusCode::kFailedPrecondition, {kA, "unknown run"});
  ASSERT_TRUE(WriteRunId("b", kB, &files_).ok());
  std::vector<std::string> after;
  for (const std::string& path : files_.AllFiles()) {
    if (!absl::StartsWith(path, "old/") && !absl::StartsWith(path, "/old/") &&
        !absl::StrContains(path, ".lease")) {
      after.push_back(path);
    }
  }
  std::vector<std::string> expected;
  for (const std::string& path : before) {
    if (!absl::StrContains(path, ".lease")) expected.push_back(path);
  }
  EXPECT_EQ(after, expected);
}

TEST_F(RunIdentity, AReshardedCheckpointIsOfItsRunAndSoIsItsDirectory) {
  MakeRuns();
  const RewriteOptions options{.files = &files_};
  ASSERT_TRUE(ReshardCheckpoint(StepDir("a", 1), "copy", 3, 1 << 30, options).ok());
  EXPECT_EQ(*ReadRunIdFile("copy", &files_), kA);
  EXPECT_EQ(OpenCheckpoint(StepDir("copy", 1), &files_)->run_id, kA);
  // More of the same run, and out of it again.
  ASSERT_TRUE(ReshardCheckpoint(StepDir("a", 2), "copy", 1, 1 << 30, options).ok());
  ASSERT_TRUE(MergeCheckpoint(StepDir("a", 2), "copy/all.safetensors", false, options).ok());
  EXPECT_FALSE(ReshardCheckpoint(StepDir("b", 3), "copy", 1, 1 << 30, options).ok());
  // Of an unknown run: no id is made up.
  Save("old", 1, "runs/old");
  ASSERT_TRUE(ReshardCheckpoint(StepDir("old", 1), "old_copy", 1, 1 << 30, options).ok());
  EXPECT_FALSE(files_.Stat("old_copy/run_id")->exists);
}

TEST_F(RunIdentity, AReshardThatFailsAnywhereLeavesNoDirectoryBehind) {
  MakeRuns();
  const RewriteOptions options{.files = &files_};
  files_.SetFault(nullptr);
  ASSERT_TRUE(ReshardCheckpoint(StepDir("a", 1), "deep/down", 2, 1 << 30, options).ok());
  const int64_t num_calls = files_.num_calls();
  ASSERT_GT(num_calls, 50);
  ASSERT_TRUE(RemoveTree(files_, "deep").ok());
  int failures = 0;
  for (int64_t k = 0; k < num_calls; ++k) {
    files_.SetFault([k](int64_t index, const std::string& call, const std::string&) {
      return index == k && call != "unlink" && call != "rmdir" ? absl::ResourceExhaustedError("full")
                                                               : absl::OkStatus();
    });
    const absl::Status status = ReshardCheckpoint(StepDir("a", 1), "deep/down", 2, 1 << 30, options).status();
    files_.SetFault(nullptr);
    failures += !status.ok();
    const bool committed = OpenCheckpoint(StepDir("deep/down", 1), &files_).ok();
    if (!committed) {
      EXPECT_FALSE(status.ok());
      EXPECT_FALSE(files_.Stat("deep")->exists) << "call " << k << ": " << status;
    }
    ASSERT_TRUE(RemoveTree(files_, "deep").ok());
  }
  EXPECT_GT(failures, 50);
  // A directory that was there stays, with what was in it.
  ASSERT_TRUE(CreateDirectories(files_, "mine").ok());
  ASSERT_TRUE(WriteFile(files_, "mine/notes", "x").ok());
  files_.SetFreeBytes(100);
  EXPECT_EQ(ReshardCheckpoint(StepDir("a", 1), "mine", 2, 1 << 30, options).status().code(),
            absl::StatusCode::kResourceExhausted);
  const auto names = files_.ListDirectory("mine");
  EXPECT_TRUE(names.ok() && absl::StrContains(absl::StrCat((*names)[0]), "notes")) << names->size();
}

TEST(RunDirAbove, IsTheDirectoryThatHoldsTheStore) {
  EXPECT_EQ(RunDirAbove("a/checkpoints/step-000000001"), "a");
  EXPECT_EQ(RunDirAbove("a/checkpoints/step-000000001///"), "a");
  EXPECT_EQ(RunDirAbove("/checkpoints/step-000000001"), "/");
  EXPECT_EQ(RunDirAbove("checkpoints/step-000000001"), ".");
  EXPECT_EQ(RunDirAbove("step-000000001"), "./..");
  EXPECT_EQ(RunDirAbove("../step-000000001"), "../..");
  EXPECT_EQ(RunDirAbove("."), "./../..");
  EXPECT_EQ(RunDirAbove("backup/one"), "");
  EXPECT_EQ(RunDirAbove("/one"), "");
}
}  // namespace
}  // namespace carousel
