#include "core/train/device_batch.h"

#include <vector>

namespace carousel {

void DeviceBatch::Bind(Arena& arena, int64_t max_tokens) {
  max_tokens_ = max_tokens;
  ids_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  targets_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  resets_ = arena.Persistent("batch", DType::kU8, {max_tokens});
  of_targets_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  to_targets_ = arena.Persistent("batch", DType::kI32, {max_tokens});
}

LanguageModel::Input DeviceBatch::Load(Device& device, const Batch& batch) const {
  CAROUSEL_CHECK(batch.B >= 1 && batch.T >= 1);
  const int64_t N = batch.B * batch.T;
  CAROUSEL_CHECK_LE(N, max_tokens_);
  CAROUSEL_CHECK(static_cast<int64_t>(batch.inputs.size()) == N &&
                 static_cast<int64_t>(batch.targets.size()) == N);
  CAROUSEL_CHECK(batch.resets.empty() || static_cast<int64_t>(batch.resets.size()) == N);
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
  const int64_t num_targets = batch.num_targets();
  if (batch.lengths.empty() || 2 * num_targets >= N) {
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
