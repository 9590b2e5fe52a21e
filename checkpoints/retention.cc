#include "checkpoints/retention.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/marks.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/run_lease.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

constexpr struct {
  KeepReason reason;
  const char* text;
} kReasonTexts[] = {
    {kKeepAll, "all are kept"},         {kKeepNewest, "newest"},
    {kKeepNewestGood, "newest good"},   {kKeepLast, "one of the last"},
    {kKeepEverySteps, "kept for ever"}, {kKeepBest, "best"},
    {kKeepDamagedMark, "damaged mark"}, {kKeepForeign, "of another run"},
};

std::string NameOfDir(const std::string& dir) { return dir.substr(dir.rfind('/') + 1); }

// Nothing may go before the checkpoint that replaces it can be relied on.
absl::Status VerifyNewest(FileSystem& files, const std::string& dir) {
  // What was just written is in memory, which says nothing about the disk.
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.ListDirectory(dir));
  for (const std::string& name : names) CAROUSEL_RETURN_IF_ERROR(files.DropCached(JoinPath(dir, name)));
  CAROUSEL_ASSIGN_OR_RETURN(const VerifyReport report, VerifyCheckpoint(dir, nullptr, &files));
  if (report.problems.empty()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("no older checkpoint is removed, the newest is damaged: ", report.problems[0],
                   report.problems.size() > 1 ? ", and more" : ""));
}
}  // namespace

std::vector<unsigned> KeepReasons(const std::vector<CheckpointMarks>& checkpoints,
                                  const RetentionPolicy& policy) {
  const size_t n = checkpoints.size();
  if (std::any_of(checkpoints.begin(), checkpoints.end(), [](const auto& c) { return c.foreign; })) {
    std::vector<CheckpointMarks> own;
    std::copy_if(checkpoints.begin(), checkpoints.end(), std::back_inserter(own),
                 [](const auto& c) { return !c.foreign; });
    const std::vector<unsigned> of_own = KeepReasons(own, policy);
    std::vector<unsigned> all;
    size_t next = 0;
    for (const CheckpointMarks& c : checkpoints) all.push_back(c.foreign ? kKeepForeign : of_own[next++]);
    return all;
  }
  std::vector<unsigned> reasons(n, policy.keep_last <= 0 ? unsigned{kKeepAll} : 0u);
  for (size_t i = 0; i < n; ++i) {
    const CheckpointMarks& c = checkpoints[i];
    if (i + 1 == n) reasons[i] |= kKeepNewest;
    if (static_cast<int64_t>(n - i) <= policy.keep_last) reasons[i] |= kKeepLast;
    if (policy.keep_every_steps > 0 && c.step % policy.keep_every_steps == 0) reasons[i] |= kKeepEverySteps;
    if (!c.damage.empty()) reasons[i] |= kKeepDamagedMark;
  }
  for (size_t i = n; i-- > 0;) {
    if (!checkpoints[i].good) continue;
    reasons[i] |= kKeepNewestGood;
    break;
  }
  std::vector<std::pair<double, size_t>> by_loss;  // the later step first among equals
  for (size_t i = n; i-- > 0;) {
    const std::optional<double>& loss = checkpoints[i].validation_loss;
    if (loss.has_value() && std::isfinite(*loss)) by_loss.emplace_back(*loss, i);
  }
  std::stable_sort(by_loss.begin(), by_loss.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t k = 0; k < by_loss.size() && static_cast<int64_t>(k) < policy.keep_best; ++k) {
    reasons[by_loss[k].second] |= kKeepBest;
  }
  return reasons;
}

std::string DescribeKeepReasons(unsigned reasons) {
  std::vector<std::string> texts;
  for (const auto& [reason, text] : kReasonTexts) {
    if ((reasons & reason) != 0) texts.push_back(text);
  }
  return absl::StrJoin(texts, ", ");
}

absl::StatusOr<std::vector<CheckpointMarks>> ReadMarks(const std::string& run_dir, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> dirs, ListCheckpoints(run_dir, &fs));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string id, ReadRunIdFile(run_dir, &fs));
  std::vector<CheckpointMarks> all;
  for (const std::string& dir : dirs) {
    CheckpointMarks marks;
    marks.step = StepOfName(NameOfDir(dir));
    const absl::StatusOr<std::optional<double>> loss = ReadLossMark(fs, run_dir, marks.step);
    if (loss.ok()) marks.validation_loss = *loss;
    const absl::StatusOr<bool> good = ReadGoodMark(fs, run_dir, marks.step);
    marks.good = good.ok() && *good;
    if (absl::IsNotFound(good.status())) continue;  // removed meanwhile, with its marks
    if (!id.empty()) {
      const absl::StatusOr<std::string> of = RunIdOfCheckpoint(dir, &fs);
      if (absl::IsNotFound(of.status())) continue;
      if (!of.ok() && !absl::IsDataLoss(of.status())) return of.status();
      marks.foreign = of.ok() && !of->empty() && *of != id;
    }
    for (const absl::Status& status : {loss.status(), good.status()}) {
      if (status.ok()) continue;
      if (!absl::IsDataLoss(status)) return status;  // the disk does not answer: nothing is known
      marks.damage = std::string(status.message());
    }
    all.push_back(std::move(marks));
  }
  return all;
}

absl::Status PruneCheckpoints(const std::string& run_dir, const RetentionPolicy& policy, FileSystem* files,
                              const RunLease* lease) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<CheckpointMarks> checkpoints, ReadMarks(run_dir, &fs));
  if (checkpoints.empty()) return absl::OkStatus();
  const std::vector<unsigned> reasons = KeepReasons(checkpoints, policy);
  const auto newest = std::find_if(checkpoints.rbegin(), checkpoints.rend(),
                                   [](const CheckpointMarks& c) { return !c.foreign; });
  if (newest == checkpoints.rend()) return absl::OkStatus();
  if (std::count(reasons.begin(), reasons.end(), 0u) > 0) {
    CAROUSEL_RETURN_IF_ERROR(VerifyNewest(fs, JoinPath(StoreDir(run_dir), StepName(newest->step))));
  }
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    if (reasons[i] != 0) continue;
    if (lease != nullptr) CAROUSEL_RETURN_IF_ERROR(lease->StillHeld());
    // Out of sight at once and for good, then file by file.
    std::string trash;
    CAROUSEL_RETURN_IF_ERROR(MoveAside(fs, run_dir, StepName(checkpoints[i].step), kTrashPrefix, &trash));
    CAROUSEL_RETURN_IF_ERROR(RemoveTree(fs, trash));
  }
  // Marks of steps before the newest checkpoint that have none (any more). Later ones may be about one that
  // is being written.
  std::set<int64_t> kept;
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    if (reasons[i] != 0) kept.insert(checkpoints[i].step);
  }
  const auto gone = [&](int64_t step) { return step < newest->step && kept.count(step) == 0; };
  return RemoveMarks(fs, run_dir, gone, /*temporaries=*/false);
}

absl::StatusOr<std::string> FindGoodCheckpoint(const std::string& run_dir, FileSystem* files) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<CheckpointMarks> checkpoints, ReadMarks(run_dir, files));
  for (size_t i = checkpoints.size(); i-- > 0;) {
    if (checkpoints[i].good && !checkpoints[i].foreign)
      return JoinPath(StoreDir(run_dir), StepName(checkpoints[i].step));
  }
  return absl::NotFoundError(
      absl::StrCat("none of the ", checkpoints.size(), " checkpoints in ", StoreDir(run_dir),
                   " is marked as good; checkpoint.good_after_steps says after how many steps one is"));
}
}  // namespace carousel
