// The config of an xLSTM directory of the large family, in two dialects, from and to a ModelSpec.
//
//   kTransformers  Hugging Face xLSTMConfig (model_type "xlstm"): hidden_size, num_hidden_layers, ... and its
//                  defaults; config.json
//   kReference     xLSTMLargeConfig of the package `xlstm`: embedding_dim, num_blocks, ... and its defaults;
//                  config.yaml
//
// Both name almost everything alike. A field that changes the result and that this program cannot honour is
// an error that names it; so is a field it does not know.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/dtype.h"
#include "core/model/spec.h"

namespace carousel {

enum class ConfigDialect : uint8_t { kTransformers, kReference };

struct SpecialTokens {
  int64_t bos = 256;                 // put before every text; negative: none
  std::vector<int64_t> eos = {256};  // any of them ends a text
  int64_t pad = 257;                 // negative: none
};

struct ModelFileConfig {
  ModelSpec spec;
  bool fused_weights = false;       // weight_mode "fused": q, k, v, o are one tensor, and so on (hf_names.h)
  bool force_float32_norms = true;  // norm_reduction_force_float32; only bf16 arithmetic can tell
  SpecialTokens tokens;             // kTransformers only
};

// The feed-forward width as the PyTorch implementations compute it from the two config fields:
// int(((embedding_dim * factor + multiple - 1) // multiple) * multiple), in doubles.
int64_t ReferenceFfnDim(int64_t embedding_dim, double factor, int64_t multiple);

// Reads a config. `name` stands for the file in messages. InvalidArgument lists every problem at once.
absl::StatusOr<ModelFileConfig> ParseModelConfig(ConfigDialect dialect, const std::string& json_text,
                                                 const std::string& name);

absl::StatusOr<ModelFileConfig> ParseModelConfigObject(ConfigDialect dialect, const nlohmann::json& object,
                                                       const std::string& name);
// The same of a config.yaml in the dialect kReference.
absl::StatusOr<ModelFileConfig> ParseReferenceYaml(const std::string& text, const std::string& name);

// OK if Transformers can represent the model exactly; otherwise FailedPrecondition naming every setting that
// it cannot.
absl::Status CheckExpressibleInTransformers(const ModelSpec& spec);

// The text of config.json. `dtype` is that of the stored weights (kF32 or kBF16).
// REQUIRES: CheckExpressibleInTransformers(spec).ok().
std::string TransformersConfigJson(const ModelSpec& spec, const SpecialTokens& tokens, DType dtype);
// The text of generation_config.json.
std::string TransformersGenerationConfigJson(const SpecialTokens& tokens);

// OK if xLSTMLarge of the package xlstm can represent the model exactly; otherwise FailedPrecondition naming
// every setting that it cannot.
absl::Status CheckExpressibleInReference(const ModelSpec& spec);
// The text of config.yaml: every field of xLSTMLargeConfig, with kernels that every installation has.
// REQUIRES: CheckExpressibleInReference(spec).ok().
std::string ReferenceConfigYaml(const ModelSpec& spec);

// The version these files are written for and were checked with; config.json names it.
constexpr const char* kTransformersVersion = "5.23.0";
// The first version that computes prompts of one chunk (64 tokens) or more without the package `xlstm`.
constexpr const char* kMinTransformersVersion = "5.2.0";
}  // namespace carousel
