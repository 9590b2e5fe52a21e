#include "checkpoints/hf_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "checkpoints/json_fields.h"
#include "checkpoints/yaml_fields.h"
#include "core/base/status_macros.h"

namespace carousel {

namespace {
using Json = nlohmann::json;

constexpr double kDefaultReferenceFfnFactor = 2.6667;
constexpr double kDefaultTransformersFfnFactor = 2.667;
constexpr int64_t kMaxWidth = int64_t{1} << 20, kMaxVocab = int64_t{1} << 28, kMaxBlocks = 1 << 16;
constexpr int64_t kMaxChunkLength = 256, kDefaultChunkLength = 64;

// Fields of Transformers configs that do not change what the network computes.
const char* const kInertTransformersFields[] = {
    // every model
    "_name_or_path", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16",
    "chunk_size_feed_forward", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "prefix", "decoder_start_token_id", "sep_token_id", "tokenizer_class",
    "pruned_heads", "tf_legacy_loss", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "experts_implementation", "attention_bias",
    // generation settings that old versions kept here
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    // this model: how and where it is computed, how it was initialised
    "inference_state_dtype", "max_inference_chunksize", "mode", "return_last_states", "chunkwise_kernel",
    "sequence_kernel", "step_kernel", "autocast_kernel_dtype", "forward_backend_name", "step_backend_name",
    "add_forward_backend_padding", "force_bos_token_insert", "igate_bias_init_range",
    "mlstm_round_up_to_multiple_of"};

// Fields of the reference's configs that do not change what the network computes.
const char* const kInertReferenceFields[] = {
    "sequence_kernel",    "step_kernel",           "mode",
    "return_last_states", "inference_state_dtype", "autocast_kernel_dtype"};

// Fields that ask for something else than this architecture unless they have one value.
constexpr FixedField kFixedFields[] = {
    {"tie_word_embeddings", "false", "tied embeddings"},
    {"tie_weights", "false", "tied embeddings"},
    {"is_encoder_decoder", "false", "an encoder"},
    {"is_decoder", "false", "a decoder of an encoder-decoder pair"},
    {"add_cross_attention", "false", "cross attention"},
    {"cross_attention_hidden_size", "null", "cross attention"},
    {"tie_encoder_decoder", "false", "an encoder"},
    {"slstm_at", "[]", "sLSTM blocks"},
    {"add_embedding_dropout", "false", "dropout"},
    {"add_post_norm", "false", "a norm after each layer"},
    {"add_qk_norm", "false", "norms of queries and keys"},
    {"add_post_blocks_norm", "true", "no norm after the last block"},
};

// A soft cap: a positive number; null is none (0).
double SoftCap(FieldReader& fields, const char* name, double default_value) {
  if (fields.IsNull(name)) {
    fields.Known(name);
    return 0;
  }
  return fields.Positive(name, default_value);
}

// int(dim * factor), as PyTorch implementations compute it.
int64_t FactorDim(FieldReader& fields, const char* name, int64_t dim, double factor, int64_t num_heads) {
  const double product = static_cast<double>(dim) * factor;
  if (product < 1 || product > static_cast<double>(kMaxWidth)) {
    fields.Problem(name, absl::StrCat("times the width ", dim, " it must be from 1 to ", kMaxWidth));
    return num_heads;
  }
  const int64_t result = static_cast<int64_t>(product);
  if (result % num_heads == 0) return result;
  fields.Problem("num_heads", absl::StrCat("it must divide the ", result, " columns that ", name, " = ",
                                           factor, " makes of the width ", dim));
  return num_heads;
}

// A field that another name may replace: the first that is present wins; both must agree.
int64_t EitherInt(FieldReader& fields, const char* name, const char* other, int64_t default_value,
                  int64_t max) {
  const int64_t a = fields.Int(name, default_value, 1, max), b = fields.Int(other, default_value, 1, max);
  if (fields.Has(name) && fields.Has(other) && a != b) {
    fields.Problem(name, absl::StrCat("it must equal \"", other, "\", which is ", b));
  }
  return fields.Has(name) ? a : b;
}

// Which gradient of the normaliser a kernel of the reference computes: its custom backward passes treat the
// denominator as a constant (model of the public Triton and native kernels).
NormalizerGradient GradientOfKernel(FieldReader& fields, const std::string& kernel) {
  const bool known = kernel.rfind("chunkwise--", 0) == 0 || kernel.rfind("parallel--", 0) == 0;
  if (!known || kernel.find("siging") != std::string::npos) {
    fields.Problem("chunkwise_kernel",
                   "it must name a kernel of the exponential gate: chunkwise--native_autograd, "
                   "chunkwise--native_custbw, chunkwise--triton_limit_chunk, ...");
  }
  return kernel.find("native_autograd") != std::string::npos ? NormalizerGradient::kExact
                                                             : NormalizerGradient::kFrozen;
}

void ReadTransformersSizes(FieldReader& fields, ModelFileConfig* config) {
  ModelSpec& spec = config->spec;
  fields.OneOf("model_type", "xlstm", {"xlstm"});
  spec.vocab_size = fields.Int("vocab_size", 50304, 1, kMaxVocab);
  spec.embedding_dim = EitherInt(fields, "hidden_size", "embedding_dim", 4096, kMaxWidth);
  spec.num_blocks = EitherInt(fields, "num_hidden_layers", "num_blocks", 32, kMaxBlocks);
  spec.num_heads = fields.Int("num_heads", 8, 1, kMaxWidth);
}

void ReadTransformersTokens(FieldReader& fields, const Json& object, ModelFileConfig* config) {
  const int64_t V = config->spec.vocab_size;
  SpecialTokens& tokens = config->tokens;
  tokens.bos = fields.Int("bos_token_id", fields.IsNull("bos_token_id") ? -1 : 0, -1, V - 1);
  // Its default, 1, need not be in a small vocabulary.
  tokens.pad = fields.Has("pad_token_id") ? fields.Int("pad_token_id", -1, -1, kMaxVocab) : -1;
  fields.Known("pad_token_id");
  tokens.eos.clear();
  fields.Known("eos_token_id");
  const Json eos = object.contains("eos_token_id") ? object["eos_token_id"] : Json(2);
  const Json list = eos.is_array() ? eos : eos.is_null() ? Json::array() : Json::array({eos});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= kMaxVocab) {
      return fields.Problem("eos_token_id", "it must be a token id, a list of them or null");
    }
    tokens.eos.push_back(id.get<int64_t>());
  }
}
}  // namespace

