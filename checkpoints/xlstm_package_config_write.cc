// The writing half of xlstm_package_config.h.
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/xlstm_package_config.h"
#include "core/base/check.h"

namespace carousel {
namespace {
using OrderedJson = nlohmann::ordered_json;

struct WidthFields {
  double factor = 0;
  int64_t multiple = 64;
};

// Fields from which the package computes `width`: its default factor if that will do. None if there are none.
std::optional<WidthFields> WidthFieldsOf(int64_t width, int64_t embedding_dim, double default_factor) {
  const double D = static_cast<double>(embedding_dim);
  const auto makes = [&](const WidthFields& fields) {
    const double m = static_cast<double>(fields.multiple);
    return static_cast<int64_t>(std::ceil(fields.factor * D / m) * m) == width;
  };
  WidthFields fields{.factor = default_factor};
  if (makes(fields)) return fields;
  // The largest power of two up to 64 that divides it; then a factor a few ulps around the quotient.
  while (width % fields.multiple != 0) fields.multiple /= 2;
  fields.factor = static_cast<double>(width) / D;
  for (int i = 0; i < 8; ++i, fields.factor = std::nextafter(fields.factor, 0.0)) {
    if (makes(fields)) return fields;
  }
  return std::nullopt;
}

OrderedJson WidthJson(int64_t width, int64_t embedding_dim, double default_factor) {
  const std::optional<WidthFields> fields = WidthFieldsOf(width, embedding_dim, default_factor);
  CAROUSEL_CHECK(fields.has_value());
  OrderedJson json;
  json["proj_factor"] = fields->factor;
  json["round_proj_up_dim_up"] = true;
  json["round_proj_up_to_multiple_of"] = fields->multiple;
  return json;
}

bool HasMlstm(const ModelSpec& spec) { return static_cast<int64_t>(spec.slstm_at.size()) < spec.num_blocks; }

// The package's type for this field has no "zeros"; a loaded model is not initialised.
const char* BiasInitName(SlstmBiasInit init) {
  switch (init) {
    case SlstmBiasInit::kSmall:
    case SlstmBiasInit::kZero:
      return "small_init";
    case SlstmBiasInit::kStandard:
      return "standard";
    case SlstmBiasInit::kPowerLaw:
      return "powerlaw_blockdependent";
  }
  CheckFailed(__FILE__, __LINE__, "a SlstmBiasInit that is none");
}

OrderedJson MlstmBlockJson(const ModelSpec& spec) {
  OrderedJson layer = WidthJson(spec.qk_dim, spec.embedding_dim, kPackageProjFactor);
  layer["conv1d_kernel_size"] = spec.conv_kernel;
  layer["qkv_proj_blocksize"] = spec.qkv_block_size;
  layer["num_heads"] = spec.num_heads;
  return {{"mlstm", layer}};
}

OrderedJson SlstmBlockJson(const PackageConfig& config) {
  const ModelSpec& spec = config.spec;
  OrderedJson layer;
  layer["num_heads"] = spec.slstm_num_heads;
  layer["conv1d_kernel_size"] = spec.slstm_conv_kernel;
  layer["group_norm_weight"] = spec.slstm_norm_weight;
  layer["backend"] = NameOf(config.backend);
  layer["function"] = "slstm";
  layer["bias_init"] = BiasInitName(spec.slstm_bias_init);
  layer["recurrent_weight_init"] =
      spec.slstm_recurrent_init == RecurrentInit::kStandard ? "standard" : "zeros";
  layer["gradient_recurrent_cut"] = spec.slstm_gradient_cut;
  // Below 1 the backend cuda would clip the cell's outputs too.
  layer["gradient_recurrent_clipval"] =
      spec.slstm_gradient_clip >= 1 ? OrderedJson(spec.slstm_gradient_clip) : OrderedJson(nullptr);
  layer["dtype"] = "float32";  // the default, bfloat16, rounds the states of the backend cuda in every step
  OrderedJson block;
  block["slstm"] = layer;
  if (spec.ffn_dim == 0) {
    block["feedforward"] = nullptr;
    return block;
  }
  OrderedJson feed_forward = WidthJson(spec.ffn_dim, spec.embedding_dim, kPackageFfnFactor);
  feed_forward["act_fn"] = "gelu";
  feed_forward["dropout"] = spec.ffn_dropout;
  feed_forward["bias"] = spec.ffn_bias;
  feed_forward["ff_type"] = "ffn_gated";
  block["feedforward"] = feed_forward;
  return block;
}
}  // namespace

absl::Status CheckExpressibleInPackage(const ModelSpec& spec) {
  std::vector<std::string> problems;
  const auto require = [&](bool condition, const std::string& problem) {
    if (!condition) problems.push_back(problem);
  };
  if (spec.family != Family::kPaper) {
    problems.push_back(
        "family = XLSTM_LARGE: xLSTMLMModel has the blocks of the paper family only; --format nxai writes it "
        "for "
        "xLSTMLarge of the same package");
  } else {
    require(spec.norm_eps == kPackageNormEps,
            absl::StrCat("norm_eps = ", spec.norm_eps, ": it is ", kPackageNormEps, " there"));
    require(spec.logit_soft_cap <= 0, "logit_soft_cap: it has no soft cap on the logits");
    if (HasMlstm(spec)) {
      require(spec.cell_eps == kPackageCellEps,
              absl::StrCat("cell_eps = ", spec.cell_eps, ": it is ", kPackageCellEps, " there"));
      require(spec.gate_soft_cap <= 0, "gate_soft_cap: it has no soft cap on the gates");
      require(spec.input_gate == InputGate::kExponential,
              "input_gate = SIGMOID: it has only the exponential input gate");
      require(spec.qk_dim == spec.v_dim, "the widths of queries and values differ: they are equal there");
      require(spec.conv_kernel > 1,
              "conv_kernel = 1: its convolution gives nothing with a kernel of one tap");
      require(WidthFieldsOf(spec.qk_dim, spec.embedding_dim, kPackageProjFactor).has_value(),
              absl::StrCat("inner_dim = ", spec.qk_dim, ": no proj_factor gives this width"));
    }
    if (!spec.slstm_at.empty()) {
      require(spec.slstm_conv_kernel != 1,
              "slstm_conv_kernel = 1: its convolution gives nothing with a kernel of one tap");
      require(
          spec.ffn_dim == 0 || WidthFieldsOf(spec.ffn_dim, spec.embedding_dim, kPackageFfnFactor).has_value(),
          absl::StrCat("ffn_dim = ", spec.ffn_dim, ": no proj_factor gives this width"));
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the Python package xlstm cannot express this model:\n  ",
                                                    absl::StrJoin(problems, "\n  ")));
}

std::vector<std::string> SettingsThePackageLacks(const ModelSpec& spec) {
  std::vector<std::string> result;
  if (spec.embedding_dropout > 0 && spec.embedding_dropout != spec.dropout) {
    result.push_back(absl::StrCat("model.embedding_dropout = ", spec.embedding_dropout,
                                  ": none there, it knows only the rate of model.dropout"));
  }
  if (HasMlstm(spec)) {
    if (spec.igate_bias_init != 0 || spec.igate_bias_std != kPackageIgateBiasStd) {
      result.push_back(absl::StrCat("model.igate_bias_init = ", spec.igate_bias_init, ", igate_bias_std = ",
                                    spec.igate_bias_std, ": 0 and ", kPackageIgateBiasStd, " there"));
    }
    if (spec.normalizer_gradient != NormalizerGradient::kExact) {
      result.push_back("model.normalizer_gradient = FROZEN: exact there");
    }
  }
  if (spec.slstm_at.empty()) return result;
  if (spec.slstm_gradient_clip > 0 && spec.slstm_gradient_clip < 1) {
    result.push_back(absl::StrCat("model.slstm_gradient_clip = ", spec.slstm_gradient_clip,
                                  ": none there, where a value below 1 would clip the cell's outputs too"));
  }
  if (spec.slstm_bias_init == SlstmBiasInit::kZero) {
    result.push_back("model.slstm_bias_init = ZEROS: small_init there");
  }
  return result;
}

std::string PackageConfigJson(const PackageConfig& config) {
  const ModelSpec& spec = config.spec;
  CAROUSEL_CHECK(CheckExpressibleInPackage(spec).ok());
  OrderedJson json;
  json["vocab_size"] = spec.vocab_size;
  json["embedding_dim"] = spec.embedding_dim;
  json["num_blocks"] = spec.num_blocks;
  json["context_length"] = config.context_length;
  json["slstm_at"] = spec.slstm_at;
  json["mlstm_block"] = HasMlstm(spec) ? MlstmBlockJson(spec) : OrderedJson(nullptr);
  json["slstm_block"] = spec.slstm_at.empty() ? OrderedJson(nullptr) : SlstmBlockJson(config);
  json["add_post_blocks_norm"] = spec.add_out_norm;
  json["bias"] = spec.use_bias;
  json["dropout"] = spec.dropout;
  json["tie_weights"] = spec.tie_embeddings;
  json["weight_decay_on_embedding"] = config.decay_embedding;
  json["add_embedding_dropout"] = spec.embedding_dropout > 0 && spec.embedding_dropout == spec.dropout;
  return json.dump(2) + "\n";
}
}  // namespace carousel
