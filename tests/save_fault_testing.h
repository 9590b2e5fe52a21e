// What every way of saving must survive: any single call that fails, throws or is the last one. For the tests
// of saves with faults.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {

constexpr int64_t kSmallFiles = 600;  // bytes of tensors per shard: several files

// Saves SmallModel at a step in "run", with the step as its seed and the two newest to be kept.
using SaveFunction = std::function<absl::Status(MemoryFileSystem& files, int64_t step)>;

// The step that a run would go on from, all of its values verified; -1 if there is none.
inline int64_t ResumesFrom(FileSystem& files) {
  RankState state(SmallModel(), 1, 0, 0);
  TrainState train;
  const auto dir = LoadNewestGood("run", state.slices(), &train, {.files = &files});
  if (absl::IsNotFound(dir.status())) return -1;
  EXPECT_TRUE(dir.ok()) << dir.status();
  EXPECT_TRUE(state.Holds(static_cast<uint64_t>(train.step)));
  return train.step;
}
inline bool HasLeftovers(const MemoryFileSystem& files) {
  for (const std::string& path : files.AllFiles()) {
    if (path.find("/.tmp-") != std::string::npos || path.find("/.trash-") != std::string::npos) return true;
  }
  return false;
}

// The line of a step in the records of the run, which are not synced by whoever appends to them.
inline std::string RecordOf(int64_t step) { return absl::StrCat("{\"step\":", step, "}\n"); }
// A step is made, and saved.
inline absl::Status MakeStep(MemoryFileSystem& files, int64_t step, const SaveFunction& save) {
  files.AppendTo("run/metrics.jsonl", RecordOf(step));
  return save(files, step);
}
// A run goes on from the step: all that was recorded until then is there.
inline void ExpectRecordsUntil(MemoryFileSystem& files, int64_t step) {
  std::string expected;
  for (int64_t s = 1; s <= step; ++s) expected += RecordOf(s);
  const std::string* const records = files.Contents("run/metrics.jsonl");
  ASSERT_NE(records, nullptr) << step;
  EXPECT_EQ(records->substr(0, expected.size()), expected) << step;
}

// Two checkpoints, of steps 1 and 2.
inline std::unique_ptr<MemoryFileSystem> WithTwoCheckpoints(const SaveFunction& save) {
  auto files = std::make_unique<MemoryFileSystem>();
  EXPECT_TRUE(CreateDirectories(*files, "run").ok());
  EXPECT_TRUE(MakeStep(*files, 1, save).ok());
  EXPECT_TRUE(MakeStep(*files, 2, save).ok());
  return files;
}
inline int64_t CallsOfASave(const SaveFunction& save) {
  const auto files = WithTwoCheckpoints(save);
  files->SetFault(nullptr);
  EXPECT_TRUE(MakeStep(*files, 3, save).ok());
  return files->num_calls();
}
// After whatever happened, the next save must work and leave exactly the two newest.
inline void ExpectNextSaveCleansUp(MemoryFileSystem& files, const SaveFunction& save) {
  files.SetFault(nullptr);
  const absl::Status saved = save(files, 4);
  ASSERT_TRUE(saved.ok()) << saved;
  EXPECT_EQ(ResumesFrom(files), 4);
  EXPECT_FALSE(HasLeftovers(files));
  EXPECT_EQ(ListCheckpoints("run", &files)->size(), 2u);
}

// Step 3 is saved, and what `fault` does happens at the call number `k`. Which of the checkpoints a run would
// go on from must be what the save said.
inline bool SavesInSpiteOf(const SaveFunction& save, int64_t k, const std::function<absl::Status()>& fault,
                           absl::StatusCode code, const std::string& message) {
  const auto files = WithTwoCheckpoints(save);
  std::string call;
  files->SetFault([&](int64_t index, const std::string& name, const std::string& path) {
    if (index != k) return absl::OkStatus();
    call = name + " " + path;
    return fault();
  });
  const absl::Status saved = MakeStep(*files, 3, save);
  files->SetFault(nullptr);
  const int64_t step = ResumesFrom(*files);
  if (saved.ok()) {
    // The call was about LATEST, the removal of old checkpoints, or what had gone before.
    EXPECT_EQ(step, 3) << call;
  } else {
    EXPECT_EQ(saved.code(), code) << call << ": " << saved;
    EXPECT_NE(std::string(saved.message()).find(message), std::string::npos) << call << ": " << saved;
    // Only the sync after the last rename fails with the new one in place.
    const bool in_place = call == "fsync run/checkpoints" && ListCheckpoints("run", files.get())->size() == 3;
    EXPECT_EQ(step, in_place ? 3 : 2) << call;
    EXPECT_FALSE(HasLeftovers(*files)) << call;
  }
  ExpectRecordsUntil(*files, step);
  ExpectNextSaveCleansUp(*files, save);
  return saved.ok();
}

// A full disk or a broken one, at any call. A failing write has written half of its bytes.
inline void ExpectHarmlessFailures(const SaveFunction& save) {
  const int64_t num_calls = CallsOfASave(save);
  ASSERT_GT(num_calls, 60);
  int failed = 0, succeeded = 0;
  for (int64_t k = 0; k < num_calls; ++k) {
    for (const absl::Status& error : {absl::ResourceExhaustedError("injected: No space left on device"),
                                      absl::UnavailableError("injected: Input/output error")}) {
      const bool saved = SavesInSpiteOf(
          save, k, [&] { return error; }, error.code(), "injected");
      ++(saved ? succeeded : failed);
    }
  }
  EXPECT_GT(failed, 80);
  EXPECT_GT(succeeded, 10);
}

// The machine stops at any call: what is not synced is lost, kept, or kept in part (`num_random` times).
inline void ExpectAWholeCheckpointAfterDeaths(const SaveFunction& save, int num_random) {
  const int64_t num_calls = CallsOfASave(save);
  int old_found = 0, new_found = 0;
  for (int64_t k = 0; k <= num_calls; ++k) {
    for (int mode = 0; mode < 2 + num_random; ++mode) {
      const auto files = WithTwoCheckpoints(save);
      files->SetFault(DeadFrom(k));
      const absl::Status saved = MakeStep(*files, 3, save);
      files->CrashNow(CrashNumber(mode), static_cast<uint64_t>(100 * k + mode));
      const int64_t step = ResumesFrom(*files);
      if (saved.ok()) {
        EXPECT_EQ(step, 3) << "a save that was reported was lost, call " << k << " mode " << mode;
      } else {
        EXPECT_TRUE(step == 2 || step == 3) << step << ", call " << k << " mode " << mode;
      }
      ++(step == 3 ? new_found : old_found);
      ExpectRecordsUntil(*files, step);
      ExpectNextSaveCleansUp(*files, save);
    }
  }
  EXPECT_GT(old_found, 20 * (2 + num_random));
  EXPECT_GT(new_found, 6 * (2 + num_random));
}
}  // namespace carousel
