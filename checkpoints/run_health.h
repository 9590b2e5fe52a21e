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

namespace carousel {

// Whether a loss lies far above those before it: more than 6 standard deviations, and more than 5 %, above
// the mean of the last 64 losses that were no spikes. Says no until it has seen 32 of them. Every rank has
// one and shows it every step that was not skipped; what it remembers goes into TrainState.
class LossSpikes {
 public:
  explicit LossSpikes(std::vector<double> window = {}) : window_(std::move(window)) {}
  bool IsSpike(double loss);
  const std::vector<double>& window() const { return window_; }  // oldest first, at most 64

 private:
  std::vector<double> window_;
};

// For the rank that saves, in the thread that trains. Trouble with the disk is reported by status; training
// need not stop for it.
//
//   LossSpikes spikes(state.loss_window);                          // every rank, once the checkpoint is
//   loaded auto health = RunHealth::Open(run_dir, state.step, state.last_skipped_step, good_after_steps);  //
//   rank 0 after every step:
//     const bool healthy = !result.skipped && !spikes.IsSpike(result.loss);
//     state.loss_window = spikes.window();
//     health->AfterStep(state.step, healthy);                      // rank 0
//   when a checkpoint is committed: health->Committed(step);       // rank 0
class RunHealth {
 public:
  // `step`: that the run goes on from; `last_skipped_step`: the last one before it that was skipped, 0 if
  // none was. Marks of later steps are removed. good_after_steps 0: nothing is ever marked.
  static absl::StatusOr<std::unique_ptr<RunHealth>> Open(const std::string& run_dir, int64_t step,
                                                         int64_t last_skipped_step, int64_t good_after_steps,
                                                         FileSystem* files = nullptr);
  // A step was made; `step` steps are done now. Marks what has become good. An unhealthy step is on the disk
  // before this returns, so that a restart does not forget it; after an error the next call tries again.
  absl::Status AfterStep(int64_t step, bool healthy);
  void Committed(int64_t step) { unmarked_.insert(step); }

 private:
  RunHealth() = default;

  std::string run_dir_;
  FileSystem* files_ = nullptr;  // null: the real one
  int64_t good_after_steps_ = 0;
  int64_t last_unhealthy_ = 0;
  bool remembered_ = true;      // the disk knows of it
  std::set<int64_t> unmarked_;  // steps of committed checkpoints that are not marked yet
};
}  // namespace carousel
