// One micro-batch of token ids on the host: what a loader gives and a model reads.
#pragma once
#include <cstdint>
#include <vector>

namespace carousel {

struct Batch {
  int64_t B = 0, T = 0;
  std::vector<int32_t> inputs;   // (B*T)
  std::vector<int32_t> targets;  // (B*T), the inputs shifted by one; negative = no target here
  std::vector<uint8_t> resets;   // (B*T): 1 = a document starts at this input; empty = no resets
  // (B*T) u16: the length of the problem that the target is an answer of, 0 where it is none; empty = none
  // is.
  std::vector<uint16_t> lengths;
  int64_t num_targets() const {
    int64_t n = 0;
    for (const int32_t t : targets) n += t >= 0;
    return n;
  }
};

// Where micro-batches come from. Pure: the same index gives the same batch on every rank, whatever the world
// size.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Micro-batch `micro` (0 <= micro < micro batches per step) of global step `step` (from 0).
  virtual void Get(int64_t step, int64_t micro, Batch* batch) = 0;
};
}  // namespace carousel
