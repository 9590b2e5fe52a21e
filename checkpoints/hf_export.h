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
#include "checkpoints/weight_source.h"

namespace carousel {

struct HfExportOptions {
  std::string out_dir;
  DType dtype = DType::kF32;                // kF32 or kBF16
  int64_t max_shard_bytes = 5'000'000'000;  // of tensor data; a larger tensor gets its own shard
  bool overwrite = false;                   // replace out_dir if it exists
  SpecialTokens tokens = {};
  struct File {
    std::string name, content;
  };
  std::vector<File> extra_files = {};  // plain file names
};

struct HfExportResult {
  int64_t total_bytes = 0;  // of tensor data
  std::vector<std::string> files;
};

// Writes to a temporary directory beside out_dir, syncs it, then renames it: out_dir is complete or absent
// (an old one that is replaced is moved aside first and removed last). Tensors pass through memory in pieces
// of at most a few MiB. FailedPrecondition if Transformers cannot express the model, AlreadyExists if out_dir
// exists and may not be overwritten: also with `overwrite` only an empty or a Hugging Face directory is.
absl::StatusOr<HfExportResult> ExportHf(const ModelSpec& spec, const WeightSource& weights,
                                        const HfExportOptions& options, FileSystem& files);
}  // namespace carousel
