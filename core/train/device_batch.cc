#include "core/train/device_batch.h"

namespace carousel {

void DeviceBatch::Bind(Arena& arena, int64_t max_tokens) {
  max_tokens_ = max_tokens;
  ids_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  targets_ = arena.Persistent("batch", DType::kI32, {max_tokens});
  resets_ = arena.Persistent("batch", DType::kU8, {max_tokens});
}

LanguageModel::Input DeviceBatch::Load(Device& device, const Batch& batch) const {
  CAROUSEL_CHECK(batch.B >= 1 && batch.T >= 1);
  const int64_t N = batch.B * batch.T;
  CAROUSEL_CHECK_LE(N, max_tokens_);
  const auto copy = [&](Tensor place, const void* data, size_t count) {
    CAROUSEL_CHECK_EQ(static_cast<int64_t>(count), N);
    const Tensor target = place.Rows(0, N);
    device.CopyToDevice(target.data, data, target.num_bytes());
    return target;
  };
  LanguageModel::Input input;
  input.B = batch.B;
  input.T = batch.T;
  input.ids = copy(ids_, batch.inputs.data(), batch.inputs.size());
  input.targets = copy(targets_, batch.targets.data(), batch.targets.size());
  if (!batch.resets.empty()) input.resets = copy(resets_, batch.resets.data(), batch.resets.size());
  return input;
}
}  // namespace carousel
