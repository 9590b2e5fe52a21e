// Writing the directory of a published model, whatever its format: model.safetensors, or shards with
// model.safetensors.index.json, and files of text beside them. It appears when it is complete.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "core/base/dtype.h"

namespace carousel {

struct ModelDirectoryFile {
  std::string name, content;  // a plain file name
};

// The next `count` elements of a tensor, in order.
using AppendElems = std::function<absl::Status(const void* values, int64_t count)>;

struct ModelDirectory {
  std::string out_dir;
  bool overwrite = false;  // replace out_dir if it is empty or such a directory (has a config.json)
  DType dtype = DType::kF32;
  int64_t max_shard_bytes = 0;                  // of tensor data; a larger tensor gets its own shard
  std::map<std::string, std::string> metadata;  // of every safetensors file
  std::vector<NamedShape> tensors;
  // Gives all elements of tensor `index` in `dtype`.
  std::function<absl::Status(size_t index, const AppendElems& append)> write;
  std::vector<ModelDirectoryFile> files;  // with a config.json
};

struct ModelDirectoryResult {
  int64_t total_bytes = 0;  // of tensor data
  std::vector<std::string> files;
};

// Writes to a temporary directory beside out_dir, syncs it, then renames it: out_dir is complete or absent
// (an old one that is replaced is moved aside first and removed last). AlreadyExists if out_dir exists and
// may not be overwritten, ResourceExhausted if the disk is too full, InvalidArgument if the name or
// max_shard_bytes is not possible; or the error of `write`.
absl::StatusOr<ModelDirectoryResult> WriteModelDirectory(const ModelDirectory& directory, FileSystem& files);
}  // namespace carousel
