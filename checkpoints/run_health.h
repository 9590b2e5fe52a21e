// Which checkpoints of a run have proved themselves: a checkpoint is marked as good when good_after_steps
// steps in a row after it were healthy, that is neither skipped nor with a spike of the loss. A restart goes
// on from the newest checkpoint; a run that diverged goes back to the newest good one.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"

namespace carousel {

// Whether a loss lies far above those before it: more than 6 standard deviations, and more than 5 %, above
// the mean of the last 64 losses that were no spikes. Says no until it has seen 32 of them.
class LossSpikes {
 public:
  bool IsSpike(double loss);

 private:
  static constexpr int64_t kWindow = 64, kLeast = 32;
  std::array<double, kWindow> losses_ = {};
  int64_t seen_ = 0;
};

// For the rank that saves, in the thread that trains. Trouble with the disk is reported by status; training
// need not stop for it.
//
//   auto health = RunHealth::Open(run_dir, state.step, state.skipped_steps, good_after_steps);  // after a
//   load after every step:               health->AfterStep(state.step, result.skipped, result.loss) when a
//   checkpoint is committed: health->Committed(step)
class RunHealth {
 public:
  // `step`: that the run goes on from, with `skipped_steps` skipped before it. Marks of later steps are
  // removed. good_after_steps 0: nothing is ever marked.
  static absl::StatusOr<std::unique_ptr<RunHealth>> Open(const std::string& run_dir, int64_t step,
                                                         int64_t skipped_steps, int64_t good_after_steps,
                                                         FileSystem* files = nullptr);
  // A step was made; `step` steps are done now. Marks what has become good. An unhealthy step is on the disk
  // before this returns, so that a restart does not forget it.
  absl::Status AfterStep(int64_t step, bool skipped, double loss);
  void Committed(int64_t step) { unmarked_.insert(step); }

 private:
  RunHealth() = default;

  std::string run_dir_;
  FileSystem* files_ = nullptr;  // null: the real one
  int64_t good_after_steps_ = 0;
  int64_t last_unhealthy_ = 0;
  std::set<int64_t> unmarked_;  // steps of committed checkpoints that are not marked yet
  LossSpikes spikes_;
};
}  // namespace carousel
