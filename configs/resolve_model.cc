#include "configs/resolve_model.h"

#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"

namespace carousel {
namespace {
using config::ModelConfig;
using google::protobuf::FieldDescriptor;
using google::protobuf::Reflection;

constexpr int64_t kVocabularyMultiple = 64;

// Defaults that differ between the families; all others are in the schema.
struct FamilyDefaults {
  double ffn_proj_factor, norm_eps, logit_soft_cap, igate_bias_init, igate_bias_std;
  int64_t slstm_conv_kernel;
};
constexpr FamilyDefaults kLarge = {2.667, 1e-6, 30, -10, 0, 0};
constexpr FamilyDefaults kPaper = {1.3, 1e-5, 0, 0, 0.1, 4};

constexpr const char* kMlstmFields[] = {
    "qk_dim_factor",     "v_dim_factor",     "cell_eps",       "gate_soft_cap",       "input_gate",
    "normalize_sigmoid", "igate_bias_init",  "igate_bias_std", "normalizer_gradient", "chunk_length",
    "proj_factor",       "proj_multiple_of", "inner_dim",      "conv_kernel",         "qkv_block_size"};
constexpr const char* kSlstmFields[] = {"slstm_num_heads",   "slstm_conv_kernel",    "slstm_norm_weight",
                                        "slstm_bias_init",   "slstm_recurrent_init", "slstm_gradient_clip",
                                        "slstm_gradient_cut"};
constexpr const char* kFfnFields[] = {"ffn_proj_factor", "ffn_dim", "ffn_bias", "ffn_dropout"};

const FieldDescriptor* FieldOf(const std::string& name) {
  const FieldDescriptor* field = ModelConfig::descriptor()->FindFieldByName(name);
  CAROUSEL_CHECK_MSG(field != nullptr, name);
  return field;
}

bool Has(const ModelConfig& model, const FieldDescriptor* field) {
  const Reflection& reflection = *model.GetReflection();
  return field->is_repeated() ? reflection.FieldSize(model, field) > 0 : reflection.HasField(model, field);
}
}  // namespace

int64_t WidthOf(int64_t embedding_dim, double factor) {
  const double product = static_cast<double>(embedding_dim) * factor;
  if (!(product >= 0.5 && product < 0x1p53)) return -1;
  const double nearest = std::round(product);
  return std::abs(product - nearest) <= 1e-3 ? static_cast<int64_t>(nearest) : -1;
}

MixersUsed MixersOf(const ModelConfig& model) {
  if (model.slstm_all()) return {.mlstm = false, .slstm = true};
  std::set<int64_t> blocks;
  for (const int64_t block : model.slstm_at()) {
    if (block < model.num_blocks()) blocks.insert(block);
  }
  const bool some = model.slstm_at_size() > 0;
  return {.mlstm = !some || static_cast<int64_t>(blocks.size()) != model.num_blocks(), .slstm = some};
}

std::map<std::string, UnusedField> UnusedModelFields(const ModelConfig& model) {
  std::map<std::string, UnusedField> unused;
  const auto add = [&](const auto& names, const std::string& reason, const std::string& fix) {
    for (const char* name : names) unused.insert({name, {reason, fix}});
  };
  using Names = std::initializer_list<const char*>;
  const bool paper = model.family() == ModelConfig::XLSTM_PAPER;
  const MixersUsed mixers = MixersOf(model);
  const std::string family = absl::StrCat("with model.family=", ModelConfig::Family_Name(model.family()));
  if (paper) {
    add(Names{"qk_dim_factor", "v_dim_factor"}, family,
        "leave it out; model.proj_factor and model.inner_dim set the width");
    add(Names{"gate_soft_cap"}, family, "leave it out");
  } else {
    add(Names{"proj_factor", "proj_multiple_of", "inner_dim"}, family,
        "leave it out, or use model.family=XLSTM_PAPER; model.qk_dim_factor and model.v_dim_factor set the "
        "widths of XLSTM_LARGE");
    add(Names{"conv_kernel", "qkv_block_size"}, family, "leave it out, or use model.family=XLSTM_PAPER");
    add(Names{"ffn_bias"}, family, "leave it out; model.use_bias is for all maps");
    add(Names{"dropout"}, family,
        "leave it out; model.ffn_dropout and model.embedding_dropout are for all families");
  }
  if (!mixers.mlstm) {
    const std::string reason = "where every block has an sLSTM mixer";
    const std::string fix = "leave it out, or change model.slstm_at or model.slstm_all";
    add(kMlstmFields, reason, fix);
    if (paper) add(Names{"use_bias"}, reason, fix);
  }
  const std::string name_blocks = "leave it out, or name sLSTM blocks with model.slstm_at or model.slstm_all";
  if (!mixers.slstm) {
    add(kSlstmFields, "without sLSTM blocks", name_blocks);
    if (paper) {
      add(kFfnFields, "without sLSTM blocks, the only ones of XLSTM_PAPER with a feed-forward", name_blocks);
    }
  }
  if (paper && model.has_ffn_dim() && model.ffn_dim() == 0) {
    add(Names{"ffn_proj_factor", "ffn_bias", "ffn_dropout"}, "with model.ffn_dim=0",
        "leave it out, or give model.ffn_dim a width");
  }
  return unused;
}

void ResolveModel(const ModelConfig& given, int64_t num_ids, ModelConfig* model) {
  const Reflection& reflection = *model->GetReflection();
  const std::map<std::string, UnusedField> unused = UnusedModelFields(given);
  for (const auto& [name, why] : unused) {
    if (!Has(given, FieldOf(name))) reflection.ClearField(model, FieldOf(name));
  }
  const auto open = [&](const char* name) { return unused.count(name) == 0 && !Has(*model, FieldOf(name)); };
  const FamilyDefaults& family = given.family() == ModelConfig::XLSTM_PAPER ? kPaper : kLarge;
  if (open("ffn_proj_factor")) model->set_ffn_proj_factor(family.ffn_proj_factor);
  if (open("norm_eps")) model->set_norm_eps(family.norm_eps);
  if (open("logit_soft_cap")) model->set_logit_soft_cap(family.logit_soft_cap);
  if (open("igate_bias_init")) model->set_igate_bias_init(family.igate_bias_init);
  if (open("igate_bias_std")) model->set_igate_bias_std(family.igate_bias_std);
  if (open("slstm_conv_kernel")) model->set_slstm_conv_kernel(family.slstm_conv_kernel);
  if (open("slstm_num_heads") && given.has_num_heads()) model->set_slstm_num_heads(given.num_heads());
  if (open("vocab_size") && num_ids > 0) {
    model->set_vocab_size((num_ids + kVocabularyMultiple - 1) / kVocabularyMultiple * kVocabularyMultiple);
  }

  // The resolved form must not contradict itself: a factor that nobody gave goes where it does not fit.
  const int64_t D = given.embedding_dim();
  if (D <= 0) return;
  if (unused.count("ffn_dim") == 0 && model->has_ffn_proj_factor()) {
    const int64_t derived = FfnDim(D, model->ffn_proj_factor());
    if (!given.has_ffn_dim()) model->set_ffn_dim(derived);
    if (model->ffn_dim() != derived && !given.has_ffn_proj_factor()) model->clear_ffn_proj_factor();
  }
  if (unused.count("inner_dim") == 0) {
    const int64_t derived = ProjectionDim(D, model->proj_factor(), model->proj_multiple_of());
    if (!given.has_inner_dim()) model->set_inner_dim(derived);
    if (model->inner_dim() != derived) {
      if (!given.has_proj_factor()) model->clear_proj_factor();
      if (!given.has_proj_multiple_of()) model->clear_proj_multiple_of();
    }
  }
}

void AddModelNotes(const ModelConfig& model, int64_t num_ids, FieldNotes* notes) {
  const auto note = [&](const std::string& name, const std::string& text) {
    (*notes)["model." + name] = text;
  };
  for (const auto& [name, why] : UnusedModelFields(model)) {
    note(name, absl::StrCat(name, ": not used ", why.reason));
  }
  const int64_t D = model.embedding_dim(), NH = std::max<int64_t>(model.num_heads(), 1);
  if (num_ids > 0) {
    note("vocab_size",
         absl::StrCat(num_ids, " ids of the tokenizer, ", model.vocab_size() - num_ids, " unused"));
  }
  if (model.has_qk_dim_factor()) {
    const int64_t qk = WidthOf(D, model.qk_dim_factor()), v = WidthOf(D, model.v_dim_factor());
    note("qk_dim_factor", absl::StrCat(qk, " wide, ", qk / NH, " per head"));
    note("v_dim_factor", absl::StrCat(v, " wide, ", v / NH, " per head"));
  }
  if (model.has_ffn_dim() && model.ffn_dim() == 0) {
    note("ffn_dim", "no feed-forward");
  } else if (model.has_ffn_proj_factor()) {
    note("ffn_dim", "64 * ceil(embedding_dim * ffn_proj_factor / 64)");
  } else if (model.has_ffn_dim()) {
    note("ffn_proj_factor", "ffn_proj_factor: not used, ffn_dim is given");
  }
  if (model.has_inner_dim()) {
    note("inner_dim", absl::StrCat(model.inner_dim() / NH, " per head"));
    const std::string not_used = ": not used, inner_dim is given";
    if (!model.has_proj_factor()) note("proj_factor", "proj_factor" + not_used);
    if (!model.has_proj_multiple_of()) note("proj_multiple_of", "proj_multiple_of" + not_used);
  }
  if (model.has_gate_soft_cap() && model.gate_soft_cap() == 0) note("gate_soft_cap", "none");
  if (model.logit_soft_cap() == 0) note("logit_soft_cap", "none");
  const MixersUsed mixers = MixersOf(model);
  if (!mixers.slstm) {
    note("slstm_at", "slstm_at: no sLSTM blocks");
  } else if (model.slstm_all()) {
    note("slstm_at", "slstm_at: not used with slstm_all, which means every block");
  } else {
    note("slstm_at", absl::StrCat(model.slstm_at_size(), " of ", model.num_blocks(), " blocks"));
  }
  if (model.has_slstm_num_heads()) {
    note("slstm_num_heads",
         absl::StrCat(D / std::max<int64_t>(model.slstm_num_heads(), 1), " wide per head"));
  }
  if (mixers.slstm && model.slstm_conv_kernel() == 0) note("slstm_conv_kernel", "none");
  if (mixers.slstm && model.slstm_gradient_clip() == 0) note("slstm_gradient_clip", "none");
}

ModelSpec ToModelSpec(const ModelConfig& m) {
  ModelSpec spec;
  const bool paper = m.family() == ModelConfig::XLSTM_PAPER;
  const MixersUsed mixers = MixersOf(m);
  spec.family = paper ? Family::kPaper : Family::kLarge;
  spec.vocab_size = m.vocab_size();
  spec.embedding_dim = m.embedding_dim();
  spec.num_blocks = m.num_blocks();
  spec.num_heads = m.num_heads();
  if (!mixers.mlstm) {
    spec.qk_dim = spec.v_dim = m.embedding_dim();
  } else if (paper) {
    spec.qk_dim = spec.v_dim = m.inner_dim();
  } else {
    spec.qk_dim = WidthOf(m.embedding_dim(), m.qk_dim_factor());
    spec.v_dim = WidthOf(m.embedding_dim(), m.v_dim_factor());
  }
  spec.ffn_dim = m.ffn_dim();  // 0 without a feed-forward
  spec.use_bias = m.use_bias();
  spec.ffn_bias = m.ffn_bias();
  spec.add_out_norm = m.add_out_norm();
  spec.tie_embeddings = m.tie_embeddings();
  spec.norm_eps = m.norm_eps();
  spec.logit_soft_cap = m.logit_soft_cap();
  spec.gate_soft_cap = m.has_gate_soft_cap() ? m.gate_soft_cap() : 0;
  if (mixers.mlstm) {
    spec.cell_eps = m.cell_eps();
    spec.input_gate = m.input_gate() == ModelConfig::SIGMOID ? InputGate::kSigmoid : InputGate::kExponential;
    spec.normalize_sigmoid = m.normalize_sigmoid();
    spec.igate_bias_init = m.igate_bias_init();
    spec.igate_bias_std = m.igate_bias_std();
    spec.normalizer_gradient = m.normalizer_gradient() == ModelConfig::FROZEN ? NormalizerGradient::kFrozen
                                                                              : NormalizerGradient::kExact;
    spec.chunk_length = m.chunk_length();
  }
  if (mixers.mlstm && paper) {
    spec.conv_kernel = m.conv_kernel();
    spec.qkv_block_size = m.qkv_block_size();
  }
  spec.recompute = m.recompute() == ModelConfig::RECOMPUTE ? Recompute::kRecompute : Recompute::kSave;
  spec.loss_chunk_tokens = m.loss_chunk_tokens();

  if (m.slstm_all()) {
    for (int64_t l = 0; l < m.num_blocks(); ++l) spec.slstm_at.push_back(l);
  } else {
    spec.slstm_at.assign(m.slstm_at().begin(), m.slstm_at().end());
    std::sort(spec.slstm_at.begin(), spec.slstm_at.end());
  }
  if (mixers.slstm) {
    spec.slstm_num_heads = m.slstm_num_heads();
    spec.slstm_conv_kernel = m.slstm_conv_kernel();
    spec.slstm_norm_weight = m.slstm_norm_weight();
    switch (m.slstm_bias_init()) {
      case ModelConfig::POWERLAW_BLOCKDEPENDENT:
        spec.slstm_bias_init = SlstmBiasInit::kPowerLaw;
        break;
      case ModelConfig::SMALL_INIT:
        spec.slstm_bias_init = SlstmBiasInit::kSmall;
        break;
      case ModelConfig::ZEROS:
        spec.slstm_bias_init = SlstmBiasInit::kZero;
        break;
      case ModelConfig::STANDARD:
        spec.slstm_bias_init = SlstmBiasInit::kStandard;
        break;
    }
    spec.slstm_recurrent_init = m.slstm_recurrent_init() == config::ModelConfig::SlstmRecurrent::STANDARD
                                    ? RecurrentInit::kStandard
                                    : RecurrentInit::kZero;
    spec.slstm_gradient_clip = m.slstm_gradient_clip();
    spec.slstm_gradient_cut = m.slstm_gradient_cut();
  }
  spec.dropout = m.dropout();
  spec.ffn_dropout = m.ffn_dropout();
  spec.embedding_dropout = m.embedding_dropout();
  return spec;
}
}  // namespace carousel
