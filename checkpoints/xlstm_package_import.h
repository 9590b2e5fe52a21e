// Reads the directory of an `xLSTMLMModel` (Python package `xlstm`): config.json, or else config.yaml, with
// the fields of its config (xlstm_package_config.h) and its state dict in model.safetensors, or shards with
// model.safetensors.index.json. Weights may be F32, BF16, F16 or F64.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/weight_source.h"
#include "checkpoints/xlstm_package_config.h"

namespace carousel {

class PackageModel : public WeightSource {
 public:
  // Reads the config and the headers of all files and checks every name and shape. The layout of sLSTM
  // weights is the one that their shapes have, whatever backend the config names; metadata "slstm_backend"
  // that says otherwise is an error, for then the order of the biases is not known. With tied embeddings a
  // head in the file must be equal to the embedding. Errors list every problem. `files` (null: the real ones)
  // must outlive the result.
  static absl::StatusOr<std::unique_ptr<PackageModel>> Open(const std::string& dir,
                                                            FileSystem* files = nullptr);
  // `backend` is that of the stored weights.
  virtual const PackageConfig& config() const = 0;
};

// True if `dir` holds such a config (IsPackageConfig).
bool IsPackageDirectory(const std::string& dir);
}  // namespace carousel
