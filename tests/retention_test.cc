// Which checkpoints stay, the marks that decide it, and what crashes do to them.
#include "checkpoints/retention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/run_health.h"
#include "core/base/log.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {

constexpr char kRun[] = "run";

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
std::vector<int64_t> StepsOf(FileSystem& files) {
  std::vector<int64_t> steps;
  for (const CheckpointMarks& marks : MarksOf(files)) steps.push_back(marks.step);
  return steps;
}
using Steps = std::vector<int64_t>;

class Retention : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
};

CheckpointMarks Marks(int64_t step, std::optional<double> loss = {}, bool good = false) {
  CheckpointMarks marks;
  marks.step = step;
  marks.validation_loss = loss;
  marks.good = good;
  return marks;
}
Steps Kept(const std::vector<CheckpointMarks>& all, const RetentionPolicy& policy) {
  const std::vector<unsigned> reasons = KeepReasons(all, policy);
  Steps steps;
  for (size_t i = 0; i < all.size(); ++i) {
    if (reasons[i] != 0) steps.push_back(all[i].step);
  }
  return steps;
}

TEST_F(Retention, EachRuleKeepsItsOwnAndTheUnionStays) {
  const double nan = std::nan("");
  const std::vector<CheckpointMarks> all = {Marks(0, 5.5),   Marks(100, 3.0, true), Marks(200, 2.5, true),
                                            Marks(300, 2.5), Marks(400, nan),       Marks(500),
                                            Marks(600, 2.9)};
  const Steps everything = {0, 100, 200, 300, 400, 500, 600};
  EXPECT_EQ(Kept(all, {}), everything);
  EXPECT_EQ(Kept(all, {.keep_last = 0, .keep_best = 1}), everything);
  // 200 is the newest good one.
  EXPECT_EQ(Kept(all, {.keep_last = 1}), (Steps{200, 600}));
  EXPECT_EQ(Kept(all, {.keep_last = 3}), (Steps{200, 400, 500, 600}));
  EXPECT_EQ(Kept(all, {.keep_last = 1, .keep_every_steps = 300}), (Steps{0, 200, 300, 600}));
  // Of equal losses the later step is the better one; a loss that is not finite is no loss.
  EXPECT_EQ(Kept(all, {.keep_last = 1, .keep_best = 1}), (Steps{200, 300, 600}));
  EXPECT_EQ(Kept(all, {.keep_last = 1, .keep_best = 4}), (Steps{100, 200, 300, 600}));
  EXPECT_EQ(Kept(all, {.keep_last = 1, .keep_best = 99}), (Steps{0, 100, 200, 300, 600}));
  EXPECT_EQ(Kept({}, {.keep_last = 1}), Steps{});
  std::vector<CheckpointMarks> unclear = all;
  unclear[1].damage = "the mark of 100 cannot be read";
  EXPECT_EQ(Kept(unclear, {.keep_last = 1}), (Steps{100, 200, 600}));
  EXPECT_EQ(DescribeKeepReasons(KeepReasons(all, {.keep_last = 1, .keep_best = 2})[3]), "best");
  EXPECT_EQ(DescribeKeepReasons(kKeepNewest | kKeepLast), "newest, one of the last");
  EXPECT_EQ(DescribeKeepReasons(0), "");
}

