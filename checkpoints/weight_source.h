// WeightSource: where the weights of a model come from, whatever the format: a checkpoint of ours, a Hugging
// Face directory. Parameters are asked for by their names (core/model/param_store.h), in pieces, so that
// nothing larger than one piece need exist.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/base/dtype.h"
#include "core/model/param_store.h"
#include "core/train/state_visitor.h"

namespace carousel {

// How many elements are read, converted and written at once where a whole model passes through: 16 MiB of
// f32, a block of a checkpoint.
constexpr int64_t kWeightPieceElems = int64_t{4} << 20;

// What a source says of a parameter: how it stores it and the digest (digest.h) it had when it was saved.
struct StatedDigest {
  DType dtype = DType::kF32;
  uint64_t digest = 0;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Every parameter that can be read: name and shape are set, the rest is not.
  virtual const std::vector<Param>& params() const = 0;
  // Elements [begin, begin + count) of parameter `name`, row-major, converted to `dtype` (kF32, kBF16, kF64;
  // round to nearest even), into host memory. An error names the file and the tensor.
  virtual absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                            void* data) const = 0;
  // Nothing if the format has no digests.
  virtual std::optional<StatedDigest> Stated(const std::string& name) const {
    static_cast<void>(name);
    return std::nullopt;
  }
};

// Fills every kWeight slice from `source` and zeroes the others (Adam moments): how a run starts from given
// weights. Every parameter of the slices must exist there with the same shape; all that do not are named.
absl::Status FillWeights(const WeightSource& source, const std::vector<StateSlice>& slices);

// Converts `count` elements between float dtypes (kF32, kBF16, kF64). Narrowing rounds to nearest even;
// f64 -> bf16 goes through f32.
void ConvertElems(DType to, void* out, DType from, const void* in, int64_t count);
}  // namespace carousel
