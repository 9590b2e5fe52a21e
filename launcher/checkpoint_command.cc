// `carousel checkpoint ls | verify | diff`: look at checkpoints without loading a model.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "core/base/status_macros.h"
#include "launcher/commands.h"

namespace carousel {
namespace {

std::string FormatBytes(int64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
}

std::string FormatTime(int64_t unix_nanos) {
  const std::time_t seconds = static_cast<std::time_t>(unix_nanos / 1'000'000'000);
  std::tm local = {};
  char text[32] = {};
  if (localtime_r(&seconds, &local) == nullptr) return "-";
  return std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local) > 0 ? text : "-";
}

bool IsStepName(const std::string& name) { return name.compare(0, 5, "step-") == 0; }

// Directories in run_dir/checkpoints that are or were or may become checkpoints.
absl::StatusOr<std::vector<std::string>> ListAll(const std::string& run_dir) {
  PosixFileSystem files;
  const std::string store = JoinPath(run_dir, "checkpoints");
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
  for (const std::string& name : names) {
    if (name.compare(0, 5, ".bad-") == 0 || name.compare(0, 5, ".tmp-") == 0) {
      dirs.push_back(JoinPath(store, name));
    }
  }
  return dirs;
}

struct LsOptions {
  std::string path;
};

absl::Status List(const LsOptions& options) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo there, files.Stat(options.path));
  if (!there.is_directory) {
    return absl::NotFoundError(
        absl::StrCat(options.path, there.exists ? " is no directory" : " does not exist"));
  }
  std::vector<std::string> dirs;
  if (OpenCheckpoint(options.path).ok()) {
    dirs = {options.path};
  } else {
    CAROUSEL_ASSIGN_OR_RETURN(dirs, ListAll(options.path));
  }
  if (dirs.empty()) {
    absl::PrintF("no checkpoint in %s\n", options.path);
    return absl::OkStatus();
  }
  absl::PrintF("%-28s %12s %16s %6s %6s %11s  %-19s  %s\n", "name", "step", "tokens", "ranks", "files",
               "bytes", "written", "state");
  for (const std::string& dir : dirs) {
    const std::string name = dir.substr(dir.rfind('/') + 1);
    const absl::StatusOr<CheckpointInfo> info = OpenCheckpoint(dir);
    if (info.ok()) {
      absl::PrintF("%-28s %12d %16d %6d %6d %11s  %-19s  %s\n", name, info->state.step,
                   info->state.consumed_tokens, info->world_size, info->num_files,
                   FormatBytes(info->num_bytes), FormatTime(info->unix_nanos),
                   name[0] == '.' ? "set aside" : "complete");
    } else {
      absl::PrintF("%-28s %12s %16s %6s %6s %11s  %-19s  %s\n", name, "-", "-", "-", "-", "-", "-",
                   absl::StrCat(absl::IsNotFound(info.status()) ? "not complete: " : "damaged: ",
                                std::string(info.status().message())));
    }
  }
  return absl::OkStatus();
}

struct VerifyOptions {
  std::string path;
};

// A bar on the terminal while a checkpoint is read; nothing elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(std::string name) : name_(std::move(name)), live_(isatty(STDERR_FILENO) != 0) {}
  ~ProgressBar() {
    if (drawn_) std::fputs("\r\033[K", stderr);
  }
  void Show(int64_t done, int64_t total) {
    const auto now = std::chrono::steady_clock::now();
    if (!live_ || (drawn_ && done < total && now - last_ < std::chrono::milliseconds(100))) return;
    last_ = now;
    drawn_ = true;
    const int filled = total > 0 ? static_cast<int>(30 * done / total) : 30;
    absl::FPrintF(
        stderr, "\r%s  [%s%s] %3d %%  %s of %s\033[K", name_, std::string(static_cast<size_t>(filled), '='),
        std::string(static_cast<size_t>(30 - filled), ' '),
        total > 0 ? static_cast<int>(100 * done / total) : 100, FormatBytes(done), FormatBytes(total));
    std::fflush(stderr);
  }

 private:
  std::string name_;
  bool live_, drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

