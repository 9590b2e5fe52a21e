// Writes a directory for `xLSTMLMModel` of the Python package `xlstm`: config.json with the fields of its
// config, its state dict in model.safetensors or shards with model.safetensors.index.json, and the files
// given by the caller (tokenizer, model card). The metadata of every safetensors file says
//   format "pt",  family "xlstm_v1",  slstm_backend "vanilla" | "cuda" (only with sLSTM blocks).
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/model_directory.h"
#include "checkpoints/weight_source.h"
#include "checkpoints/xlstm_package_config.h"

namespace carousel {

struct PackageExportOptions {
  std::string out_dir;
  DType dtype = DType::kF32;                // kF32 or kBF16
  int64_t max_shard_bytes = 5'000'000'000;  // of tensor data; a larger tensor gets its own shard
  bool overwrite = false;                   // replace out_dir if it exists
  std::string source_name = "the model";    // of the weights, in messages
  std::vector<ModelDirectoryFile> extra_files = {};
  ExportProgress progress = {};
  // The last word on the directory, which is complete and has another name yet; may be null.
  std::function<absl::Status(const std::string& dir)> accept = {};
};

// Writes out_dir as WriteModelDirectory does, with its errors, and compares the digests of what PackageModel
// reads from it with those of `weights` before it gets its name. config.backend chooses the layout of sLSTM
// weights. FailedPrecondition if the package cannot express the model. Tensors that are parameters as they
// are pass through memory in pieces of at most 16 MiB, the recurrent weights of sLSTM one head at a time.
absl::StatusOr<ModelDirectoryResult> ExportPackage(const PackageConfig& config, const WeightSource& weights,
                                                   const PackageExportOptions& options, FileSystem& files);
}  // namespace carousel
