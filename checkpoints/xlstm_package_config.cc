#include "checkpoints/xlstm_package_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "checkpoints/json_fields.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

constexpr int64_t kMaxWidth = int64_t{1} << 20, kMaxVocab = int64_t{1} << 28, kMaxBlocks = 1 << 16;
constexpr int64_t kMaxKernel = 1 << 10;

// Fields of nested configs that the package overwrites with those of the whole model, or that say how it
// computes and not what.
const char* const kInertMlstmFields[] = {"embedding_dim", "bias", "dropout", "context_length"};
const char* const kInertSlstmFields[] = {
    "embedding_dim", "hidden_size", "dropout", "batch_size", "dtype",   "dtype_b",
    "dtype_r",       "dtype_w",     "dtype_g", "dtype_s",    "dtype_a", "enable_automatic_mixed_precision"};

constexpr FixedField kFixedMlstmFields[] = {
    {"channel_mixing", "false", "a convolution across channels"},
};
constexpr FixedField kFixedSlstmFields[] = {
    {"function", "\"slstm\"", "another cell"},
    {"num_states", "4", "another cell"},
    {"num_gates", "4", "another cell"},
    {"forward_clipval", "null", "clipped outputs of the cell"},
    {"initial_val", "0.0", "a start state that is not zero"},
    {"constants", "{}", "another cell"},
    {"input_shape", "\"BSGNH\"", "another order of the gates"},
    {"output_shape", "\"BNSH\"", "another order of the outputs"},
    {"channel_mixing", "false", "a convolution across channels"},
};

// The width after an up-projection, as the package computes it: in doubles, rounded up or down to a multiple.
double ProjectedWidth(int64_t embedding_dim, double factor, int64_t multiple, bool up) {
  const double m = static_cast<double>(multiple), quotient = factor * static_cast<double>(embedding_dim) / m;
  return (up ? std::ceil(quotient) : std::floor(quotient)) * m;
}

// Reads the three fields that give a width; a problem and `embedding_dim` if it makes none.
int64_t ReadWidth(FieldReader& fields, int64_t embedding_dim, double default_factor) {
  const double factor = fields.Positive("proj_factor", default_factor);
  const int64_t multiple = fields.Int("round_proj_up_to_multiple_of", 64, 1, kMaxWidth);
  const double width =
      ProjectedWidth(embedding_dim, factor, multiple, fields.Bool("round_proj_up_dim_up", true));
  if (width >= 1 && width <= static_cast<double>(kMaxWidth)) return static_cast<int64_t>(width);
  fields.Problem("proj_factor", absl::StrCat("with embedding_dim ", embedding_dim, " it makes ", width,
                                             " columns; from 1 to ", kMaxWidth, " are possible"));
  return embedding_dim;
}

void ReadMlstm(const Json& object, FieldProblems* problems, ModelSpec* spec) {
  FieldReader fields(object, "mlstm_block.mlstm.", problems);
  for (const char* field : kInertMlstmFields) fields.Known(field);
  for (const FixedField& field : kFixedMlstmFields) fields.Fixed(field);
  const int64_t W = ReadWidth(fields, spec->embedding_dim, kPackageProjFactor);
  spec->qk_dim = spec->v_dim = W;
  spec->num_heads = fields.Int("num_heads", 4, 1, kMaxWidth);
  if (W % spec->num_heads != 0) {
    fields.Problem("num_heads", absl::StrCat("it must divide the width after the up-projection, ", W));
  }
  // Without this convolution the package itself fails.
  spec->conv_kernel = fields.Int("conv1d_kernel_size", 4, 1, kMaxKernel);
  // The package takes this many blocks, whatever size they then have.
  const int64_t block = fields.Int("qkv_proj_blocksize", 4, 1, kMaxWidth), num_blocks = W / block;
  if (num_blocks < 1 || W % num_blocks != 0) {
    fields.Problem("qkv_proj_blocksize",
                   absl::StrCat("it must divide the width after the up-projection, ", W, " (", num_blocks,
                                " blocks of equal size are impossible)"));
  } else {
    spec->qkv_block_size = W / num_blocks;
  }
  fields.RefuseOthers("_");
}

