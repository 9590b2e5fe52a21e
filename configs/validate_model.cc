#include "configs/validate_model.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>

#include "absl/strings/str_format.h"
#include "configs/divisors.h"
#include "configs/resolve_model.h"

namespace carousel {
namespace {
using config::ModelConfig;
using google::protobuf::FieldDescriptor;

// A value given for a field that nothing would read.
void CheckUnused(const ModelConfig& model, const Origins& origins, Problems* problems) {
  for (const auto& [name, why] : UnusedModelFields(model)) {
    const FieldDescriptor* field = ModelConfig::descriptor()->FindFieldByName(name);
    if (!model.GetReflection()->HasField(model, field)) continue;
    std::string value;
    google::protobuf::TextFormat::PrintFieldValueToString(model, field, -1, &value);
    const std::string path = "model." + name;
    problems->Add(origins, path,
                  absl::StrCat(path, "=", value, " has no meaning ", why.reason, "; ", why.fix));
  }
}

void CheckSlstmBlocks(const ModelConfig& model, const Origins& origins, Problems* problems) {
  std::map<int64_t, int> first_of;
  for (int i = 0; i < model.slstm_at_size(); ++i) {
    const int64_t block = model.slstm_at(i);
    const std::string path = absl::StrCat("model.slstm_at[", i, "]");
    const auto [first, is_new] = first_of.insert({block, i});
    if (!is_new) {
      problems->Add(origins, path,
                    absl::StrFormat("%s=%d repeats model.slstm_at[%d]; name each block once", path, block,
                                    first->second));
    } else if (model.has_num_blocks() && block >= model.num_blocks()) {
      problems->Add(
          origins, path,
          absl::StrFormat("%s=%d is not a block: the model.num_blocks=%d blocks are counted from 0; "
                          "use at most %d",
                          path, block, model.num_blocks(), model.num_blocks() - 1));
    }
  }
}

// Heads of the large family's mLSTM and the widths they divide.
void CheckLargeHeads(const ModelConfig& model, const Origins& origins, Problems* problems) {
  const int64_t D = model.embedding_dim(), NH = model.num_heads();
  const int64_t qk = WidthOf(D, model.qk_dim_factor()), v = WidthOf(D, model.v_dim_factor());
  const auto check_width = [&](const char* name, double factor, int64_t width) {
    if (width > 0) return;
    const double product = static_cast<double>(D) * factor;
    const double whole = std::max(1.0, std::round(product));
    problems->Add(
        origins, absl::StrCat("model.", name),
        absl::StrFormat("model.%s=%g times model.embedding_dim=%d is %g, not a whole width; use %.17g "
                        "for a width of %g",
                        name, factor, D, product, whole / static_cast<double>(D), whole));
  };
  check_width("qk_dim_factor", model.qk_dim_factor(), qk);
  check_width("v_dim_factor", model.v_dim_factor(), v);
  if (!model.has_num_heads() || qk <= 0 || v <= 0 || (qk % NH == 0 && v % NH == 0)) return;
  problems->Add(
      origins, "model.num_heads",
      absl::StrFormat("model.num_heads=%d does not divide both the query-key width %d and the value "
                      "width %d (model.embedding_dim=%d times the factors); %s",
                      NH, qk, v, D, NearestDivisors(Gcd(qk, v), NH)));
}

// The width inside the paper family's mLSTM blocks and what divides it. Returns false if the width is wrong.
bool CheckInnerDim(const ModelConfig& model, const Origins& origins, Problems* problems) {
  const int64_t D = model.embedding_dim(), W = model.inner_dim();
  if (W > kMaxLayerDim) {
    problems->Add(origins, "model.proj_factor",
                  absl::StrFormat("model.proj_factor=%g gives a width of %d, above %d; for example 2",
                                  model.proj_factor(), W, kMaxLayerDim));
    return false;
  }
  if (!model.has_proj_factor() && !model.has_proj_multiple_of()) return true;
  const int64_t derived = ProjectionDim(D, model.proj_factor(), model.proj_multiple_of());
  if (W == derived) return true;
  problems->Add(origins, "model.inner_dim",
                absl::StrFormat("model.inner_dim=%d contradicts model.proj_factor=%g and "
                                "model.proj_multiple_of=%d, which give %d at model.embedding_dim=%d; give "
                                "either the width or the factor, or use model.inner_dim=%d",
                                W, model.proj_factor(), model.proj_multiple_of(), derived, D, derived));
  return false;
}

void CheckInnerDivisor(const ModelConfig& model, const char* name, int64_t value, const Origins& origins,
                       Problems* problems) {
  const int64_t W = model.inner_dim();
  if (W % value == 0) return;
  const std::string path = absl::StrCat("model.", name);
  problems->Add(origins, path,
                absl::StrFormat("%s=%d does not divide model.inner_dim=%d; %s", path, value, W,
                                NearestDivisors(W, value)));
}

void CheckSlstmHeads(const ModelConfig& model, bool any_mlstm, const Origins& origins, Problems* problems) {
  const int64_t D = model.embedding_dim(), heads = model.slstm_num_heads();
  const bool given = origins.count("model.slstm_num_heads") > 0;
  if (D % heads != 0) {
    problems->Add(
        origins, given ? "model.slstm_num_heads" : "model.num_heads",
        absl::StrFormat("model.slstm_num_heads=%d%s does not divide model.embedding_dim=%d; %s", heads,
                        given ? "" : ", by default model.num_heads,", D, NearestDivisors(D, heads)));
  }
  if (!any_mlstm && model.has_num_heads() && model.num_heads() != heads) {
    problems->Add(origins, "model.num_heads",
                  absl::StrFormat("model.num_heads=%d has no meaning where every block has an sLSTM mixer "
                                  "with model.slstm_num_heads=%d; leave model.slstm_num_heads out",
                                  model.num_heads(), heads));
  }
}

void CheckFfn(const ModelConfig& model, const Origins& origins, Problems* problems) {
  if (model.ffn_dim() > kMaxLayerDim) {
    problems->Add(origins, "model.ffn_proj_factor",
                  absl::StrFormat("model.ffn_proj_factor=%g gives a width of %d, above %d; for example 2.667",
                                  model.ffn_proj_factor(), model.ffn_dim(), kMaxLayerDim));
    return;
  }
  if (model.family() == ModelConfig::XLSTM_LARGE && model.has_ffn_dim() && model.ffn_dim() == 0) {
    problems->Add(
        origins, "model.ffn_dim",
        "model.ffn_dim=0 means no feed-forward, but every block of model.family=XLSTM_LARGE has one; "
        "leave it out, or use at least 1");
    return;
  }
  if (!model.has_ffn_dim() || !model.has_ffn_proj_factor()) return;
  const int64_t derived = FfnDim(model.embedding_dim(), model.ffn_proj_factor());
  if (model.ffn_dim() == derived) return;
  problems->Add(
      origins, "model.ffn_dim",
      absl::StrFormat("model.ffn_dim=%d contradicts model.ffn_proj_factor=%g, which gives %d at "
                      "model.embedding_dim=%d; give one of the two only, or use model.ffn_dim=%d",
                      model.ffn_dim(), model.ffn_proj_factor(), derived, model.embedding_dim(), derived));
}
}  // namespace

void CheckModel(const ModelConfig& model, const Origins& origins, const std::set<std::string>& wrong,
                Problems* problems) {
  // True if all of these are what the user meant: a relation with a wrong value would only repeat that.
  const auto good = [&](std::initializer_list<const char*> names) {
    return std::none_of(names.begin(), names.end(),
                        [&](const char* name) { return wrong.count(absl::StrCat("model.", name)) > 0; });
  };
  // Without these it is not known what kind of model is meant.
  if (!good({"family", "slstm_at", "slstm_all"}) || (model.slstm_at_size() > 0 && !good({"num_blocks"}))) {
    return;
  }
  if (model.slstm_all() && model.slstm_at_size() > 0) {
    problems->Add(origins, "model.slstm_all",
                  "model.slstm_all=true and model.slstm_at both say which blocks are sLSTM blocks; give one "
                  "of the two only");
    return;
  }
  CheckUnused(model, origins, problems);
  CheckSlstmBlocks(model, origins, problems);
  if (model.slstm_gradient_cut() && model.slstm_gradient_clip() > 0) {
    problems->Add(origins, "model.slstm_gradient_clip",
                  absl::StrFormat("model.slstm_gradient_clip=%g has nothing to clamp with "
                                  "model.slstm_gradient_cut=true; give one of the two only",
                                  model.slstm_gradient_clip()));
  }
  if (!model.has_embedding_dim() || !good({"embedding_dim"})) return;
  const MixersUsed mixers = MixersOf(model);
  if (good({"ffn_dim", "ffn_proj_factor"})) CheckFfn(model, origins, problems);
  if (mixers.mlstm && model.family() == ModelConfig::XLSTM_LARGE &&
      good({"num_heads", "qk_dim_factor", "v_dim_factor"})) {
    CheckLargeHeads(model, origins, problems);
  }
  if (mixers.mlstm && model.family() == ModelConfig::XLSTM_PAPER &&
      good({"inner_dim", "proj_factor", "proj_multiple_of"}) && CheckInnerDim(model, origins, problems)) {
    if (model.has_num_heads() && good({"num_heads"})) {
      CheckInnerDivisor(model, "num_heads", model.num_heads(), origins, problems);
    }
    if (good({"qkv_block_size"})) {
      CheckInnerDivisor(model, "qkv_block_size", model.qkv_block_size(), origins, problems);
    }
  }
  if (mixers.slstm && model.has_slstm_num_heads() && good({"num_heads", "slstm_num_heads"})) {
    CheckSlstmHeads(model, mixers.mlstm, origins, problems);
  }
}

double EstimateBytes(const ModelConfig& m, double tokens, double sequences) {
  const MixersUsed mixers = MixersOf(m);
  const bool paper = m.family() == ModelConfig::XLSTM_PAPER;
  const double D = static_cast<double>(m.embedding_dim()), F = static_cast<double>(m.ffn_dim());
  const double V = static_cast<double>(m.vocab_size()), NH = static_cast<double>(m.num_heads());
  const double W = paper ? static_cast<double>(m.inner_dim()) : 0;
  const double qk = !mixers.mlstm ? 0 : paper ? W : D * m.qk_dim_factor();
  const double v = !mixers.mlstm ? 0 : paper ? W : D * m.v_dim_factor();
  const double K = static_cast<double>(std::max(m.conv_kernel(), m.slstm_conv_kernel()));
  const double blocks = static_cast<double>(m.num_blocks());
  const double chunk = static_cast<double>(m.chunk_length());
  const double chunks = tokens / chunk + sequences;

  double block = D * (2 * qk + 3 * v + 2 * NH + 3 * F + 8) + 2 * v;
  if (mixers.mlstm && paper) block += W * (K + 3 * static_cast<double>(m.qkv_block_size()) + 6 * NH + 8);
  if (mixers.slstm) block += D * (8 * D / static_cast<double>(m.slstm_num_heads()) + K + 8);
  const double params = 2 * V * D + blocks * block;
  const double width = 12 * D + 6 * F + 8 * qk + 8 * v + 8 * NH + (mixers.slstm ? 24 * D : 0);
  const double activations = tokens * (blocks + 1) * width;
  const double states =
      blocks * ((chunks + 1) * (qk * v / NH + qk + NH) + sequences * (4 * D + K * std::max(W, D)));
  const double logits = static_cast<double>(m.loss_chunk_tokens()) * V;
  return 8 * (8 * params + activations + 4 * states + 4 * logits + tokens * NH * chunk);
}
}  // namespace carousel
