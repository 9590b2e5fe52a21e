// Writing the directory of a published model, whatever its format: model.safetensors, or shards with
// model.safetensors.index.json, and files of text beside them. It appears when it is complete and has been
// read back.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/model_files.h"
#include "core/base/dtype.h"

namespace carousel {

struct ModelDirectoryFile {
  std::string name, content;  // a plain file name
};

// Called with the bytes written and read back so far and how many there will be, at least once per 16 MiB.
using ExportProgress = std::function<void(int64_t done, int64_t total)>;

// The next `count` elements of a tensor, in order.
using AppendElems = std::function<absl::Status(const void* values, int64_t count)>;

struct ModelDirectory {
  std::string out_dir;
  bool overwrite = false;  // replace out_dir if it is empty or such a directory (has a config.json or .yaml)
  DType dtype = DType::kF32;
  ShardNames shard_names = ShardNames::kNumberedFromOne;
  int64_t max_shard_bytes = 0;                  // of tensor data; a larger tensor gets its own shard
  std::map<std::string, std::string> metadata;  // of every safetensors file
  std::vector<NamedShape> tensors;
  // Gives all elements of tensor `index` in `dtype`.
  std::function<absl::Status(size_t index, const AppendElems& append)> write;
  std::vector<ModelDirectoryFile> files;  // with a config.json or config.yaml
  // Reads the directory, which is complete and has another name yet, and compares it with what should be in
  // it: how many tensors it compared. progress: bytes read back.
  std::function<absl::StatusOr<int64_t>(const std::string& dir, const std::function<void(int64_t)>& progress)>
      check;
  ExportProgress progress;  // may be null
};

struct ModelDirectoryResult {
  int64_t total_bytes = 0;   // of tensor data
  int64_t num_compared = 0;  // what `check` returned
  std::vector<std::string> files;
};

// Writes to a temporary directory beside out_dir, syncs and checks it, then renames it: out_dir is complete
// or absent (an old one that is replaced is moved aside first, moved back if that fails, and removed last).
// AlreadyExists if out_dir exists and may not be overwritten, ResourceExhausted if the disk is too full,
// InvalidArgument if the name or max_shard_bytes is not possible; or the error of `write` or `check`.
absl::StatusOr<ModelDirectoryResult> WriteModelDirectory(const ModelDirectory& directory, FileSystem& files);
}  // namespace carousel