SlstmBiasInit ReadBiasInit(FieldReader& fields) {
  const std::string init = fields.OneOf("bias_init", "powerlaw_blockdependent",
                                        {"powerlaw_blockdependent", "small_init", "zeros", "standard"});
  if (init == "small_init") return SlstmBiasInit::kSmall;
  if (init == "zeros") return SlstmBiasInit::kZero;
  return init == "standard" ? SlstmBiasInit::kStandard : SlstmBiasInit::kPowerLaw;
}

void ReadSlstm(const Json& object, FieldProblems* problems, PackageConfig* config) {
  FieldReader fields(object, "slstm_block.slstm.", problems);
  ModelSpec& spec = config->spec;
  for (const char* field : kInertSlstmFields) fields.Known(field);
  for (const FixedField& field : kFixedSlstmFields) fields.Fixed(field);
  config->backend = *SlstmBackendFromName(fields.OneOf("backend", "cuda", {"vanilla", "cuda"}));
  const bool cuda = config->backend == SlstmBackend::kCuda;
  // Only the cuda backend reads it.
  const std::string internal = fields.OneOf("internal_input_shape", "SBNGH", {"SBNGH", "SBGNH"});
  if (cuda && internal != "SBNGH") {
    fields.Problem("internal_input_shape", "the backend cuda computes the cell with SBNGH only");
  }
  // The package makes one head of 0 and less.
  spec.slstm_num_heads = std::max<int64_t>(fields.Int("num_heads", 4, -kMaxWidth, kMaxWidth), 1);
  if (spec.embedding_dim % spec.slstm_num_heads != 0) {
    fields.Problem("num_heads", absl::StrCat("it must divide embedding_dim, ", spec.embedding_dim));
  }
  spec.slstm_conv_kernel = fields.Int("conv1d_kernel_size", 4, 0, kMaxKernel);
  spec.slstm_norm_weight = fields.Bool("group_norm_weight", true);
  spec.slstm_bias_init = ReadBiasInit(fields);
  spec.slstm_recurrent_init =
      fields.OneOf("recurrent_weight_init", "zeros", {"zeros", "standard"}) == "standard"
          ? RecurrentInit::kStandard
          : RecurrentInit::kZero;
  spec.slstm_gradient_cut = fields.Bool("gradient_recurrent_cut", false);
  spec.slstm_gradient_clip = fields.Positive("gradient_recurrent_clipval", 0);
  if (cuda && spec.slstm_gradient_clip > 0 && spec.slstm_gradient_clip < 1) {
    fields.Problem("gradient_recurrent_clipval",
                   "below 1 the package's backend cuda also clips the outputs of the cell with it, which are "
                   "between -1 and 1: not in this version");
  }
  // With the cut there is no gradient left to limit.
  if (spec.slstm_gradient_cut) spec.slstm_gradient_clip = 0;
  fields.RefuseOthers("_");
}

void ReadFeedForward(const Json& object, FieldProblems* problems, ModelSpec* spec) {
  FieldReader fields(object, "slstm_block.feedforward.", problems);
  spec->ffn_dim = ReadWidth(fields, spec->embedding_dim, kPackageFfnFactor);
  spec->ffn_bias = fields.Bool("bias", false);
  spec->ffn_dropout = fields.InRange("dropout", 0, 0, 1);
  if (fields.String("act_fn", "gelu") != "gelu") {
    fields.Problem("act_fn", "it must be \"gelu\", the only activation of the paper family here");
  }
  fields.OneOf("ff_type", "ffn_gated", {"ffn_gated"});
  fields.Known("embedding_dim");
  fields.RefuseOthers("_");
}

