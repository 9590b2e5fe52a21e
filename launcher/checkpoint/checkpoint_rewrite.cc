// `carousel checkpoint merge | reshard | prune`: those that write or remove.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/rewrite.h"
#include "core/base/status_macros.h"
#include "launcher/checkpoint/checkpoint_actions.h"
#include "launcher/progress_bar.h"

namespace carousel {

absl::Status MergeToFile(const CheckpointMergeOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(options.path));
  absl::StatusOr<RewriteResult> merged = absl::UnknownError("");
  {
    ProgressBar bar("merge");
    merged = MergeCheckpoint(dir, options.out, options.moments,
                             {.progress = [&](int64_t done, int64_t total) { bar.Show(done, total); }});
  }
  CAROUSEL_RETURN_IF_ERROR(merged.status());
  absl::PrintF("%s: %d tensors, %s, digests equal those of %s\n", options.out, merged->num_tensors,
               FormatByteCount(merged->num_bytes), dir);
  return absl::OkStatus();
}

absl::Status ReshardToRun(const CheckpointReshardOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(options.path));
  const std::string run_dir = RunDirOf(options.run_dir);
  absl::StatusOr<RewriteResult> written = absl::UnknownError("");
  {
    ProgressBar bar("reshard");
    written = ReshardCheckpoint(dir, run_dir, options.ranks, options.max_file_bytes,
                                {.progress = [&](int64_t done, int64_t total) { bar.Show(done, total); }});
  }
  CAROUSEL_RETURN_IF_ERROR(written.status());
  absl::PrintF("%s/checkpoints/%s: %d tensors in %d files, %s, digests equal those of %s\n", run_dir,
               LastName(dir), written->num_tensors, written->num_files, FormatByteCount(written->num_bytes),
               dir);
  return absl::OkStatus();
}

absl::Status PruneRun(const CheckpointPruneOptions& options) {
  const std::string run_dir = RunDirOf(options.run_dir);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<CheckpointMarks> checkpoints, ReadMarks(run_dir));
  if (checkpoints.empty()) {
    return absl::NotFoundError(
        absl::StrCat("there is no checkpoint in ", run_dir,
                     "; give the --run_dir of a run (`carousel checkpoint ls` lists them)"));
  }
  RetentionPolicy policy = PolicyOfRun(run_dir);
  if (options.keep_last >= 0) policy.keep_last = options.keep_last;
  if (options.keep_every_steps >= 0) policy.keep_every_steps = options.keep_every_steps;
  if (options.keep_best >= 0) policy.keep_best = options.keep_best;
  absl::PrintF("keep_last %d%s, keep_every_steps %d, keep_best %d\n", policy.keep_last,
               policy.keep_last == 0 ? " (all)" : "", policy.keep_every_steps, policy.keep_best);

  const std::vector<unsigned> reasons = KeepReasons(checkpoints, policy);
  int64_t num_going = 0, bytes_going = 0;
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    const std::string dir =
        JoinPath(JoinPath(run_dir, "checkpoints"), absl::StrFormat("step-%09d", checkpoints[i].step));
    const absl::StatusOr<CheckpointInfo> info = OpenCheckpoint(dir);
    const int64_t bytes = info.ok() ? info->num_bytes : 0;
    if (reasons[i] == 0) {
      ++num_going;
      bytes_going += bytes;
    }
    absl::PrintF("%-6s %-16s %11s  %s\n", reasons[i] == 0 ? "remove" : "keep", LastName(dir),
                 info.ok()                ? FormatByteCount(bytes)
                 : checkpoints[i].foreign ? "-"
                                          : "damaged",
                 DescribeKeepReasons(reasons[i]));
  }
  if (num_going == 0) {
    absl::PrintF("nothing to remove\n");
    return absl::OkStatus();
  }
  if (!options.yes) {
    absl::PrintF("%d checkpoints, %s, would be removed; nothing was. Pass --yes to remove them\n", num_going,
                 FormatByteCount(bytes_going));
    return absl::OkStatus();
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<RunLease> lease, RunLease::Acquire(run_dir));
  CAROUSEL_RETURN_IF_ERROR(SweepLeftovers(run_dir));
  CAROUSEL_RETURN_IF_ERROR(PruneCheckpoints(run_dir, policy, nullptr, lease.get()));
  absl::PrintF("removed %d checkpoints, %s\n", num_going, FormatByteCount(bytes_going));
  return absl::OkStatus();
}
}  // namespace carousel