// True if every bit of the checkpoint is as it was written. Prints what is not.
bool VerifyOne(const std::string& dir) {
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<VerifyReport> report = absl::UnknownError("");
  {
    ProgressBar bar(dir);
    report = VerifyCheckpoint(dir, [&](int64_t done, int64_t total) { bar.Show(done, total); });
  }
  if (!report.ok()) {
    absl::PrintF("%s: DAMAGED\n  %s\n", dir, std::string(report.status().message()));
    return false;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  absl::PrintF("%s: %s, %d files, %s, %d tensors, %.2f s\n", dir, report->problems.empty() ? "ok" : "DAMAGED",
               report->num_files, FormatBytes(report->num_bytes), report->num_tensors, seconds);
  for (const std::string& problem : report->problems) absl::PrintF("  %s\n", problem);
  return report->problems.empty();
}

absl::Status Verify(const VerifyOptions& options) {
  // A checkpoint, or all of a run; also one that lost its manifest.
  PosixFileSystem files;
  std::vector<std::string> dirs;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> all, ListAll(options.path));
  for (const std::string& dir : all) {
    if (IsStepName(dir.substr(dir.rfind('/') + 1))) dirs.push_back(dir);
  }
  if (dirs.empty()) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(options.path));
    dirs = {dir};
  }
  size_t num_damaged = 0;
  for (const std::string& dir : dirs) num_damaged += !VerifyOne(dir);
  if (num_damaged == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(num_damaged, " of ", dirs.size(), " checkpoints ",
                                          num_damaged == 1 ? "is" : "are", " damaged"));
}

struct DiffOptions {
  std::string a, b;
  bool weights_only = false;
};

absl::StatusOr<bool> Diff(const DiffOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string a, FindCheckpoint(options.a));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string b, FindCheckpoint(options.b));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> lines,
                            DiffCheckpoints(a, b, options.weights_only));
  for (const std::string& line : lines) absl::PrintF("%s\n", line);
  const char* const what = options.weights_only ? "weights" : "weights and moments";
  if (lines.empty()) {
    absl::PrintF("%s and %s have the same %s\n", a, b, what);
  } else {
    absl::PrintF("%d tensors differ between %s and %s\n", lines.size(), a, b);
  }
  return lines.empty();
}

int ExitCode(const absl::Status& status) { return status.ok() ? kExitOk : ReportError(status); }
}  // namespace

CLI::App* AddCheckpointCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* const command = app.add_subcommand("checkpoint", "List, verify or compare checkpoints");
  command->require_subcommand(1);
  command->footer(R"(Examples:
  carousel checkpoint ls runs/demo
  carousel checkpoint verify runs/demo
  carousel checkpoint verify runs/demo/checkpoints/step-000000200
  carousel checkpoint diff runs/demo runs/other --weights_only
The files are described in checkpoints/FORMAT.md.)");

  CLI::App* const ls = command->add_subcommand("ls", "What checkpoints a run has");
  const auto ls_options = std::make_shared<LsOptions>();
  ls->add_option("RUN_DIR", ls_options->path, "A run directory or one checkpoint")->required();
  ls->footer(
      "\"complete\" means that the manifest is whole and all files have their sizes; `verify` reads them.");
  ls->callback([ls_options, run] { *run = [ls_options] { return ExitCode(List(*ls_options)); }; });

  CLI::App* const verify = command->add_subcommand(
      "verify", "Read every byte of the checkpoints: checksums of blocks and files, digests of tensors");
  const auto verify_options = std::make_shared<VerifyOptions>();
  verify->add_option("DIR", verify_options->path, "A run directory (all its checkpoints) or one checkpoint")
      ->required();
  verify->footer("Exits 0 if everything is as it was written, otherwise 1; names file, block and tensor.");
  verify->callback(
      [verify_options, run] { *run = [verify_options] { return ExitCode(Verify(*verify_options)); }; });

  CLI::App* const diff =
      command->add_subcommand("diff", "Which tensors of two checkpoints differ, by their digests");
  const auto diff_options = std::make_shared<DiffOptions>();
  diff->add_option("A", diff_options->a, "A checkpoint, or a run directory: its newest one")->required();
  diff->add_option("B", diff_options->b, "The other one")->required();
  diff->add_flag("--weights_only", diff_options->weights_only, "Leave the optimizer's moments out");
  diff->footer(
      "Exits 0 if they are equal, 1 if they differ. The number of ranks that wrote them does not matter.");
  diff->callback([diff_options, run] {
    *run = [diff_options] {
      const absl::StatusOr<bool> equal = Diff(*diff_options);
      if (!equal.ok()) return ReportError(equal.status());
      return *equal ? kExitOk : kExitFailure;
    };
  });
  return command;
}
}  // namespace carousel
