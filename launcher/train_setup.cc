#include "launcher/train_setup.h"

namespace carousel {

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
          .compute = run.compute};
}
}  // namespace carousel
