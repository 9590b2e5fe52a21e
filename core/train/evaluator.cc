#include "core/train/evaluator.h"

namespace carousel {

void Evaluator::Bind(Arena& arena, int64_t B, int64_t T) {
  batch_.Bind(arena, B, T);
  sums_.Bind(arena);
}

EvaluationResult Evaluator::Evaluate(LanguageModel& model, Device& device, ParamSync* sync, const Axis& data,
                                     BatchSource& source, int64_t num_batches) const {
  sums_.Clear(device.ops());
  int64_t num_targets = 0;
  Batch batch;
  const int64_t begin = data.index * num_batches / data.size;
  const int64_t end = (data.index + 1) * num_batches / data.size;
  for (int64_t i = begin; i < end; ++i) {
    source.Get(/*step=*/0, i, &batch);
    num_targets += batch.num_targets();
    model.ForwardLoss(device.ops(), sync, batch_.Load(device, batch), sums_.loss());
  }
  const StepSums::Totals totals = sums_.Reduce(device, data, num_targets);
  if (totals.num_targets == 0) return {};
  return {.loss = totals.loss / static_cast<double>(totals.num_targets), .num_targets = totals.num_targets};
}
}  // namespace carousel
