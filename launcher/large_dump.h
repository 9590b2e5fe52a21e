// What the dumps of whole models (family xlstm_large) have in common: the config and the parameters.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/hf_names.h"
#include "core/model/param_store.h"
#include "launcher/reference_dump.h"
#include "launcher/verify.h"

namespace carousel {

struct LargeDump {
  ModelFileConfig config;
  std::vector<Param> params;        // as LanguageModel registers them
  std::vector<FileTensor> tensors;  // as the reference names them, fused or not
  std::string description;          // "2 blocks of 64, 4 heads, vocabulary 96"
};

// Reads the metadata's config. options.chunk_length replaces its chunk length if it is > 0.
absl::StatusOr<LargeDump> ReadLargeDump(const ReferenceDump& dump, const VerifyOptions& options);

// The dump must hold exactly: every tensor of the model under each of `prefixes` ("param."), and `others`
// with any shape.
absl::Status CheckLargeDumpTensors(const ReferenceDump& dump, const LargeDump& large,
                                   const std::vector<std::string>& prefixes,
                                   const std::vector<std::string>& others);

// Sets every parameter: set(index, values) from the tensors under `prefix`.
absl::Status ForEachParamValue(const ReferenceDump& dump, const LargeDump& large, const std::string& prefix,
                               const std::function<void(int, const std::vector<double>&)>& set);

// The values of one tensor of the reference, concatenated from get(index) of its parameters.
std::vector<double> TensorValues(const LargeDump& large, const FileTensor& tensor,
                                 const std::function<std::vector<double>(int)>& get);
}  // namespace carousel