TEST_F(Retention, NeitherTheNewestNorTheNewestGoodOneEverGoesAndNothingIsKeptWithoutAReason) {
  std::mt19937_64 random(7);
  int deleted = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<CheckpointMarks> all;
    int64_t step = 0;
    for (size_t i = 1 + random() % 12; i > 0; --i) {
      step += static_cast<int64_t>(1 + random() % 5) * 50;
      all.push_back(Marks(step,
                          random() % 3 == 0 ? std::optional<double>() : static_cast<double>(random() % 9),
                          random() % 4 == 0));
    }
    const RetentionPolicy policy{.keep_last = static_cast<int64_t>(random() % 5),
                                 .keep_every_steps = static_cast<int64_t>(random() % 3) * 100,
                                 .keep_best = static_cast<int64_t>(random() % 3)};
    const std::vector<unsigned> reasons = KeepReasons(all, policy);
    EXPECT_NE(reasons.back(), 0u);
    for (size_t i = all.size(); i-- > 0;) {
      if (!all[i].good) continue;
      EXPECT_NE(reasons[i], 0u);
      break;
    }
    for (size_t i = 0; i < all.size(); ++i) {
      // Against the rules as they are written down, one checkpoint at a time.
      int64_t better = 0, newer_good = 0;
      for (size_t j = 0; j < all.size(); ++j) {
        newer_good += j > i && all[j].good;
        if (j == i || !all[j].validation_loss || !all[i].validation_loss) continue;
        better += *all[j].validation_loss < *all[i].validation_loss ||
                  (*all[j].validation_loss == *all[i].validation_loss && j > i);
      }
      const bool stays = policy.keep_last == 0 || static_cast<int64_t>(all.size() - i) <= policy.keep_last ||
                         i + 1 == all.size() ||
                         (policy.keep_every_steps > 0 && all[i].step % policy.keep_every_steps == 0) ||
                         (all[i].good && newer_good == 0) ||
                         (all[i].validation_loss && better < policy.keep_best);
      EXPECT_EQ(reasons[i] != 0, stays) << "round " << round << " checkpoint " << i;
      deleted += !stays;
    }
  }
  EXPECT_GT(deleted, 1000);
}

TEST_F(Retention, PruneFollowsTheMarksOnDiskAndRemovesThoseOfTheGone) {
  const auto files = WithCheckpoints({100, 200, 300, 400, 500});
  ASSERT_TRUE(RecordValidationLoss(kRun, 200, 2.25, files.get()).ok());
  ASSERT_TRUE(RecordValidationLoss(kRun, 300, 2.5, files.get()).ok());
  ASSERT_TRUE(RecordValidationLoss(kRun, 350, 1.0, files.get()).ok());  // no checkpoint
  ASSERT_TRUE(RecordValidationLoss(kRun, 600, 1.0, files.get()).ok());  // not yet
  ASSERT_TRUE(MarkGood(kRun, 100, files.get()).ok());
  EXPECT_EQ(*FindGoodCheckpoint(kRun, files.get()), StepDir(100));
  ASSERT_TRUE(PruneCheckpoints(kRun, {.keep_last = 2, .keep_best = 1}, files.get()).ok());
  EXPECT_EQ(StepsOf(*files), (Steps{100, 200, 400, 500}));
  std::vector<std::string> marks = *files->ListDirectory("run/checkpoints/marks");
  EXPECT_EQ(marks,
            (std::vector<std::string>{"step-000000100.good", "step-000000200.loss", "step-000000600.loss"}));
  const auto all = ReadMarks(kRun, files.get());
  EXPECT_EQ(*(*all)[1].validation_loss, 2.25);
  EXPECT_TRUE((*all)[0].good);
  EXPECT_FALSE((*all)[1].good);
  // The save that is about to come finds the loss that was recorded before it.
  ASSERT_TRUE(SaveAt(*files, 600).ok());
  ASSERT_TRUE(PruneCheckpoints(kRun, {.keep_last = 1, .keep_best = 1}, files.get()).ok());
  EXPECT_EQ(StepsOf(*files), (Steps{100, 600}));
  EXPECT_EQ(MarkGood(kRun, 500, files.get()).code(), absl::StatusCode::kNotFound);
}

TEST_F(Retention, NothingIsRemovedOnTheWordOfADamagedNewestCheckpoint) {
  const auto files = WithCheckpoints({1, 2, 3});
  std::string* const shard = files->Contents(StepDir(3) + "/optim-00000-of-00001.safetensors");
  ASSERT_NE(shard, nullptr);
  shard->back() ^= 1;
  const absl::Status pruned = PruneCheckpoints(kRun, {.keep_last = 1}, files.get());
  EXPECT_EQ(pruned.code(), absl::StatusCode::kDataLoss) << pruned;
  EXPECT_NE(std::string(pruned.message()).find("optim-00000"), std::string::npos) << pruned;
  EXPECT_EQ(StepsOf(*files), (Steps{1, 2, 3}));
  // Without anything to remove there is nothing to verify either.
  EXPECT_TRUE(PruneCheckpoints(kRun, {.keep_last = 3}, files.get()).ok());
}

