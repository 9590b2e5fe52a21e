// What a checkpoint sees of a training run: a list of slices of named global tensors. The list is the same
// code for saving and loading.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace carousel {

enum class StateKind : uint8_t { kWeight, kAdamM, kAdamV };

// Elements [begin, begin + count) of the row-major global tensor `name` of `shape`, in host-accessible memory
// at `data`. Together the slices of all ranks tile every tensor exactly once.
struct StateSlice {
  std::string name;
  StateKind kind = StateKind::kWeight;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0, count = 0;
  void* data = nullptr;
};
}  // namespace carousel
