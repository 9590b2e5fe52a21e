// WeightSource: where the weights of a model come from, whatever the format: a checkpoint of ours, a Hugging
// Face directory. Parameters are asked for by their names (core/model/param_store.h), in pieces, so that
// nothing larger than one piece need exist.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/base/dtype.h"
#include "core/model/param_store.h"
#include "core/train/state_visitor.h"

namespace carousel {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Every parameter that can be read: name and shape are set, the rest is not.
  virtual const std::vector<Param>& params() const = 0;
  // Elements [begin, begin + count) of parameter `name`, row-major, converted to `dtype` (kF32, kBF16, kF64;
  // round to nearest even), into host memory. An error names the file and the tensor.
  virtual absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                            void* data) const = 0;
};

// Fills every kWeight slice from `source` and zeroes the others (Adam moments): how a run starts from given
// weights. Every parameter of the slices must exist there with the same shape; all that do not are named.
absl::Status FillWeights(const WeightSource& source, const std::vector<StateSlice>& slices);

// Converts `count` elements between float dtypes (kF32, kBF16, kF64). Narrowing rounds to nearest even;
// f64 -> bf16 goes through f32.
void ConvertElems(DType to, void* out, DType from, const void* in, int64_t count);
}  // namespace carousel