TEST_F(Retention, EveryFlippedBitOfAMarkIsNoticedAndProtectsItsCheckpoint) {
  for (const char* const name : {"step-000000001.loss", "step-000000001.good"}) {
    const auto files = WithCheckpoints({1, 2});
    ASSERT_TRUE(RecordValidationLoss(kRun, 1, 9.5, files.get()).ok());
    ASSERT_TRUE(MarkGood(kRun, 1, files.get()).ok());
    ASSERT_TRUE(MarkGood(kRun, 2, files.get()).ok());
    std::string* const mark = files->Contents(absl::StrCat("run/checkpoints/marks/", name));
    ASSERT_NE(mark, nullptr);
    const std::string intact = *mark;
    for (size_t bit = 0; bit < 8 * intact.size(); ++bit) {
      *mark = intact;
      (*mark)[bit / 8] ^= static_cast<char>(1 << (bit % 8));
      const auto all = ReadMarks(kRun, files.get());
      ASSERT_TRUE(all.ok());
      EXPECT_NE((*all)[0].damage.find(name), std::string::npos) << bit;
      EXPECT_NE(KeepReasons(*all, {.keep_last = 1})[0], 0u);
    }
    for (size_t n = 0; n < intact.size(); ++n) {
      *mark = intact.substr(0, n);
      EXPECT_NE(MarksOf(*files)[0].damage, "") << n;
    }
    *mark = intact;
    ASSERT_TRUE(PruneCheckpoints(kRun, {.keep_last = 1}, files.get()).ok());
    EXPECT_EQ(StepsOf(*files), Steps{2});
  }
}

