// What the subcommands of `carousel checkpoint` do: their options, and functions that print to standard
// output and return how it went. checkpoint_command.cc describes them on the command line.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/retention.h"

namespace carousel {

struct CheckpointLsOptions {
  std::string path;
};
absl::Status ListRunCheckpoints(const CheckpointLsOptions& options);

struct CheckpointVerifyOptions {
  std::string path;
};
// DataLoss if anything is damaged.
absl::Status VerifyRunCheckpoints(const CheckpointVerifyOptions& options);

struct CheckpointStatOptions {
  std::string path;
  std::vector<std::string> tensors;  // empty: all
  bool values = false;
};
absl::Status PrintCheckpointStat(const CheckpointStatOptions& options);

struct CheckpointDiffOptions {
  std::string a, b;
  bool weights_only = false;
  bool values = false;
  // Tensors are close whose ValueDifference::RelativeNorm(floor) is at most `tolerance`; negative: only equal
  // ones are.
  double tolerance = -1, floor = 0;
};
// Whether they are equal, or close.
absl::StatusOr<bool> PrintCheckpointDiff(const CheckpointDiffOptions& options);

struct CheckpointMergeOptions {
  std::string path, out;
  bool moments = false;
};
absl::Status MergeToFile(const CheckpointMergeOptions& options);

struct CheckpointReshardOptions {
  std::string path, run_dir;
  int64_t ranks = 1;
  int64_t max_file_bytes = int64_t{4} << 30;
};
absl::Status ReshardToRun(const CheckpointReshardOptions& options);

struct CheckpointPruneOptions {
  std::string run_dir;
  // -1: as the config of the newest checkpoint says.
  int64_t keep_last = -1, keep_every_steps = -1, keep_best = -1;
  bool yes = false;  // else nothing is removed
};
absl::Status PruneRun(const CheckpointPruneOptions& options);

// ---- shared by them

// The policy of the run: that of the newest checkpoint's config. Keeps everything if that cannot be read.
RetentionPolicy PolicyOfRun(const std::string& run_dir);
std::string FormatByteCount(int64_t bytes);  // "3.9 GiB"
std::string FormatAge(double seconds);       // "5 s", "12 min", "3.2 h", "41 d"
// Directories in run_dir/checkpoints that are or were or may become checkpoints: by step, then those that
// were set aside or are being written.
absl::StatusOr<std::vector<std::string>> ListCheckpointDirectories(const std::string& run_dir);
bool IsStepName(const std::string& name);
std::string LastName(const std::string& path);  // "c" of "a/b/c" and "a/b/c/"
}  // namespace carousel
