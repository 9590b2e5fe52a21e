// DeviceBatch: the place on the device where a micro-batch is put before the model reads it.
#pragma once
#include "core/device.h"
#include "core/model/language_model.h"
#include "core/train/batch.h"

namespace carousel {

class DeviceBatch {
 public:
  // For at most max_tokens tokens, in sequences of any length. Category "batch".
  void Bind(Arena& arena, int64_t max_tokens);
  // Copies `batch` (1 <= batch.B * batch.T <= max_tokens) and returns views of it, valid until the next Load.
  // A batch with lengths that has a target at fewer than half of its tokens gets Input::rows.
  LanguageModel::Input Load(Device& device, const Batch& batch) const;

 private:
  int64_t max_tokens_ = 0;
  Tensor ids_, targets_;            // (max_tokens) i32
  Tensor resets_;                   // (max_tokens) u8
  Tensor of_targets_, to_targets_;  // (max_tokens) i32
};
}  // namespace carousel