// The blocks with an sLSTM: a list of indices, from the end if negative, or "all".
void ReadPositions(FieldReader& fields, const Json& object, bool has_mlstm, ModelSpec* spec) {
  fields.Known("slstm_at");
  const Json at = object.contains("slstm_at") ? object["slstm_at"] : Json::array();
  std::set<int64_t> blocks;
  if (!has_mlstm || at == "all") {
    for (int64_t block = 0; block < spec->num_blocks; ++block) blocks.insert(block);
  } else if (!at.is_array()) {
    fields.Problem("slstm_at", "it must be a list of block numbers or \"all\"");
  } else {
    for (const Json& value : at) {
      const bool is_int64 =
          value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
      const int64_t block = is_int64 ? value.get<int64_t>() : INT64_MAX;
      if (block < -spec->num_blocks || block >= spec->num_blocks) {
        fields.Problem("slstm_at", absl::StrCat("there are ", spec->num_blocks, " blocks, counted from 0"));
        break;
      }
      blocks.insert(block < 0 ? block + spec->num_blocks : block);
    }
  }
  spec->slstm_at.assign(blocks.begin(), blocks.end());
}

}  // namespace

bool IsPackageConfig(const std::string& json_text) {
  const Json object = Json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  return object.is_object() && !object.contains("model_type") &&
         (object.contains("mlstm_block") || object.contains("slstm_block"));
}

absl::StatusOr<PackageConfig> ParsePackageConfig(const std::string& json_text, const std::string& name) {
  CAROUSEL_ASSIGN_OR_RETURN(const Json object, ParseJsonObject(json_text, name));
  FieldProblems problems(name);
  FieldReader fields(object, "", &problems);
  PackageConfig config;
  ModelSpec& spec = config.spec;
  spec.family = Family::kPaper;
  spec.norm_eps = kPackageNormEps;
  spec.cell_eps = kPackageCellEps;
  spec.gate_soft_cap = spec.logit_soft_cap = 0;

  spec.vocab_size = fields.RequiredInt("vocab_size", 1, kMaxVocab);
  spec.embedding_dim = fields.Int("embedding_dim", 128, 1, kMaxWidth);
  spec.num_blocks = fields.Int("num_blocks", 1, 1, kMaxBlocks);
  config.context_length = fields.Int("context_length", -1, INT64_MIN, INT64_MAX);
  spec.add_out_norm = fields.Bool("add_post_blocks_norm", true);
  const bool use_bias = fields.Bool("bias", false);
  spec.dropout = fields.InRange("dropout", 0, 0, 1);
  spec.tie_embeddings = fields.Bool("tie_weights", false);
  config.decay_embedding = fields.Bool("weight_decay_on_embedding", false);
  if (fields.Bool("add_embedding_dropout", false)) spec.embedding_dropout = spec.dropout;

  const Json* mlstm = fields.Object("mlstm_block");
  const Json* slstm = fields.Object("slstm_block");
  ReadPositions(fields, object, mlstm != nullptr, &spec);
  // A block that occurs nowhere is not read, as the package builds none; ModelSpec's defaults remain.
  const int64_t num_slstm = static_cast<int64_t>(spec.slstm_at.size());
  if (mlstm != nullptr && num_slstm < spec.num_blocks) {
    spec.use_bias = use_bias;
    spec.igate_bias_init = 0;
    spec.igate_bias_std = kPackageIgateBiasStd;
    FieldReader block(*mlstm, "mlstm_block.", &problems);
    const Json* layer = block.Object("mlstm");
    ReadMlstm(layer != nullptr ? *layer : Json::object(), &problems, &spec);
    block.RefuseOthers("_");
  }
  if (slstm != nullptr && num_slstm > 0) {
    FieldReader block(*slstm, "slstm_block.", &problems);
    const Json* layer = block.Object("slstm");
    ReadSlstm(layer != nullptr ? *layer : Json::object(), &problems, &config);
    const Json* feed_forward = block.Object("feedforward");
    if (!block.IsNull("feedforward")) {
      ReadFeedForward(feed_forward != nullptr ? *feed_forward : Json::object(), &problems, &spec);
    }
    block.RefuseOthers("_");
  } else if (num_slstm > 0) {
    fields.Problem("slstm_block",
                   mlstm == nullptr ? "there is no \"mlstm_block\" either" : "\"slstm_at\" needs it");
  }
  fields.RefuseOthers("_");
  CAROUSEL_RETURN_IF_ERROR(problems.ToStatus());
  if (num_slstm == spec.num_blocks) {
    spec.num_heads = spec.slstm_num_heads;
    spec.qk_dim = spec.v_dim = spec.embedding_dim;
  }
  return config;
}
}  // namespace carousel
