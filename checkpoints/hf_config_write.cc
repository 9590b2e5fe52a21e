// The writing half of hf_config.h.
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/yaml_fields.h"
#include "core/base/check.h"

namespace carousel {
namespace {
using OrderedJson = nlohmann::ordered_json;

// Transformers rounds the widths of its cache up to this, but not those of the layer.
constexpr int64_t kCacheMultiple = 64;

// The smallest factor f >= width / dim, within a few ulps, with `computes(f)` == width; NaN if there is none.
template <class Fn>
double FactorFor(int64_t width, int64_t dim, const Fn& computes) {
  double factor = static_cast<double>(width) / static_cast<double>(dim);
  for (int i = 0; i < 8; ++i, factor = std::nextafter(factor, HUGE_VAL)) {
    if (computes(factor) == width) return factor;
  }
  return std::nan("");
}

double ProjectionFactor(int64_t width, int64_t dim) {
  return FactorFor(width, dim, [&](double f) { return static_cast<int64_t>(static_cast<double>(dim) * f); });
}

struct FfnFields {
  double factor = 0;
  int64_t multiple = 0;
};
// 64 as published configs where it divides the width, else the largest power of two that does.
FfnFields FfnFieldsOf(const ModelSpec& spec) {
  FfnFields fields;
  fields.multiple = 64;
  while (spec.ffn_dim % fields.multiple != 0) fields.multiple /= 2;
  fields.factor = FactorFor(spec.ffn_dim, spec.embedding_dim, [&](double f) {
    return ReferenceFfnDim(spec.embedding_dim, f, fields.multiple);
  });
  return fields;
}

// No number gives one of the widths; empty if all can be had.
std::vector<std::string> WidthProblems(const ModelSpec& spec) {
  std::vector<std::string> problems;
  if (!std::isfinite(FfnFieldsOf(spec).factor)) {
    problems.push_back(absl::StrCat("ffn_dim = ", spec.ffn_dim, ": no ffn_proj_factor gives this width"));
  }
  if (!std::isfinite(ProjectionFactor(spec.qk_dim, spec.embedding_dim)) ||
      !std::isfinite(ProjectionFactor(spec.v_dim, spec.embedding_dim))) {
    problems.push_back("qk_dim_factor or v_dim_factor: no number gives this width");
  }
  return problems;
}

OrderedJson IdOrNull(int64_t id) { return id < 0 ? OrderedJson(nullptr) : OrderedJson(id); }
OrderedJson EosJson(const SpecialTokens& tokens) {
  if (tokens.eos.empty()) return nullptr;
  return tokens.eos.size() == 1 ? OrderedJson(tokens.eos[0]) : OrderedJson(tokens.eos);
}
}  // namespace

absl::Status CheckExpressibleInTransformers(const ModelSpec& spec) {
  std::vector<std::string> problems;
  const auto require = [&](bool condition, const std::string& problem) {
    if (!condition) problems.push_back(problem);
  };
  if (spec.family != Family::kLarge || !spec.slstm_at.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("Hugging Face Transformers cannot express this model:\n  ",
                     spec.family != Family::kLarge ? "family = XLSTM_PAPER" : "slstm_at",
                     ": it has only the mLSTM blocks of XLSTM_LARGE"));
  }
  require(spec.qk_dim % kCacheMultiple == 0,
          absl::StrCat("embedding_dim * qk_dim_factor = ", spec.qk_dim,
                       " must be a multiple of 64: its cache rounds the width up, its layer does not, and "
                       "generation fails"));
  require(spec.v_dim % kCacheMultiple == 0,
          absl::StrCat("embedding_dim * v_dim_factor = ", spec.v_dim,
                       " must be a multiple of 64: its cache rounds the width up, its layer does not, and "
                       "generation fails"));
  require(spec.input_gate == InputGate::kExponential,
          "input_gate = SIGMOID: it has only the exponential input gate");
  require(spec.add_out_norm, "add_out_norm = false: it always has the final norm");
  require(spec.gate_soft_cap > 0, "gate_soft_cap = 0: it needs a soft cap on the gates");
  require(spec.logit_soft_cap > 0, "logit_soft_cap = 0: it needs a soft cap on the logits");
  for (const std::string& problem : WidthProblems(spec)) problems.push_back(problem);
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "Hugging Face Transformers cannot express this model:\n  ", absl::StrJoin(problems, "\n  ")));
}

