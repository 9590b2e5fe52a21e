// Writes a directory that Hugging Face Transformers loads: config.json, generation_config.json,
// model.safetensors or shards with model.safetensors.index.json, and the files given by the caller
// (tokenizer, model card).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/model_directory.h"
#include "checkpoints/weight_source.h"

namespace carousel {

struct HfExportOptions {
  std::string out_dir;
  DType dtype = DType::kF32;                // kF32 or kBF16
  int64_t max_shard_bytes = 5'000'000'000;  // of tensor data; a larger tensor gets its own shard
  bool overwrite = false;                   // replace out_dir if it exists
  SpecialTokens tokens = {};
  std::vector<ModelDirectoryFile> extra_files = {};
};

// Writes out_dir as WriteModelDirectory does, with its errors. Tensors pass through memory in pieces of at
// most a few MiB. FailedPrecondition if Transformers cannot express the model.
absl::StatusOr<ModelDirectoryResult> ExportHf(const ModelSpec& spec, const WeightSource& weights,
                                              const HfExportOptions& options, FileSystem& files);
}  // namespace carousel
