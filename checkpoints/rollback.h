// Going back: a run that diverged goes on from the newest checkpoint that is marked as good (retention.h).
// Later ones are set aside, never removed: they are renamed to checkpoints/.aside-step-*, where no load finds
// them and no policy removes them.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"

namespace carousel {

struct WentBack {
  std::string dir;  // the checkpoint that was loaded
  // Where those after it are now, newest first. On rank 0 only.
  std::vector<std::string> set_aside;
};

// Collective, like LoadNewestGood (checkpoint.h), whose options it takes; `lease`: rank 0's, asked before
// anything is renamed, or null. Loads the newest checkpoint marked as good into the slices and *state, then
// sets the later ones aside and removes their marks. No save may be in flight. With options.fallback a good
// one that is damaged is renamed to .bad-* and the good one before it is tried; without it that is an error.
// NotFound: no checkpoint is marked as good. But for such a .bad-*, nothing is renamed before the load has
// succeeded.
//
// What a training loop does besides, since the steps after state->step have not been: Trainer::LoadedStates,
// scores anew from the windows of *state, a loader from sample state->consumed_sequences on,
// MetricsFile::Open and RunHealth::Open with state->step, RunSaver anew with that step as the saved one.
absl::StatusOr<WentBack> GoBackToGood(const std::string& run_dir, const std::vector<StateSlice>& slices,
                                      TrainState* state, const LoadOptions& options,
                                      const RunLease* lease = nullptr);
}  // namespace carousel
