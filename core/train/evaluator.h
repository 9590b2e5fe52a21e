// Evaluator: mean loss over a fixed list of batches, spread over the data axis. Equal bits for every number
// of ranks, because the sum over tokens is exact.
#pragma once
#include "core/comm/mesh.h"
#include "core/train/device_batch.h"
#include "core/train/step_sums.h"

namespace carousel {

struct EvaluationResult {
  double loss = 0;          // mean over all targets, nats; 0 if there are none; NaN if one was not finite
  int64_t num_targets = 0;  // over all ranks
};

class Evaluator {
 public:
  // Places the buffers for batches of at most B sequences of T tokens.
  void Bind(Arena& arena, int64_t B, int64_t T);
  // Batches [0, num_batches) of step 0 of `source`. `model` is bound for at least (B, T); sync may be null.
  // All ranks of the axis call this together.
  EvaluationResult Evaluate(LanguageModel& model, Device& device, ParamSync* sync, const Axis& data,
                            BatchSource& source, int64_t num_batches) const;

 private:
  DeviceBatch batch_;
  StepSums sums_;
};
}  // namespace carousel
