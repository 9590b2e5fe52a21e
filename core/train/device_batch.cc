#include "core/train/device_batch.h"

#include <vector>

#include "core/base/int_math.h"

namespace carousel {

const Batch& SequencePart(const Batch& batch, const Axis& sequence, Batch* storage) {
  if (sequence.size == 1) return batch;
  const int64_t T = DivExact(batch.T, sequence.size);
  storage->B = batch.B;
  storage->T = T;
  const auto take = [&](const auto& from, auto* to) {
    to->clear();
    if (from.empty()) return;
    for (int64_t b = 0; b < batch.B; ++b) {
      const auto first = from.begin() + (b * batch.T + sequence.index * T);
      to->insert(to->end(), first, first + T);
    }
  };
  take(batch.inputs, &storage->inputs);
  take(batch.targets, &storage->targets);
  take(batch.resets, &storage->resets);
  take(batch.lengths, &storage->lengths);
  return *storage;
}

void DeviceBatch::Bind(Arena& arena, int64_t max_tokens, const ModelAxes& axes) {
  axes_ = axes;
  max_tokens_ = max_tokens;
  ids_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  targets_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  resets_ = arena.Persistent("batch", DType::kU8, {max_tokens});
  if (axes.sequence.size > 1) {
    all_resets_ = arena.Persistent("batch", DType::kU8, {max_tokens * axes.sequence.size});
  }
  if (axes.sequence.size > 1 || axes.tensor.size > 1) return;
  of_targets_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  to_targets_ = arena.Persistent("batch", DType::kI32, {max_tokens});
}

LanguageModel::Input DeviceBatch::Load(Device& device, const Batch& whole) const {
  CAROUSEL_CHECK(whole.B >= 1 && whole.T >= 1);
  const auto has_all = [&whole](const auto& values) {
    return static_cast<int64_t>(values.size()) == whole.B * whole.T;
  };
  CAROUSEL_CHECK(has_all(whole.inputs) && has_all(whole.targets));
  CAROUSEL_CHECK(whole.resets.empty() || has_all(whole.resets));
  Batch storage;
  const Batch& batch = SequencePart(whole, axes_.sequence, &storage);
  const int64_t N = batch.B * batch.T;
  CAROUSEL_CHECK_LE(N, max_tokens_);
  const auto copy = [&](Tensor place, const auto& values) {
    const Tensor target = place.Rows(0, static_cast<int64_t>(values.size()));
    if (!values.empty()) device.CopyToDevice(target.data, values.data(), target.num_bytes());
    return target;
  };
  LanguageModel::Input input;
  input.B = batch.B;
  input.T = batch.T;
  input.ids = copy(ids_, batch.inputs);
  if (!batch.resets.empty()) input.resets = copy(resets_, batch.resets);
  if (!batch.resets.empty() && all_resets_.defined()) input.all_resets = copy(all_resets_, whole.resets);
  const int64_t num_targets = batch.num_targets();
  if (!of_targets_.defined() || batch.lengths.empty() || 2 * num_targets >= N) {
    input.targets = copy(targets_, batch.targets);
    return input;
  }
  std::vector<int32_t> targets, of_targets, to_targets(static_cast<size_t>(N));
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    const bool any = batch.targets[i] >= 0;
    to_targets[i] = static_cast<int32_t>(any ? static_cast<int64_t>(targets.size()) : num_targets);
    if (!any) continue;
    targets.push_back(batch.targets[i]);
    of_targets.push_back(static_cast<int32_t>(i));
  }
  input.targets = copy(targets_, targets);
  input.rows = {.of_targets = copy(of_targets_, of_targets), .to_targets = copy(to_targets_, to_targets)};
  return input;
}
}  // namespace carousel
