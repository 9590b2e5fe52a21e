// The tensors of a published model's directory: model.safetensors, or shards with
// model.safetensors.index.json. Weights may be F32, BF16, F16 or F64.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/safetensors.h"

namespace carousel {

class ModelFiles {
 public:
  // Reads the headers of all files; no tensor data. NotFound if there are none, FailedPrecondition if a
  // tensor is in two of them or has a dtype that weights do not have; other errors name the file that is not
  // valid.
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& dir);

  struct Tensor {
    const SafetensorsEntry* entry = nullptr;
    const void* data = nullptr;  // its bytes, mapped; not necessarily aligned
    int64_t elem_bytes() const { return BitsOf(entry->dtype) / 8; }
  };
  // Null if there is none; valid as long as this object.
  const Tensor* Find(const std::string& name) const;
  std::vector<NamedShape> shapes() const;  // of all tensors
  // All values of a metadata key, over the files.
  std::set<std::string> Metadata(const std::string& key) const;

 private:
  absl::Status OpenShards(const std::string& dir, const std::string& index_text);
  absl::Status Index(const std::string& dir);

  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, Tensor> tensors_;
};

// Converts `count` stored elements, one of the four dtypes above, to kF32, kBF16 or kF64.
void ConvertStored(DType to, void* out, SafetensorsDType from, const void* in, int64_t count);
}  // namespace carousel
