// The tensors of a published model's directory: model.safetensors, or shards with
// model.safetensors.index.json. Weights may be F32, BF16, F16 or F64. They are read when they are asked for:
// nothing is mapped or kept, so that memory does not grow with the model.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/safetensors.h"
#include "core/base/dtype.h"

namespace carousel {

// How a directory's shards are named, and what is read if there is no index:
//   kNumberedFromOne   model-00001-of-00003.safetensors; without an index there are no shards
//   kNumberedFromZero  model_0.safetensors, model_1.safetensors, ... as long as there is a next one; one that
//                      stands behind a gap is an error, for the package xlstm would not see it
enum class ShardNames : uint8_t { kNumberedFromOne, kNumberedFromZero };

class ModelFiles {
 public:
  // Reads the headers of all files; no tensor data. NotFound if there are none, FailedPrecondition if a
  // tensor is in two of them or has a dtype that weights do not have; other errors name the file that is not
  // valid. `files` must outlive the result.
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& dir, ShardNames names,
                                                          FileSystem& files);

  struct Tensor {
    const SafetensorsEntry* entry = nullptr;
    size_t file = 0;  // number of its file
    int64_t elem_bytes() const { return BitsOf(entry->dtype) / 8; }
  };
  // Null if there is none; valid as long as this object.
  const Tensor* Find(const std::string& name) const;
  // Elements [begin, begin + count) of the row-major tensor, as they are stored: count * elem_bytes() bytes.
  // REQUIRES: they are within the tensor, which is one of this object's.
  absl::Status ReadStored(const Tensor& tensor, int64_t begin, int64_t count, void* data) const;
  // The same, converted to kF32, kBF16 or kF64, in pieces of at most 1 MiB.
  absl::Status Read(const Tensor& tensor, int64_t begin, int64_t count, DType dtype, void* data) const;

  std::vector<NamedShape> shapes() const;  // of all tensors
  // All values of a metadata key, over the files.
  std::set<std::string> Metadata(const std::string& key) const;

 private:
  struct File {
    SafetensorsHeader header;
    std::unique_ptr<ReadableFile> bytes;
  };
  absl::Status OpenFile(const std::string& path);
  absl::Status OpenIndexed(const std::string& dir, const std::string& index_text);
  absl::Status OpenNumbered(const std::string& dir);
  absl::Status Index(const std::string& dir);

  FileSystem* file_system_ = nullptr;
  std::vector<std::unique_ptr<File>> files_;
  std::map<std::string, Tensor> tensors_;
};

// Converts `count` stored elements, one of the four dtypes above, to kF32, kBF16 or kF64.
void ConvertStored(DType to, void* out, SafetensorsDType from, const void* in, int64_t count);
}  // namespace carousel
