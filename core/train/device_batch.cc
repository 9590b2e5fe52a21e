#include "core/train/device_batch.h"

namespace carousel {

void DeviceBatch::Bind(Arena& arena, int64_t B, int64_t T) {
  B_ = B;
  T_ = T;
  ids_ = arena.Persistent("batch", DType::kI32, {B * T});
  targets_ = arena.Persistent("batch", DType::kI32, {B * T});
  resets_ = arena.Persistent("batch", DType::kU8, {B * T});
}

LanguageModel::Input DeviceBatch::Load(Device& device, const Batch& batch) const {
  CAROUSEL_CHECK(batch.B >= 1 && batch.B <= B_);
  CAROUSEL_CHECK(batch.T >= 1 && batch.T <= T_);
  const int64_t N = batch.B * batch.T;
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
