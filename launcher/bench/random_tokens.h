// Batches for measurements: random ids below the vocabulary size; no documents.
#pragma once
#include <cstdint>

#include "core/base/random.h"
#include "core/train/batch.h"

namespace carousel {

class RandomTokens final : public BatchSource {
 public:
  RandomTokens(int64_t B, int64_t T, int64_t V) : B_(B), T_(T), V_(static_cast<uint64_t>(V)) {}
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    batch->B = B_;
    batch->T = T_;
    batch->inputs.resize(static_cast<size_t>(B_ * T_));
    batch->targets.resize(batch->inputs.size());
    batch->resets.clear();
    const uint64_t stream = StreamOf("bench tokens") + static_cast<uint64_t>(step * 4096 + micro);
    for (size_t n = 0; n < batch->inputs.size(); ++n) {
      batch->inputs[n] = static_cast<int32_t>(RandomUint64(0, stream, 2 * n) % V_);
      batch->targets[n] = static_cast<int32_t>(RandomUint64(0, stream, 2 * n + 1) % V_);
    }
  }

 private:
  int64_t B_, T_;
  uint64_t V_;
};
}  // namespace carousel
