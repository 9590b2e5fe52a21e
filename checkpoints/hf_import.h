// Reads a Hugging Face directory: config.json and model.safetensors, or shards with
// model.safetensors.index.json. Weights may be F32, BF16, F16 or F64, separate or fused.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/weight_source.h"

namespace carousel {

class HfModel : public WeightSource {
 public:
  // Reads config.json and the headers of all files and checks every name and shape; no tensor data is read.
  // NotFound if `dir` is no such directory (has no config.json), otherwise an error that lists every problem.
  static absl::StatusOr<std::unique_ptr<HfModel>> Open(const std::string& dir);
  virtual const ModelFileConfig& config() const = 0;
};

// True if `dir` holds a config.json.
bool IsHfDirectory(const std::string& dir);
}  // namespace carousel
