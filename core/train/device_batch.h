// DeviceBatch: the place on the device where a micro-batch is put before the model reads it.
#pragma once
#include "core/device.h"
#include "core/model/language_model.h"
#include "core/train/batch.h"

namespace carousel {

class DeviceBatch {
 public:
  // For at most B sequences of T tokens. Category "batch".
  void Bind(Arena& arena, int64_t B, int64_t T);
  // Copies `batch` (1 <= batch.B <= B, batch.T <= T) and returns views of it, valid until the next Load.
  LanguageModel::Input Load(Device& device, const Batch& batch) const;

 private:
  int64_t B_ = 0, T_ = 0;
  Tensor ids_, targets_;  // (B*T) i32
  Tensor resets_;         // (B*T) u8
};
}  // namespace carousel
