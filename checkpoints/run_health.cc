#include "checkpoints/run_health.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "checkpoints/marks.h"
#include "checkpoints/retention.h"
#include "core/base/status_macros.h"

namespace carousel {

namespace {
constexpr size_t kWindow = 64, kLeast = 32;  // losses
}  // namespace

bool LossSpikes::IsSpike(double loss) {
  if (!std::isfinite(loss)) return true;
  if (window_.size() >= kLeast) {
    const double n = static_cast<double>(window_.size());
    double sum = 0, squares = 0;
    for (const double x : window_) sum += x;
    const double mean = sum / n;
    for (const double x : window_) squares += (x - mean) * (x - mean);
    const double deviation = std::sqrt(squares / (n - 1));
    if (loss - mean > 6 * deviation && loss - mean > 0.05 * std::abs(mean)) return true;
  }
  if (window_.size() >= kWindow) window_.erase(window_.begin(), window_.end() - (kWindow - 1));
  window_.push_back(loss);
  return false;
}

absl::StatusOr<std::unique_ptr<RunHealth>> RunHealth::Open(const std::string& run_dir, int64_t step,
                                                           int64_t last_skipped_step,
                                                           int64_t good_after_steps, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  std::unique_ptr<RunHealth> self(new RunHealth);
  self->run_dir_ = run_dir;
  self->files_ = files;
  self->good_after_steps_ = good_after_steps;
  CAROUSEL_RETURN_IF_ERROR(ForgetMarksAfter(run_dir, step, &fs));
  const absl::StatusOr<std::optional<int64_t>> unhealthy = ReadUnhealthyMark(fs, run_dir);
  // One that cannot be read, or is of an attempt that was given up: count from here.
  if (!unhealthy.ok() && !absl::IsDataLoss(unhealthy.status())) return unhealthy.status();
  self->last_unhealthy_ = unhealthy.ok() ? std::min(unhealthy->value_or(0), step) : step;
  self->last_unhealthy_ = std::max(self->last_unhealthy_, last_skipped_step);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<CheckpointMarks> checkpoints, ReadMarks(run_dir, &fs));
  for (const CheckpointMarks& marks : checkpoints) {
    if (!marks.good && marks.step <= step) self->unmarked_.insert(marks.step);
  }
  return self;
}

absl::Status RunHealth::AfterStep(int64_t step, bool healthy) {
  if (good_after_steps_ <= 0) return absl::OkStatus();
  if (!healthy) {
    last_unhealthy_ = step;
    remembered_ = false;
  }
  if (!remembered_) {
    PosixFileSystem posix;
    CAROUSEL_RETURN_IF_ERROR(
        WriteUnhealthyMark(files_ != nullptr ? *files_ : posix, run_dir_, last_unhealthy_));
    remembered_ = true;
  }
  if (step - last_unhealthy_ < good_after_steps_) return absl::OkStatus();
  while (!unmarked_.empty() && *unmarked_.begin() <= step - good_after_steps_) {
    const absl::Status marked = MarkGood(run_dir_, *unmarked_.begin(), files_);
    // One that was removed meanwhile needs no mark; any other failure is tried again after the next step.
    if (!marked.ok() && !absl::IsNotFound(marked)) return marked;
    unmarked_.erase(unmarked_.begin());
  }
  return absl::OkStatus();
}
}  // namespace carousel
