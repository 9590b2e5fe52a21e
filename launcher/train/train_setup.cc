#include "launcher/train/train_setup.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "launcher/train/run_directory.h"
#include "parallel/pipeline_schedule.h"

namespace carousel {

absl::StatusOr<RunSpec> LoadRunToTrain(const ConfigOptions& options) {
  const RunOverrides overrides{.sets = options.sets, .run_dir = options.run_dir, .for_training = true};
  if (options.config.empty()) {
    if (options.run_dir.empty()) {
      return absl::InvalidArgumentError(
          "say what to train: --config FILE.textproto for a new run, or --run_dir DIR to go on with one");
    }
    return LoadRunOf(options.run_dir, overrides);
  }
  CAROUSEL_ASSIGN_OR_RETURN(RunSpec run, LoadRun(options.config, overrides));
  if (run.run_dir.empty()) {
    return absl::InvalidArgumentError(
        "say where the run lives: --run_dir DIR, or run_dir: \"DIR\" in the config");
  }
  return run;
}

TrainSpec MakeTrainSpec(const RunSpec& run) {
  return {.model = run.model,
          .adamw = run.adamw,
          .schedule = run.schedule,
          .decay_embedding = run.decay_embedding,
          .dropout_seed = run.seed,
          .T = run.sequence_length,
          .longest_eval_T = run.eval_every_steps > 0 ? run.eval_sequence_length : 0,
          .micro_batch = run.micro_batch,
          .micro_batches_per_step = run.micro_batches_per_step(),
          .compute = run.compute,
          .sequence_mode = run.parallel.sequence_mode,
          .actions = OneForwardOneBackward,
          .gate_stats = run.health.gate_stats_every_steps > 0,
          .digests = run.health.rerun};
}

SyncOptions MakeSyncOptions(const RunSpec& run) {
  SyncOptions options;
  options.reduction =
      run.parallel.ordered ? SyncOptions::Reduction::kOrdered : SyncOptions::Reduction::kUnordered;
  options.wire = run.parallel.bf16_wire ? SyncOptions::Wire::kBF16 : SyncOptions::Wire::kWide;
  return options;
}

MeshSpec MakeMeshSpec(const RunSpec& run, int64_t world) {
  const ParallelSpec& p = run.parallel;
  return {.world = world,
          .sizes = {.pipe = p.pipe,
                    .replicate = p.wanted_replicate(),
                    .shard = p.shard,
                    .sequence = p.sequence,
                    .tensor = p.tensor},
          .global_batch = run.global_batch,
          .micro_batch = run.micro_batch,
          .model = &run.model,
          .sequence_length = run.sequence_length,
          .eval_sequence_length = run.eval_every_steps > 0 ? run.eval_sequence_length : 0,
          .sequence_mode = p.sequence_mode};
}

int64_t WantedWorld(const RunSpec& run) {
  MeshSizes sizes = MakeMeshSpec(run, 1).sizes;
  if (sizes.replicate == 0) sizes.replicate = 1;
  return sizes.world();
}
}  // namespace carousel