std::string TransformersConfigJson(const ModelSpec& spec, const SpecialTokens& tokens, DType dtype) {
  CAROUSEL_CHECK(CheckExpressibleInTransformers(spec).ok());
  const char* dtype_name = dtype == DType::kBF16 ? "bfloat16" : "float32";
  const FfnFields ffn = FfnFieldsOf(spec);
  OrderedJson config;
  config["architectures"] = {"xLSTMForCausalLM"};
  config["model_type"] = "xlstm";
  // Both pairs: Transformers takes its defaults for hidden_size and num_hidden_layers if they are not given,
  // other programs read embedding_dim and num_blocks.
  config["vocab_size"] = spec.vocab_size;
  config["hidden_size"] = spec.embedding_dim;
  config["embedding_dim"] = spec.embedding_dim;
  config["num_hidden_layers"] = spec.num_blocks;
  config["num_blocks"] = spec.num_blocks;
  config["num_heads"] = spec.num_heads;
  config["head_dim"] = spec.head_dim_v();
  config["qk_dim_factor"] = ProjectionFactor(spec.qk_dim, spec.embedding_dim);
  config["v_dim_factor"] = ProjectionFactor(spec.v_dim, spec.embedding_dim);
  config["ffn_proj_factor"] = ffn.factor;
  config["ffn_round_up_to_multiple_of"] = ffn.multiple;
  config["use_bias"] = spec.use_bias;
  config["norm_eps"] = spec.norm_eps;
  config["norm_reduction_force_float32"] = true;
  config["add_out_norm"] = true;
  config["eps"] = spec.cell_eps;
  config["gate_soft_cap"] = spec.gate_soft_cap;
  config["output_logit_soft_cap"] = spec.logit_soft_cap;
  config["tie_word_embeddings"] = false;
  config["weight_mode"] = "single";
  // Kernels that every installation has.
  config["chunkwise_kernel"] = "chunkwise--native_autograd";
  config["sequence_kernel"] = "native_sequence__native";
  config["step_kernel"] = "native";
  config["mode"] = "inference";
  config["chunk_size"] = 64;
  config["return_last_states"] = true;
  config["autocast_kernel_dtype"] = "bfloat16";
  config["inference_state_dtype"] = "float32";
  config["max_inference_chunksize"] = 16384;
  config["use_cache"] = true;
  config["bos_token_id"] = IdOrNull(tokens.bos);
  config["eos_token_id"] = EosJson(tokens);
  config["pad_token_id"] = IdOrNull(tokens.pad);
  config["torch_dtype"] = dtype_name;  // Transformers 4
  config["dtype"] = dtype_name;        // Transformers 5
  config["transformers_version"] = kTransformersVersion;
  return config.dump(2) + "\n";
}

std::string TransformersGenerationConfigJson(const SpecialTokens& tokens) {
  OrderedJson config;
  config["bos_token_id"] = IdOrNull(tokens.bos);
  config["eos_token_id"] = EosJson(tokens);
  config["pad_token_id"] = IdOrNull(tokens.pad);
  config["transformers_version"] = kTransformersVersion;
  return config.dump(2) + "\n";
}

absl::Status CheckExpressibleInReference(const ModelSpec& spec) {
  std::vector<std::string> problems;
  if (spec.family != Family::kLarge) {
    problems.push_back("family = XLSTM_PAPER: --format xlstm writes it for xLSTMLMModel of the same package");
  } else if (!spec.slstm_at.empty()) {
    problems.push_back("slstm_at: it has only the mLSTM blocks of XLSTM_LARGE");
  } else {
    if (spec.input_gate != InputGate::kExponential) {
      problems.push_back("input_gate = SIGMOID: it has only the exponential input gate");
    }
    for (const std::string& problem : WidthProblems(spec)) problems.push_back(problem);
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "xLSTMLarge of the package xlstm cannot express this model:\n  ", absl::StrJoin(problems, "\n  ")));
}

std::string ReferenceConfigYaml(const ModelSpec& spec) {
  CAROUSEL_CHECK(CheckExpressibleInReference(spec).ok());
  const FfnFields ffn = FfnFieldsOf(spec);
  const auto cap = [](double value) { return value > 0 ? OrderedJson(value) : OrderedJson(nullptr); };
  OrderedJson config;
  config["embedding_dim"] = spec.embedding_dim;
  config["num_heads"] = spec.num_heads;
  config["num_blocks"] = spec.num_blocks;
  config["vocab_size"] = spec.vocab_size;
  config["use_bias"] = spec.use_bias;
  config["norm_eps"] = spec.norm_eps;
  config["norm_reduction_force_float32"] = true;
  config["add_out_norm"] = spec.add_out_norm;
  config["qk_dim_factor"] = ProjectionFactor(spec.qk_dim, spec.embedding_dim);
  config["v_dim_factor"] = ProjectionFactor(spec.v_dim, spec.embedding_dim);
  // The custom backward passes of the package hold the normaliser constant, its autograd does not.
  config["chunkwise_kernel"] = spec.normalizer_gradient == NormalizerGradient::kExact
                                   ? "chunkwise--native_autograd"
                                   : "chunkwise--native_custbw";
  config["sequence_kernel"] = "native_sequence__native";
  config["step_kernel"] = "native";
  config["mode"] = "inference";
  config["chunk_size"] = 64;
  config["return_last_states"] = true;
  config["autocast_kernel_dtype"] = "bfloat16";
  config["eps"] = spec.cell_eps;
  config["inference_state_dtype"] = "float32";
  config["ffn_proj_factor"] = ffn.factor;
  config["ffn_round_up_to_multiple_of"] = ffn.multiple;
  config["gate_soft_cap"] = cap(spec.gate_soft_cap);
  config["output_logit_soft_cap"] = cap(spec.logit_soft_cap);
  config["weight_mode"] = "single";
  return YamlText(config);
}
}  // namespace carousel
