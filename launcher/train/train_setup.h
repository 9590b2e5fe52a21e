// From a RunSpec to the objects of a run.
#pragma once
#include "absl/status/statusor.h"
#include "configs/run_spec.h"
#include "core/train/trainer.h"
#include "launcher/commands.h"
#include "parallel/mesh_builder.h"
#include "parallel/sharded_sync.h"

namespace carousel {

// What the command line of train says; without --config what the run directory holds. InvalidArgument.
absl::StatusOr<RunSpec> LoadRunToTrain(const ConfigOptions& options);
TrainSpec MakeTrainSpec(const RunSpec& run);
SyncOptions MakeSyncOptions(const RunSpec& run);
// How the run is cut if `world` ranks are started. Refers to `run`.
MeshSpec MakeMeshSpec(const RunSpec& run, int64_t world);
// The ranks that the config asks for; where it leaves replicate open, the fewest that will do.
int64_t WantedWorld(const RunSpec& run);
}  // namespace carousel