TEST_F(Retention, ALaterCheckpointOfTheSameStepDoesNotInheritTheMarkOfTheFirst) {
  const auto files = WithCheckpoints({1, 2});
  ASSERT_TRUE(MarkGood(kRun, 2, files.get()).ok());
  ASSERT_TRUE(MarksOf(*files)[1].good);
  ASSERT_TRUE(files->Rename(StepDir(2), "run/checkpoints/.bad-step-000000002").ok());
  ASSERT_TRUE(SaveStep(kRun, 2, 77, 0, nullptr, files.get()).ok());
  EXPECT_FALSE(MarksOf(*files)[1].good);
  EXPECT_EQ(FindGoodCheckpoint(kRun, files.get()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(Retention, ACheckpointThatIsRemovedWhileMarksAreReadIsNotListed) {
  const auto files = WithCheckpoints({1, 2});
  ASSERT_TRUE(MarkGood(kRun, 1, files.get()).ok());
  bool removed = false;
  files->SetFault([&](int64_t, const std::string& call, const std::string& path) {
    // As another process would: the directory is gone when its manifest is to be opened.
    removed |= call == "open" && path == StepDir(1) + "/MANIFEST.pb";
    return removed && path == StepDir(1) + "/MANIFEST.pb" ? absl::NotFoundError(path) : absl::OkStatus();
  });
  EXPECT_EQ(StepsOf(*files), Steps{2});
  EXPECT_TRUE(removed);
}

TEST_F(Retention, LossesComeBackBitByBit) {
  const auto files = WithCheckpoints({1});
  for (const double loss : {2.7412999999999998, 0.1, 1e-300, 5e-324, 1.7976931348623157e308, -0.0}) {
    ASSERT_TRUE(RecordValidationLoss(kRun, 1, loss, files.get()).ok());
    EXPECT_EQ(*MarksOf(*files)[0].validation_loss, loss);
  }
  ASSERT_TRUE(RecordValidationLoss(kRun, 1, std::nan(""), files.get()).ok());
  EXPECT_TRUE(std::isnan(*MarksOf(*files)[0].validation_loss));
}

// ---- crashes

// Runs `work` on a fresh copy of the disk of `make`, dead from call k on, for every k and several models of
// what a crash loses; then `check(files, done)`.
template <class Make, class Work, class Check>
int64_t CrashEverywhere(Make&& make, Work&& work, Check&& check) {
  const std::unique_ptr<MemoryFileSystem> whole = make();
  whole->SetFault(nullptr);
  EXPECT_TRUE(work(*whole).ok());
  const int64_t num_calls = whole->num_calls();
  for (int64_t k = 0; k <= num_calls; ++k) {
    for (int mode = 0; mode < 4; ++mode) {
      const std::unique_ptr<MemoryFileSystem> files = make();
      files->SetFault(DeadFrom(k));
      const bool done = work(*files).ok();
      files->CrashNow(CrashNumber(mode), static_cast<uint64_t>(10 * k + mode));
      SCOPED_TRACE(absl::StrCat("dead from call ", k, " on, mode ", mode));
      check(*files, done);
    }
  }
  return num_calls;
}

bool Whole(FileSystem& files, int64_t step) {
  RankState state(SmallModel(), 1, 0, 0);
  TrainState train;
  return LoadCheckpoint(StepDir(step), state.slices(), nullptr, &train, &files).ok() && train.step == step &&
         state.Holds(static_cast<uint64_t>(step));
}

TEST_F(Retention, ACrashAtAnyCallOfAPruneCostsNothingThatIsKept) {
  const auto make = [] {
    auto files = WithCheckpoints({1, 2, 3, 4});
    EXPECT_TRUE(MarkGood(kRun, 2, files.get()).ok());
    EXPECT_TRUE(RecordValidationLoss(kRun, 1, 9, files.get()).ok());
    EXPECT_TRUE(RecordValidationLoss(kRun, 3, 5, files.get()).ok());
    return files;
  };
  const auto prune = [](FileSystem& files) { return PruneCheckpoints(kRun, {.keep_last = 1}, &files); };
  const auto check = [&](MemoryFileSystem& files, bool done) {
    EXPECT_TRUE(Whole(files, 4));
    EXPECT_TRUE(Whole(files, 2));
    EXPECT_EQ(*FindGoodCheckpoint(kRun, &files), StepDir(2));
    // Those that go are whole for as long as they can be seen.
    for (const int64_t step : StepsOf(files)) EXPECT_TRUE(Whole(files, step)) << step;
    if (done) {
      EXPECT_EQ(StepsOf(files), (Steps{2, 4}));
    }
    EXPECT_TRUE(SweepLeftovers(kRun, &files).ok());
    EXPECT_TRUE(prune(files).ok());
    EXPECT_EQ(StepsOf(files), (Steps{2, 4}));
    for (const std::string& path : files.AllFiles())
      EXPECT_EQ(path.find("/.trash-"), std::string::npos) << path;
  };
  EXPECT_GT(CrashEverywhere(make, prune, check), 30);
}

TEST_F(Retention, ACrashWhileAMarkIsWrittenLeavesTheOldOrTheNewOne) {
  const auto make = [] {
    auto files = WithCheckpoints({1, 2});
    EXPECT_TRUE(RecordValidationLoss(kRun, 1, 3, files.get()).ok());
    EXPECT_TRUE(MarkGood(kRun, 1, files.get()).ok());
    return files;
  };
  int old_seen = 0, new_seen = 0;
  const auto check_loss = [&](MemoryFileSystem& files, bool done) {
    const auto all = ReadMarks(kRun, &files);
    ASSERT_TRUE(all.ok());
    EXPECT_EQ((*all)[0].damage, "");
    ASSERT_TRUE((*all)[0].validation_loss.has_value());
    const double loss = *(*all)[0].validation_loss;
    EXPECT_TRUE(loss == 2 || (loss == 3 && !done)) << loss;
    ++(loss == 2 ? new_seen : old_seen);
    EXPECT_TRUE(RecordValidationLoss(kRun, 1, 1, &files).ok());
    EXPECT_EQ(*MarksOf(files)[0].validation_loss, 1);
  };
  CrashEverywhere(
      make, [](FileSystem& f) { return RecordValidationLoss(kRun, 1, 2, &f); }, check_loss);
  EXPECT_GT(old_seen, 5);
  EXPECT_GT(new_seen, 2);
  const auto check_good = [&](MemoryFileSystem& files, bool done) {
    const std::string newest_good = *FindGoodCheckpoint(kRun, &files);
    EXPECT_TRUE(newest_good == StepDir(2) || (newest_good == StepDir(1) && !done)) << newest_good;
    EXPECT_TRUE(MarkGood(kRun, 2, &files).ok());
    EXPECT_EQ(*FindGoodCheckpoint(kRun, &files), StepDir(2));
  };
  CrashEverywhere(
      make, [](FileSystem& f) { return MarkGood(kRun, 2, &f); }, check_good);
  // What a dead writer left is removed by the next start.
  const auto files = make();
  files->SetFault([](int64_t, const std::string& call, const std::string&) {
    return call == "rename" || call == "unlink" ? absl::UnavailableError("dead") : absl::OkStatus();
  });
  EXPECT_FALSE(RecordValidationLoss(kRun, 2, 1, files.get()).ok());
  files->SetFault(nullptr);
  ASSERT_TRUE(RunHealth::Open(kRun, 2, 0, 5, files.get()).ok());
  for (const std::string& path : files->AllFiles()) EXPECT_EQ(path.find(".tmp"), std::string::npos) << path;
}

TEST_F(Retention, ABitThatTheDiskChangedAfterItWasWrittenIsFoundBeforeAnythingIsRemoved) {
  const auto files = WithCheckpoints({1, 2, 3});
  for (const std::string& path : files->AllFiles()) {
    if (path.find(StepDir(3)) == std::string::npos || path.find(".safetensors") == std::string::npos)
      continue;
    std::string stored = *files->Contents(path);
    stored[stored.size() / 2] ^= 1;
    files->DamageStored(path, stored);  // in memory it is as it was written
    break;
  }
  EXPECT_TRUE(VerifyCheckpoint(StepDir(3), nullptr, files.get())->problems.empty());
  const absl::Status pruned = PruneCheckpoints(kRun, {.keep_last = 1}, files.get());
  EXPECT_EQ(pruned.code(), absl::StatusCode::kDataLoss) << pruned;
  EXPECT_EQ(StepsOf(*files), (Steps{1, 2, 3}));
}

TEST_F(Retention, AnyFailingCallOfAPruneIsReportedAndHarmless) {
  const auto whole = WithCheckpoints({1, 2, 3});
  whole->SetFault(nullptr);
  ASSERT_TRUE(PruneCheckpoints(kRun, {.keep_last = 1}, whole.get()).ok());
  for (int64_t k = 0; k < whole->num_calls(); ++k) {
    const auto files = WithCheckpoints({1, 2, 3});
    files->SetFault([&](int64_t index, const std::string&, const std::string&) {
      return index == k ? absl::ResourceExhaustedError("injected: No space left on device")
                        : absl::OkStatus();
    });
    const absl::Status pruned = PruneCheckpoints(kRun, {.keep_last = 1}, files.get());
    EXPECT_FALSE(pruned.ok()) << k;
    EXPECT_NE(std::string(pruned.message()).find("injected"), std::string::npos) << pruned;
    files->SetFault(nullptr);
    for (const int64_t step : StepsOf(*files)) EXPECT_TRUE(Whole(*files, step)) << step;
    EXPECT_TRUE(Whole(*files, 3));
    ASSERT_TRUE(SweepLeftovers(kRun, files.get()).ok());
    ASSERT_TRUE(PruneCheckpoints(kRun, {.keep_last = 1}, files.get()).ok());
    EXPECT_EQ(StepsOf(*files), Steps{3});
  }
}
}  // namespace
}  // namespace carousel
