// How an export or an import ends: what was written is read back, and its digests (digest.h), which do not
// depend on names and layouts, are compared with those of what it was made from. Reads in pieces: memory does
// not grow with the model.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "checkpoints/weight_source.h"
#include "core/base/dtype.h"

namespace carousel {

struct DigestComparison {
  const WeightSource* expected = nullptr;
  std::string expected_name;  // in messages
  const WeightSource* written = nullptr;
  std::string written_name;
  DType dtype = DType::kF32;  // what `expected` was converted to when it was written
  // Parameters of either side that are not compared.
  std::set<std::string> skip = {};
  // Parameters of `written` that are another one of `expected` once more.
  std::map<std::string, std::string> copies = {};
  // Called with the bytes of `written` that have been compared; may be null.
  std::function<void(int64_t bytes)> progress = {};
};

// Compares every parameter of `written`, read to its last bit, with that of `expected` converted to `dtype`,
// and returns how many there are. The digest of `expected` is the one it was saved with, if it states one
// (WeightSource::StatedDigest), else that of its values; values that are read although a digest is stated
// (because of a conversion) are checked against it. DataLoss names every parameter that differs or that only
// one side has; other errors are those of reading.
absl::StatusOr<int64_t> CompareDigests(const DigestComparison& comparison);
}  // namespace carousel
