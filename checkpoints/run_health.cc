#include "checkpoints/run_health.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checkpoints/marks.h"
#include "checkpoints/retention.h"
#include "core/base/status_macros.h"

namespace carousel {

// What is to be written, oldest first; the worker takes it from the front.
class RunHealth::Marks : public std::enable_shared_from_this<Marks> {
 public:
  enum class Kind : uint8_t { kUnhealthy, kLoss, kGood };
  struct Mark {
    Kind kind = Kind::kUnhealthy;
    int64_t step = 0;
    double loss = 0;
  };
  Marks(std::string run_dir, FileSystem* files, const RunLease* lease)
      : run_dir_(std::move(run_dir)), files_(files != nullptr ? *files : posix_), lease_(lease) {}

  FileSystem& files() { return files_; }

  void Add(const Mark& mark) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (lost_) return;
    // Of unhealthy steps only the last one counts.
    if (mark.kind == Kind::kUnhealthy) {
      for (Mark& waiting : waiting_) {
        if (waiting.kind != Kind::kUnhealthy) continue;
        waiting.step = mark.step;
        return;
      }
    }
    waiting_.push_back(mark);
  }
  // Has the worker write what waits, if it will not do so anyway.
  void Hand(Worker& worker) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (waiting_.empty() || handed_) return;
    handed_ = true;
    worker.Run([self = shared_from_this()] { self->WriteAll(); });
  }
  // What went wrong since the last call.
  absl::Status TakeTrouble() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(trouble_, absl::OkStatus());
  }
  size_t num_waiting() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return waiting_.size();
  }

 private:
  void WriteAll() {
    while (true) {
      Mark mark;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        handed_ = !waiting_.empty();
        if (!handed_) return;
        mark = waiting_.front();
      }
      bool lost = false;
      const absl::Status written = WithoutThrowing([&] { return Write(mark, &lost); });
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!written.ok()) {
        // It stays in front. Somebody else's marks are none of ours.
        trouble_ = written;
        handed_ = false;
        lost_ = lost;
        if (lost) waiting_.clear();
        return;
      }
      // A later unhealthy step may have taken the place of what was written.
      if (waiting_.front().step == mark.step) waiting_.pop_front();
    }
  }
  absl::Status Write(const Mark& mark, bool* lost) {
    if (lease_ != nullptr) {
      const absl::Status held = lease_->StillHeld();
      *lost = absl::IsFailedPrecondition(held);
      CAROUSEL_RETURN_IF_ERROR(held);
    }
    switch (mark.kind) {
      case Kind::kUnhealthy:
        return WriteUnhealthyMark(files_, run_dir_, mark.step);
      case Kind::kLoss:
        return RecordValidationLoss(run_dir_, mark.step, mark.loss, &files_);
      case Kind::kGood: {
        // One that was removed meanwhile needs no mark.
        const absl::Status marked = MarkGood(run_dir_, mark.step, &files_);
        return absl::IsNotFound(marked) ? absl::OkStatus() : marked;
      }
    }
    return absl::OkStatus();
  }

  const std::string run_dir_;
  PosixFileSystem posix_;
  FileSystem& files_;
  const RunLease* const lease_;
  mutable std::mutex mutex_;  // guards what follows
  std::deque<Mark> waiting_;
  bool handed_ = false;  // the worker has a job that writes what waits
  bool lost_ = false;    // the lease
  absl::Status trouble_;
};

RunHealth::RunHealth() : worker_(std::make_shared<Worker>()) {}
RunHealth::~RunHealth() { static_cast<void>(worker_->WaitIdle(Worker::kMaxEndSeconds)); }

absl::StatusOr<std::unique_ptr<RunHealth>> RunHealth::Open(const std::string& run_dir, int64_t step,
                                                           int64_t last_skipped_step,
                                                           int64_t good_after_steps, FileSystem* files,
                                                           const RunLease* lease) {
  std::unique_ptr<RunHealth> self(new RunHealth);
  self->marks_ = std::make_shared<Marks>(run_dir, files, lease);
  self->good_after_steps_ = good_after_steps;
  FileSystem& fs = self->marks_->files();
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
  if (good_after_steps_ > 0) {
    if (!healthy) {
      last_unhealthy_ = step;
      marks_->Add({.kind = Marks::Kind::kUnhealthy, .step = step});
    }
    while (step - last_unhealthy_ >= good_after_steps_ && !unmarked_.empty() &&
           *unmarked_.begin() <= step - good_after_steps_) {
      marks_->Add({.kind = Marks::Kind::kGood, .step = *unmarked_.begin()});
      unmarked_.erase(unmarked_.begin());
    }
  }
  const absl::Status trouble = marks_->TakeTrouble();
  if (marks_->num_waiting() == 0) told_ = absl::OkStatus();
  marks_->Hand(*worker_);  // also what failed
  // A disk that is full is so at every step.
  if (trouble == told_) return absl::OkStatus();
  if (!trouble.ok()) told_ = trouble;
  return trouble;
}

void RunHealth::RecordLoss(int64_t step, double loss) {
  marks_->Add({.kind = Marks::Kind::kLoss, .step = step, .loss = loss});
  marks_->Hand(*worker_);
}

absl::Status RunHealth::Finish(double seconds) {
  const auto start = std::chrono::steady_clock::now();
  absl::Status trouble;
  // What fails may have failed before this was called: once more.
  for (int tries = 0; tries < 2 && marks_->num_waiting() > 0; ++tries) {
    marks_->Hand(*worker_);
    const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!worker_->WaitIdle(std::max(0.0, seconds - spent))) {
      return absl::DeadlineExceededError(absl::StrCat(
          marks_->num_waiting(), " marks of checkpoints were not written within ", seconds, " s"));
    }
    trouble.Update(marks_->TakeTrouble());
  }
  if (marks_->num_waiting() == 0) return trouble.ok() ? marks_->TakeTrouble() : absl::OkStatus();
  return absl::Status(
      trouble.code(),
      absl::StrCat(marks_->num_waiting(), " marks of checkpoints were not written: ", trouble.message()));
}
}  // namespace carousel
