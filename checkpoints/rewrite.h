// A checkpoint written again: as one safetensors file for other programs, or as a checkpoint with other
// shards. Both stream with memory for a few pieces of 32 MiB, write beside their result first, compare the
// digests of all tensors with those of the source, and only then give the result its name: whatever fails,
// the source is as it was and the result is whole or not there.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"

namespace carousel {

struct RewriteOptions {
  // Called as the work goes on; may be null.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress = {};
  FileSystem* files = nullptr;  // null: the real one
};
struct RewriteResult {
  int64_t num_tensors = 0, num_files = 0;
  int64_t num_bytes = 0;  // of the files
};

// Writes the weights of checkpoint `dir`, and if asked for the moments (as "<name>.exp_avg" and
// "<name>.exp_avg_sq"), as whole tensors into the safetensors file `out`, in their dtypes, and reads it back.
// AlreadyExists if there is something at `out`, ResourceExhausted if the disk is too full, FailedPrecondition
// if `out` lies among the checkpoints of a run or in the directory of another run.
absl::StatusOr<RewriteResult> MergeCheckpoint(const std::string& dir, const std::string& out, bool moments,
                                              const RewriteOptions& options = {});

// Writes checkpoint `dir` as the checkpoint of the same step of another run directory, as num_ranks ranks
// would have written it that share its tensors evenly, in files of at most max_file_bytes of tensors. Takes
// the lease of run_dir, which becomes a directory of the same run if it is none yet. FailedPrecondition if it
// is that of another run (run_identity.h). AlreadyExists if that has a checkpoint of this step;
// InvalidArgument: num_ranks or max_file_bytes is not possible. After an error no directory is left that was
// not there before.
absl::StatusOr<RewriteResult> ReshardCheckpoint(const std::string& dir, const std::string& run_dir,
                                                int64_t num_ranks, int64_t max_file_bytes,
                                                const RewriteOptions& options = {});
}  // namespace carousel
