// Evaluator: mean loss and accuracy over a fixed list of batches, spread over the ranks that see different
// micro-batches. Equal bits for every number of those and of pipeline stages, because the sum over tokens is
// exact and answers are counted in integers.
#pragma once
#include <functional>
#include <vector>

#include "core/comm/mesh.h"
#include "core/train/accuracy.h"
#include "core/train/device_batch.h"
#include "core/train/step_sums.h"

namespace carousel {

struct EvaluationResult {
  double loss = 0;          // mean over all targets, nats; 0 if there are none; NaN if one was not finite
  int64_t num_targets = 0;  // over all ranks
  int64_t num_correct = 0;  // targets that had the largest logit; ties go to the lowest id
  // The same for the targets whose problem has a length (Batch::lengths), ascending; empty if none has.
  std::vector<LengthCount> by_length;
  // In [0, 1]; 0 without targets.
  bool stopped = false;  // before the end: the rest says nothing
  double accuracy() const {
    return num_targets == 0 ? 0 : static_cast<double>(num_correct) / static_cast<double>(num_targets);
  }
};

class Evaluator {
 public:
  // Places the buffers for batches of at most max_tokens tokens of one rank of the sequence axis.
  void Bind(Arena& arena, int64_t max_tokens, const ModelAxes& axes = {});
  // Batches [0, num_batches) of step 0 of `source`. `model` is bound for them and of this rank of the mesh;
  // sync may be null. All ranks of the mesh call this together.
  //
  // should_stop: asked before each batch, equally often on every rank; where it is true on any of them, all
  // stop there. Costs a sum of one number over the ranks. Given on all ranks or on none; null: never.
  EvaluationResult Evaluate(LanguageModel& model, Device& device, ParamSync* sync, const Mesh& mesh,
                            BatchSource& source, int64_t num_batches,
                            const std::function<bool()>& should_stop = nullptr) const;

 private:
  DeviceBatch batch_;
  StepSums sums_;
  Tensor correct_;  // (max_tokens) u8
};
}  // namespace carousel
