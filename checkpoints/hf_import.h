// Reads a directory of the large family, Hugging Face's or NX-AI's:
//   kTransformers  config.json; model.safetensors, or model-00001-of-0000N.safetensors and an index
//   kReference     config.yaml; model.safetensors, or model_0.safetensors, model_1.safetensors, ...
// Weights may be F32, BF16, F16 or F64, separate or fused.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/weight_source.h"

namespace carousel {

class HfModel : public WeightSource {
 public:
  // Reads the config and the headers of all files and checks every name and shape; no tensor data is read.
  // NotFound if `dir` has no such config, otherwise an error that lists every problem. `files` (null: the
  // real ones) must outlive the result.
  static absl::StatusOr<std::unique_ptr<HfModel>> Open(const std::string& dir, FileSystem* files = nullptr,
                                                       ConfigDialect dialect = ConfigDialect::kTransformers);
  virtual const ModelFileConfig& config() const = 0;
};

// True if `dir` holds a config.json.
bool IsHfDirectory(const std::string& dir);
// True if `dir` holds a config.yaml and no config.json.
bool IsNxaiDirectory(const std::string& dir);
}  // namespace carousel
