// The directory of a run: the resolved config and what made it, kept beside the metrics and the checkpoints.
//   <run_dir>/config.textproto   the resolved config of the newest start
//   <run_dir>/build.txt          version, git revision and command of every start, one line each
//   <run_dir>/run_id             which run this is (checkpoints/run_identity.h)
//   <run_dir>/metrics.jsonl, checkpoints/
#pragma once
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "configs/load.h"
#include "configs/run_spec.h"

namespace carousel {

std::string ConfigPath(const std::string& run_dir);
std::string MetricsPath(const std::string& run_dir);

// Makes the directory, durably, and proves that it can be written (a file is made, synced and removed).
// Errors name the directory. files: null for the real ones.
absl::Status PrepareRunDirectory(const std::string& run_dir, FileSystem* files = nullptr);
// The config of the run that lives in run_dir: config.textproto, or where that is missing the copy in the
// newest committed checkpoint that can be read, of which *taken_from (optional) then is the path.
// InvalidArgument if there is neither.
absl::StatusOr<RunSpec> LoadRunOf(const std::string& run_dir, const RunOverrides& overrides,
                                  std::string* taken_from = nullptr);
// Writes config.textproto (synced, renamed into place), if it does not say the same already, and appends to
// build.txt. A full disk is an error for the first, which says how much space it needs; a line of build.txt
// that finds no space is left out with a warning.
absl::Status RecordStart(const RunSpec& run, const std::string& build_line);

// How often the run was started so far, by build.txt.
int64_t NumStarts(const std::string& run_dir);

// One field that differs between a run's earlier config and the one that would go on with it:
// "model.num_blocks: 4 in the run, 6 now".
struct ConfigDifference {
  std::string text;
  bool acceptable =
      false;  // may be changed on purpose (data, batch, optimizer, schedule); false: the model itself
};
// All of them that change what the run computes. Settings of speed, logging, evaluation and checkpoints may
// differ freely.
std::vector<ConfigDifference> ConfigDifferences(const RunSpec& earlier, const RunSpec& now);
}  // namespace carousel
