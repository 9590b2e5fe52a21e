// Writes a directory of the large family, with the files given by the caller (tokenizer, model card):
//   kTransformers  for Hugging Face Transformers: config.json, generation_config.json, model.safetensors or
//                  model-00001-of-0000N.safetensors with model.safetensors.index.json
//   kReference     for load_from_pretrained of xLSTMLarge in the package xlstm: config.yaml,
//                  model.safetensors or model_0.safetensors, model_1.safetensors, ... with an index as above,
//                  which that function does not read
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/model_directory.h"
#include "checkpoints/weight_source.h"

namespace carousel {

struct HfExportOptions {
  ConfigDialect dialect = ConfigDialect::kTransformers;
  std::string out_dir;
  std::string source_name = "the model";    // of the weights, in messages
  DType dtype = DType::kF32;                // kF32 or kBF16
  int64_t max_shard_bytes = 5'000'000'000;  // of tensor data; a larger tensor gets its own shard
  bool overwrite = false;                   // replace out_dir if it exists
  SpecialTokens tokens = {};                // kTransformers only
  std::vector<ModelDirectoryFile> extra_files = {};
  ExportProgress progress = {};
  // The last word on the directory, which is complete and has another name yet; may be null.
  std::function<absl::Status(const std::string& dir)> accept = {};
};

// Writes out_dir as WriteModelDirectory does, with its errors, and compares the digests of what HfModel reads
// from it with those of `weights` before it gets its name. Tensors pass through memory in pieces of at most
// 16 MiB, whatever their size. FailedPrecondition if the other program cannot express the model.
absl::StatusOr<ModelDirectoryResult> ExportHf(const ModelSpec& spec, const WeightSource& weights,
                                              const HfExportOptions& options, FileSystem& files);
}  // namespace carousel