int64_t ReferenceFfnDim(int64_t embedding_dim, double factor, int64_t multiple) {
  const double m = static_cast<double>(multiple);
  const double x = static_cast<double>(embedding_dim) * factor + m - 1;
  // Python's // of two floats: the exact quotient's floor, from the exact remainder.
  double quotient = (x - std::fmod(x, m)) / m;
  quotient = std::round(quotient);
  return static_cast<int64_t>(quotient * m);
}

absl::StatusOr<ModelFileConfig> ParseModelConfig(ConfigDialect dialect, const std::string& json_text,
                                                 const std::string& name) {
  CAROUSEL_ASSIGN_OR_RETURN(const Json object, ParseJsonObject(json_text, name));
  return ParseModelConfigObject(dialect, object, name);
}

absl::StatusOr<ModelFileConfig> ParseReferenceYaml(const std::string& text, const std::string& name) {
  CAROUSEL_ASSIGN_OR_RETURN(const Json object, ParseYamlObject(text, name));
  return ParseModelConfigObject(ConfigDialect::kReference, object, name);
}

absl::StatusOr<ModelFileConfig> ParseModelConfigObject(ConfigDialect dialect, const Json& object,
                                                       const std::string& name) {
  const bool transformers = dialect == ConfigDialect::kTransformers;
  FieldProblems problems(name);
  FieldReader fields(object, "", &problems);
  ModelFileConfig config;
  ModelSpec& spec = config.spec;
  if (transformers) {
    ReadTransformersSizes(fields, &config);
    ReadTransformersTokens(fields, object, &config);
    for (const char* field : kInertTransformersFields) fields.Known(field);
  } else {
    spec.vocab_size = fields.RequiredInt("vocab_size", 1, kMaxVocab);
    spec.embedding_dim = fields.RequiredInt("embedding_dim", 1, kMaxWidth);
    spec.num_blocks = fields.RequiredInt("num_blocks", 1, kMaxBlocks);
    spec.num_heads = fields.RequiredInt("num_heads", 1, kMaxWidth);
    for (const char* field : kInertReferenceFields) fields.Known(field);
    spec.normalizer_gradient =
        GradientOfKernel(fields, fields.String("chunkwise_kernel", "chunkwise--triton_limit_chunk"));
  }
  for (const FixedField& fixed : kFixedFields) fields.Fixed(fixed);

  // Widths.
  spec.qk_dim = FactorDim(fields, "qk_dim_factor", spec.embedding_dim, fields.Positive("qk_dim_factor", 0.5),
                          spec.num_heads);
  spec.v_dim = FactorDim(fields, "v_dim_factor", spec.embedding_dim, fields.Positive("v_dim_factor", 1.0),
                         spec.num_heads);
  const double ffn_factor = fields.Positive(
      "ffn_proj_factor", transformers ? kDefaultTransformersFfnFactor : kDefaultReferenceFfnFactor);
  const int64_t multiple = fields.Int("ffn_round_up_to_multiple_of", 64, 1, kMaxWidth);
  if (static_cast<double>(spec.embedding_dim) * ffn_factor > static_cast<double>(kMaxWidth)) {
    fields.Problem("ffn_proj_factor", absl::StrCat("it makes more than ", kMaxWidth, " columns"));
  } else {
    spec.ffn_dim = ReferenceFfnDim(spec.embedding_dim, ffn_factor, multiple);
    if (spec.ffn_dim < 1) fields.Problem("ffn_proj_factor", "it makes no column at all");
  }
  if (transformers && fields.Has("head_dim")) {
    const int64_t head_dim = fields.Int("head_dim", 0, 1, kMaxWidth);
    if (head_dim != spec.head_dim_v() && head_dim != spec.embedding_dim / spec.num_heads) {
      fields.Problem("head_dim", absl::StrCat("the other fields make it ", spec.head_dim_v()));
    }
  }
  fields.Known("head_dim");

  // Arithmetic.
  spec.use_bias = fields.Bool("use_bias", false);
  spec.add_out_norm = fields.Bool("add_out_norm", true);
  if (transformers) spec.add_out_norm = true;  // the Transformers model has it whatever the config says
  spec.norm_eps = fields.Positive("norm_eps", 1e-6);
  if (fields.Has("cell_norm_eps") && fields.Positive("cell_norm_eps", 1e-6) != spec.norm_eps) {
    fields.Problem("cell_norm_eps", "it must equal norm_eps");
  }
  fields.Known("cell_norm_eps");
  spec.cell_eps = fields.Positive("eps", 1e-6);
  spec.gate_soft_cap = SoftCap(fields, "gate_soft_cap", 15);
  spec.logit_soft_cap = SoftCap(fields, "output_logit_soft_cap", 30);
  config.force_float32_norms = fields.Bool("norm_reduction_force_float32", true);
  config.fused_weights = fields.OneOf("weight_mode", "single", {"single", "fused"}) == "fused";
  // The chunk length changes rounding only: one that would take much memory here is replaced.
  const int64_t chunk = fields.Int("chunk_size", kDefaultChunkLength, 1, INT64_MAX);
  spec.chunk_length = chunk <= kMaxChunkLength ? chunk : kDefaultChunkLength;

  fields.RefuseOthers();
  CAROUSEL_RETURN_IF_ERROR(problems.ToStatus());
  return config;
}
}  // namespace carousel
