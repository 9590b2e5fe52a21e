// `carousel checkpoint ls | verify`: which checkpoints a run has and in what state they are.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "launcher/checkpoint/checkpoint_actions.h"
#include "launcher/progress_bar.h"

namespace carousel {
namespace {

double SecondsSince(int64_t unix_nanos) {
  const int64_t now = std::chrono::duration_cast<std::chrono::nanoseconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count();
  return static_cast<double>(now - unix_nanos) / 1e9;
}

// "good, best" and why it stays, by step.
std::map<int64_t, std::string> DescribeMarks(const std::vector<CheckpointMarks>& marks,
                                             const std::string& run_dir) {
  const RetentionPolicy policy = PolicyOfRun(run_dir);
  const std::vector<unsigned> reasons = KeepReasons(marks, policy);
  // All that are kept for it; the best one is worth knowing whether the policy keeps it or not.
  const std::vector<unsigned> best =
      KeepReasons(marks, {.keep_last = 1, .keep_best = std::max<int64_t>(1, policy.keep_best)});
  std::map<int64_t, std::string> texts;
  for (size_t i = 0; i < marks.size(); ++i) {
    std::string text = marks[i].good ? "good" : "";
    const auto add = [&](const char* word) { absl::StrAppend(&text, text.empty() ? "" : ", ", word); };
    if ((best[i] & kKeepBest) != 0) add("best");
    if ((reasons[i] & kKeepEverySteps) != 0) add("for ever");
    if ((reasons[i] & kKeepDamagedMark) != 0) add("damaged mark");
    texts[marks[i].step] = text;
  }
  return texts;
}

// True if every bit of the checkpoint is as it was written. Prints what is not.
bool VerifyOne(const std::string& dir) {
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<VerifyReport> report = absl::UnknownError("");
  {
    ProgressBar bar(LastName(dir));
    report = VerifyCheckpoint(dir, [&](int64_t done, int64_t total) { bar.Show(done, total); });
  }
  if (!report.ok()) {
    const bool damaged = absl::IsDataLoss(report.status()) || absl::IsNotFound(report.status());
    absl::PrintF("%s: %s\n  %s\n", dir, damaged ? "DAMAGED" : "CANNOT BE READ",
                 std::string(report.status().message()));
    return false;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  absl::PrintF("%s: %s, %d files, %s, %d tensors, %.2f s\n", dir, report->problems.empty() ? "ok" : "DAMAGED",
               report->num_files, FormatByteCount(report->num_bytes), report->num_tensors, seconds);
  for (const std::string& problem : report->problems) absl::PrintF("  %s\n", problem);
  return report->problems.empty();
}
}  // namespace

std::string FormatByteCount(int64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
}

std::string FormatAge(double seconds) {
  if (!(seconds >= 0)) return "-";  // of another clock
  if (seconds < 100) return absl::StrFormat("%.0f s", seconds);
  if (seconds < 100 * 60) return absl::StrFormat("%.0f min", seconds / 60);
  if (seconds < 48 * 3600) return absl::StrFormat("%.1f h", seconds / 3600);
  return absl::StrFormat("%.0f d", seconds / 86400);
}

std::string LastName(const std::string& path) {
  const size_t end = path.find_last_not_of('/') + 1;
  const size_t slash = path.rfind('/', end == 0 ? 0 : end - 1);
  return slash == std::string::npos ? path.substr(0, end) : path.substr(slash + 1, end - slash - 1);
}
bool IsStepName(const std::string& name) { return absl::StartsWith(name, "step-"); }

absl::StatusOr<std::vector<std::string>> ListCheckpointDirectories(const std::string& run_dir) {
  PosixFileSystem files;
  const std::string store = JoinPath(RunDirOf(run_dir), "checkpoints");
  std::vector<std::string> dirs;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(store));
  if (!info.is_directory) return dirs;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.ListDirectory(store));
  for (const std::string& name : names) {
    if (IsStepName(name)) dirs.push_back(JoinPath(store, name));
  }
  // By step: the longer number is the larger one.
  std::sort(dirs.begin(), dirs.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  for (const char* const prefix : {".bad-step-", ".aside-step-", ".tmp-step-", ".trash-step-"}) {
    for (const std::string& name : names) {
      if (absl::StartsWith(name, prefix)) dirs.push_back(JoinPath(store, name));
    }
  }
  return dirs;
}

RetentionPolicy PolicyOfRun(const std::string& run_dir) {
  const absl::StatusOr<std::vector<std::string>> dirs = ListCheckpoints(run_dir);
  if (!dirs.ok() || dirs->empty()) return {};
  const absl::StatusOr<std::string> config = ReadCheckpointConfig(dirs->back());
  if (!config.ok()) return {};
  const absl::StatusOr<RunSpec> run = LoadRunFromText(*config, dirs->back(), {.run_dir = run_dir});
  if (!run.ok()) return {};
  return {.keep_last = run->checkpoint.keep_last,
          .keep_every_steps = run->checkpoint.keep_every_steps,
          .keep_best = run->checkpoint.keep_best};
}

absl::Status ListRunCheckpoints(const CheckpointLsOptions& options) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo there, files.Stat(options.path));
  if (!there.is_directory) {
    return absl::NotFoundError(absl::StrCat(options.path,
                                            there.exists ? " is no directory" : " does not exist",
                                            "; give a run directory or one checkpoint"));
  }
  std::vector<std::string> dirs;
  std::vector<CheckpointMarks> marks;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo manifest, files.Stat(JoinPath(options.path, "MANIFEST.pb")));
  if (manifest.exists) {
    dirs = {options.path};
  } else {
    CAROUSEL_ASSIGN_OR_RETURN(dirs, ListCheckpointDirectories(options.path));
    // What cannot be read must not hide the rest.
    absl::StatusOr<std::vector<CheckpointMarks>> all = ReadMarks(RunDirOf(options.path));
    if (all.ok()) marks = *std::move(all);
    if (!all.ok()) absl::PrintF("marks are not shown: %s\n", std::string(all.status().message()));
  }
  if (dirs.empty()) {
    absl::PrintF("no checkpoint in %s\n", options.path);
    return absl::OkStatus();
  }
  const std::map<int64_t, std::string> descriptions = DescribeMarks(marks, RunDirOf(options.path));
  absl::PrintF("%-28s %12s %16s %6s %6s %11s %8s %10s  %-16s  %s\n", "name", "step", "tokens", "ranks",
               "files", "bytes", "age", "loss", "marks", "state");
  const auto is_foreign = [&marks](const std::string& name) {
    return std::any_of(marks.begin(), marks.end(), [&](const CheckpointMarks& of) {
      return of.foreign && name == absl::StrFormat("step-%09d", of.step);
    });
  };
  for (const std::string& dir : dirs) {
    const std::string name = LastName(dir);
    const absl::StatusOr<CheckpointInfo> info = OpenCheckpoint(dir);
    if (!info.ok()) {
      absl::PrintF("%-28s %12s %16s %6s %6s %11s %8s %10s  %-16s  %s\n", name, "-", "-", "-", "-", "-", "-",
                   "-", "",
                   absl::StrCat(is_foreign(name)                  ? "refused: "
                                : absl::IsNotFound(info.status()) ? "not complete: "
                                : absl::IsDataLoss(info.status()) ? "damaged: "
                                                                  : "cannot be read: ",
                                std::string(info.status().message())));
      continue;
    }
    const TrainState& state = info->state;
    double loss = state.evaluated_step == state.step && state.step > 0 ? state.validation_loss : std::nan("");
    std::string description;
    for (const CheckpointMarks& of : marks) {
      if (of.step != state.step || !IsStepName(name)) continue;
      if (of.validation_loss.has_value()) loss = *of.validation_loss;
      description = descriptions.at(of.step);
    }
    absl::PrintF("%-28s %12d %16d %6d %6d %11s %8s %10s  %-16s  %s\n", name, state.step,
                 state.consumed_tokens, info->world_size, info->num_files, FormatByteCount(info->num_bytes),
                 FormatAge(SecondsSince(info->unix_nanos)),
                 std::isnan(loss) ? "-" : absl::StrFormat("%.4f", loss), description,
                 absl::StartsWith(name, ".trash-") ? "being removed"
                 : name[0] == '.'                  ? "set aside"
                                                   : "complete");
  }
  for (const CheckpointMarks& of : marks) {
    if (!of.damage.empty()) absl::PrintF("%s\n", of.damage);
  }
  return absl::OkStatus();
}

absl::Status VerifyRunCheckpoints(const CheckpointVerifyOptions& options) {
  // A checkpoint, or all of a run; also one that lost its manifest.
  std::vector<std::string> dirs;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> all, ListCheckpointDirectories(options.path));
  for (const std::string& dir : all) {
    if (IsStepName(LastName(dir))) dirs.push_back(dir);
  }
  if (dirs.empty()) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(options.path));
    dirs = {dir};
  }
  size_t num_damaged = 0;
  for (const std::string& dir : dirs) num_damaged += !VerifyOne(dir);
  if (num_damaged == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(num_damaged, " of ", dirs.size(), " checkpoints ",
                                          num_damaged == 1 ? "is" : "are",
                                          " damaged or cannot be read; put a copy back, or train "
                                          "on with --checkpoint_fallback from one that is intact"));
}
}  // namespace carousel
