// DeviceBatch: the place on the device where a micro-batch is put before the model reads it.
#pragma once
#include "core/comm/model_axes.h"
#include "core/device.h"
#include "core/model/language_model.h"
#include "core/train/batch.h"

namespace carousel {

// The tokens of `batch` that one rank of the sequence axis has: the index-th of `size` equal parts of each
// sequence; with one rank `batch` itself, else in *storage. REQUIRES: the size of the axis divides batch.T.
const Batch& SequencePart(const Batch& batch, const Axis& sequence, Batch* storage);

class DeviceBatch {
 public:
  // For at most max_tokens tokens of this rank, in sequences of any length. Category "batch".
  void Bind(Arena& arena, int64_t max_tokens, const ModelAxes& axes = {});
  // Copies this rank's tokens of the whole micro-batch `batch` (1 <= tokens <= max_tokens) and returns views
  // of them, valid until the next Load. A batch with lengths that has a target at fewer than half of its
  // tokens gets Input::rows where the tensor and the sequence axis have one rank.
  LanguageModel::Input Load(Device& device, const Batch& batch) const;

 private:
  ModelAxes axes_;
  int64_t max_tokens_ = 0;
  Tensor ids_, targets_;            // (max_tokens) i32
  Tensor resets_;                   // (max_tokens) u8
  Tensor all_resets_;               // (max_tokens * S) u8; S > 1
  Tensor of_targets_, to_targets_;  // (max_tokens) i32; undefined where they are not used
};
}  // namespace carousel
