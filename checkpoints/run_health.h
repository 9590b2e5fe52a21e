// Which checkpoints of a run have proved themselves: a checkpoint is marked as good when good_after_steps
// steps in a row after it were healthy, that is neither skipped nor with a spike of the loss. A restart goes
// on from the newest checkpoint; a run that diverged goes back to the newest good one.
#pragma once
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/run_lease.h"
#include "checkpoints/worker.h"

namespace carousel {

// For the rank that saves, in the thread that trains, which never waits for the disk: marks are written by a
// worker, in the order in which they came about. The saver gives its work to the same worker, so a mark is
// written before a checkpoint that is committed later, and before the old ones are judged by their marks.
// Trouble with the disk is reported by the next call; training need not stop for it, and what failed is tried
// again after the next step.
//
//   auto health = RunHealth::Open(run_dir, state.step, state.last_skipped_step, good_after_steps);
//   after every step: health->AfterStep(state.step, healthy);      // neither skipped nor a spike
//   after an evaluation: health->RecordLoss(step, loss);
//   when a checkpoint is committed: health->Committed(step);
//   at the end: health->Finish(seconds);
class RunHealth {
 public:
  // `step`: that the run goes on from; `last_skipped_step`: the last one before it that was skipped, 0 if
  // none was. Marks of later steps are removed. good_after_steps 0: nothing is ever marked. `lease`: once it
  // is lost, nothing is written any more; null: not asked. `files` (null: the real one) and `lease` must live
  // until the worker is idle.
  static absl::StatusOr<std::unique_ptr<RunHealth>> Open(const std::string& run_dir, int64_t step,
                                                         int64_t last_skipped_step, int64_t good_after_steps,
                                                         FileSystem* files = nullptr,
                                                         const RunLease* lease = nullptr);
  // Waits at most Worker::kMaxEndSeconds for marks that are not written yet.
  ~RunHealth();
  RunHealth(const RunHealth&) = delete;
  RunHealth& operator=(const RunHealth&) = delete;

  // A step was made; `step` steps are done now. Marks what has become good. An unhealthy step is on the disk
  // before any checkpoint that is saved later, so that a restart does not forget it. An error: what went
  // wrong with a mark since the last call; the same only once while marks wait.
  absl::Status AfterStep(int64_t step, bool healthy);
  void Committed(int64_t step) { unmarked_.insert(step); }
  // RecordValidationLoss (retention.h).
  void RecordLoss(int64_t step, double loss);
  // Waits, at most so long, until every mark is on the disk; tries once more what had failed. An error: why
  // some are not there.
  absl::Status Finish(double seconds);

  const std::shared_ptr<Worker>& worker() const { return worker_; }

 private:
  class Marks;  // shared with the worker
  RunHealth();

  const std::shared_ptr<Worker> worker_;
  std::shared_ptr<Marks> marks_;
  int64_t good_after_steps_ = 0;
  int64_t last_unhealthy_ = 0;
  absl::Status told_;  // the trouble that AfterStep returned last, while marks wait
  std::set<int64_t> unmarked_;                     // steps of committed checkpoints that are not marked yet
};
}  // namespace carousel
