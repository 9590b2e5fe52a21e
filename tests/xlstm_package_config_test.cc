// config.json of an xLSTMLMModel.
#include "checkpoints/xlstm_package_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/xlstm_package_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::MixedPaperSpec;
using testing::PaperSpecs;
using Json = nlohmann::json;

absl::StatusOr<PackageConfig> Parse(const Json& json) { return ParsePackageConfig(json.dump(), "c.json"); }

Json Mixed() {
  return Json::parse(R"({"vocab_size": 96, "num_blocks": 3, "embedding_dim": 64, "context_length": 40,
                         "slstm_at": [1], "mlstm_block": {}, "slstm_block": {}})");
}
// With one field set; `path` as "/slstm_block/slstm/backend".
Json With(const std::string& path, const Json& value) {
  Json json = Mixed();
  json[Json::json_pointer(path)] = value;
  return json;
}

void ExpectEqualSpecs(const ModelSpec& a, const ModelSpec& b) {
  EXPECT_EQ(a.family, b.family);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.embedding_dim, b.embedding_dim);
  EXPECT_EQ(a.num_blocks, b.num_blocks);
  EXPECT_EQ(a.num_heads, b.num_heads);
  EXPECT_EQ(a.qk_dim, b.qk_dim);
  EXPECT_EQ(a.v_dim, b.v_dim);
  EXPECT_EQ(a.ffn_dim, b.ffn_dim);
  EXPECT_EQ(a.use_bias, b.use_bias);
  EXPECT_EQ(a.ffn_bias, b.ffn_bias);
  EXPECT_EQ(a.add_out_norm, b.add_out_norm);
  EXPECT_EQ(a.tie_embeddings, b.tie_embeddings);
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.cell_eps, b.cell_eps);
  EXPECT_EQ(a.gate_soft_cap, b.gate_soft_cap);
  EXPECT_EQ(a.logit_soft_cap, b.logit_soft_cap);
  EXPECT_EQ(a.igate_bias_init, b.igate_bias_init);
  EXPECT_EQ(a.igate_bias_std, b.igate_bias_std);
  EXPECT_EQ(a.conv_kernel, b.conv_kernel);
  EXPECT_EQ(a.qkv_block_size, b.qkv_block_size);
  EXPECT_EQ(a.slstm_at, b.slstm_at);
  EXPECT_EQ(a.slstm_num_heads, b.slstm_num_heads);
  EXPECT_EQ(a.slstm_conv_kernel, b.slstm_conv_kernel);
  EXPECT_EQ(a.slstm_norm_weight, b.slstm_norm_weight);
  EXPECT_EQ(a.slstm_bias_init, b.slstm_bias_init);
  EXPECT_EQ(a.slstm_recurrent_init, b.slstm_recurrent_init);
  EXPECT_EQ(a.slstm_gradient_clip, b.slstm_gradient_clip);
  EXPECT_EQ(a.slstm_gradient_cut, b.slstm_gradient_cut);
  EXPECT_EQ(a.dropout, b.dropout);
  EXPECT_EQ(a.ffn_dropout, b.ffn_dropout);
  EXPECT_EQ(a.embedding_dropout, b.embedding_dropout);
}

TEST(PackageConfig, GivesMissingFieldsThePackagesDefaults) {
  const auto config = Parse(Mixed());
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  EXPECT_EQ(spec.family, Family::kPaper);
  EXPECT_EQ(spec.num_heads, 4);
  EXPECT_EQ(spec.qk_dim, 128);
  EXPECT_EQ(spec.v_dim, 128);
  EXPECT_EQ(spec.conv_kernel, 4);
  EXPECT_EQ(spec.qkv_block_size, 4);
  EXPECT_EQ(spec.slstm_num_heads, 4);
  EXPECT_EQ(spec.slstm_conv_kernel, 4);
  EXPECT_TRUE(spec.slstm_norm_weight);
  EXPECT_EQ(spec.ffn_dim, 128);  // 1.3 * 64, rounded up to a multiple of 64
  EXPECT_EQ(spec.slstm_bias_init, SlstmBiasInit::kPowerLaw);
  EXPECT_FALSE(spec.use_bias || spec.ffn_bias || spec.tie_embeddings);
  EXPECT_TRUE(spec.add_out_norm);
  EXPECT_EQ(spec.norm_eps, 1e-5);
  EXPECT_EQ(spec.gate_soft_cap, 0);
  EXPECT_EQ(spec.logit_soft_cap, 0);
  EXPECT_EQ(spec.dropout, 0);
  EXPECT_EQ(config->backend, SlstmBackend::kCuda);
  EXPECT_EQ(config->context_length, 40);
  EXPECT_FALSE(config->decay_embedding);
}

TEST(PackageConfig, RoundTrips) {
  for (auto [name, spec] : PaperSpecs()) {
    spec.dropout = spec.embedding_dropout = 0.25;
    for (const SlstmBackend backend : {SlstmBackend::kVanilla, SlstmBackend::kCuda}) {
      ASSERT_TRUE(CheckExpressibleInPackage(spec).ok()) << name << CheckExpressibleInPackage(spec);
      const std::string text = PackageConfigJson(
          {.spec = spec, .backend = backend, .context_length = 77, .decay_embedding = true});
      EXPECT_TRUE(IsPackageConfig(text));
      const auto config = ParsePackageConfig(text, name);
      ASSERT_TRUE(config.ok()) << config.status();
      ExpectEqualSpecs(config->spec, spec);
      if (!spec.slstm_at.empty()) {
        EXPECT_EQ(config->backend, backend);
      }
      EXPECT_EQ(config->context_length, 77);
      EXPECT_TRUE(config->decay_embedding);
    }
  }
}

TEST(PackageConfig, RoundTripsSettingsOfTraining) {
  ModelSpec spec = MixedPaperSpec();
  spec.slstm_bias_init = SlstmBiasInit::kStandard;
  spec.slstm_recurrent_init = RecurrentInit::kStandard;
  spec.dropout = 0.1;
  spec.ffn_dropout = 0.2;
  for (const bool cut : {false, true}) {
    spec.slstm_gradient_cut = cut;
    spec.slstm_gradient_clip = cut ? 0 : 10;
    const auto config = ParsePackageConfig(PackageConfigJson({.spec = spec, .context_length = 1}), "c.json");
    ASSERT_TRUE(config.ok()) << config.status();
    ExpectEqualSpecs(config->spec, spec);
  }
}

TEST(PackageConfig, WritesFactorsThatGiveEveryWidthAgain) {
  ModelSpec spec = MixedPaperSpec();
  spec.num_heads = spec.qkv_block_size = 1;
  for (const int64_t D : {24, 60, 126, 640, 777, 1000}) {
    for (int64_t width = 1; width < 3 * D; width += 7) {
      spec.embedding_dim = D;
      spec.slstm_num_heads = 1;
      spec.qk_dim = spec.v_dim = spec.ffn_dim = width;
      ASSERT_TRUE(CheckExpressibleInPackage(spec).ok()) << D << " " << width;
      const auto config = ParsePackageConfig(PackageConfigJson({.spec = spec, .context_length = 1}), "c");
      ASSERT_TRUE(config.ok()) << config.status();
      ASSERT_EQ(config->spec.qk_dim, width) << D;
      ASSERT_EQ(config->spec.ffn_dim, width) << D;
    }
  }
}

TEST(PackageConfig, ReadsADumpOfTheDataclass) {
  const auto config = ParsePackageConfig(R"({
    "mlstm_block": {"mlstm": {"proj_factor": 2.0, "round_proj_up_dim_up": true,
        "round_proj_up_to_multiple_of": 64, "_proj_up_dim": 128, "conv1d_kernel_size": 4,
        "qkv_proj_blocksize": 4, "num_heads": 2, "embedding_dim": 64, "bias": false, "dropout": 0.0,
        "context_length": 32, "_num_blocks": 2, "_inner_embedding_dim": 128},
      "_num_blocks": 2, "_block_idx": null},
    "slstm_block": {"slstm": {"hidden_size": 64, "num_heads": 2, "num_states": 4, "backend": "vanilla",
        "function": "slstm", "bias_init": "powerlaw_blockdependent", "recurrent_weight_init": "zeros",
        "_block_idx": null, "_num_blocks": 2, "num_gates": 4, "gradient_recurrent_cut": false,
        "gradient_recurrent_clipval": null, "forward_clipval": null, "batch_size": 8,
        "input_shape": "BSGNH", "internal_input_shape": "SBNGH", "output_shape": "BNSH", "constants": {},
        "dtype": "bfloat16", "dtype_b": "float32", "dtype_r": "bfloat16", "dtype_w": "bfloat16",
        "dtype_g": "bfloat16", "dtype_s": "bfloat16", "dtype_a": "float32",
        "enable_automatic_mixed_precision": true, "initial_val": 0.0, "embedding_dim": 64,
        "conv1d_kernel_size": 4, "group_norm_weight": true, "dropout": 0.0},
      "feedforward": {"proj_factor": 1.3, "round_proj_up_dim_up": true, "round_proj_up_to_multiple_of": 64,
        "_proj_up_dim": 0, "act_fn": "gelu", "embedding_dim": -1, "dropout": 0.0, "bias": false,
        "ff_type": "ffn_gated", "_num_blocks": 1},
      "_num_blocks": 2, "_block_idx": null},
    "context_length": 32, "num_blocks": 2, "embedding_dim": 64, "add_post_blocks_norm": true,
    "bias": false, "dropout": 0.0, "slstm_at": [1], "_block_map": "0,1", "vocab_size": 64,
    "tie_weights": false, "weight_decay_on_embedding": false, "add_embedding_dropout": false})",
                                         "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->backend, SlstmBackend::kVanilla);
  EXPECT_EQ(config->spec.slstm_at, std::vector<int64_t>{1});
}

TEST(PackageConfig, PlacesSlstmBlocksAsThePackageDoes) {
  const auto blocks = [](const Json& json) {
    const auto config = Parse(json);
    EXPECT_TRUE(config.ok()) << config.status();
    return config.ok() ? config->spec.slstm_at : std::vector<int64_t>();
  };
  EXPECT_EQ(blocks(With("/slstm_at", {2, 0, 2})), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(blocks(With("/slstm_at", {-1})), std::vector<int64_t>{2});
  EXPECT_EQ(blocks(With("/slstm_at", "all")), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(blocks(With("/slstm_at", Json::array())), std::vector<int64_t>());
  EXPECT_EQ(blocks(With("/mlstm_block", nullptr)), (std::vector<int64_t>{0, 1, 2}));
}

TEST(PackageConfig, DoesNotReadBlocksThatOccurNowhere) {
  Json json = With("/slstm_block/slstm", {{"num_heads", 5}, {"function", "lstm"}});
  json["slstm_at"] = Json::array();
  ASSERT_TRUE(Parse(json).ok()) << Parse(json).status();
  EXPECT_EQ(Parse(json)->spec.slstm_num_heads, 0);
  EXPECT_EQ(Parse(json)->spec.ffn_dim, 0);
  json = With("/mlstm_block/mlstm", {{"num_heads", 5}, {"conv1d_kernel_size", 0}});
  json["slstm_at"] = "all";
  ASSERT_TRUE(Parse(json).ok()) << Parse(json).status();
  EXPECT_EQ(Parse(json)->spec.num_heads, 4);
  EXPECT_EQ(Parse(json)->spec.qk_dim, 64);
}

TEST(PackageConfig, RoundsWidthsUpOrDown) {
  Json json = With("/mlstm_block/mlstm", {{"proj_factor", 1.6}, {"round_proj_up_to_multiple_of", 16}});
  EXPECT_EQ(Parse(json)->spec.qk_dim, 112);  // 102.4
  json["mlstm_block"]["mlstm"]["round_proj_up_dim_up"] = false;
  EXPECT_EQ(Parse(json)->spec.qk_dim, 96);
  // The package makes 128 / 24 = 5 blocks of an inner width of 130.
  json = With("/mlstm_block/mlstm", {{"proj_factor", 2.03},
                                     {"round_proj_up_to_multiple_of", 1},
                                     {"num_heads", 1},
                                     {"qkv_proj_blocksize", 24}});
  EXPECT_EQ(Parse(json)->spec.qk_dim, 130);
  EXPECT_EQ(Parse(json)->spec.qkv_block_size, 26);
}

TEST(PackageConfig, NamesTheFieldThatCannotBeHonoured) {
  const std::vector<std::pair<std::string, Json>> fields = {
      {"/slstm_block/slstm/forward_clipval", 1.0},
      {"/slstm_block/slstm/function", "lstm"},
      {"/slstm_block/slstm/num_states", 2},
      {"/slstm_block/slstm/num_gates", 3},
      {"/slstm_block/slstm/backend", "triton"},
      {"/slstm_block/slstm/num_heads", 5},
      {"/slstm_block/slstm/bias_init", "ones"},
      {"/slstm_block/slstm/constants", {{"a", 1}}},
      {"/slstm_block/slstm/initial_val", 0.5},
      {"/slstm_block/slstm/input_shape", "SBGNH"},
      {"/slstm_block/slstm/internal_input_shape", "SBGNH"},
      {"/slstm_block/slstm/output_shape", "SBH"},
      {"/slstm_block/slstm/gradient_recurrent_clipval", 0.5},
      {"/slstm_block/slstm/conv1d_kernel_size", -1},
      {"/slstm_block/slstm/unheard_of", 1},
      {"/slstm_block/feedforward/act_fn", "swish"},
      {"/slstm_block/feedforward/ff_type", "ffn"},
      {"/slstm_block/feedforward/dropout", 1.0},
      {"/slstm_block/feedforward/proj_factor", 1e9},
      {"/slstm_block/unheard_of", 1},
      {"/mlstm_block/mlstm/conv1d_kernel_size", 0},
      {"/mlstm_block/mlstm/channel_mixing", true},
      {"/mlstm_block/mlstm/num_heads", 3},
      {"/mlstm_block/mlstm/qkv_proj_blocksize", 40},
      {"/mlstm_block/mlstm/proj_factor", 0},
      {"/mlstm_block/mlstm/unheard_of", 1},
      {"/mlstm_block/unheard_of", 1},
      {"/slstm_at", {3}},
      {"/slstm_at", {-4}},
      {"/slstm_at", {18446744073709551615u}},
      {"/slstm_at", {1.5}},
      {"/slstm_at", "some"},
      {"/slstm_block", nullptr},
      {"/slstm_block", 7},
      {"/vocab_size", nullptr},
      {"/vocab_size", -1},
      {"/num_blocks", 1 << 20},
      {"/embedding_dim", "64"},
      {"/bias", 1},
      {"/dropout", -0.5},
      {"/unheard_of", 1},
  };
  for (const auto& [path, value] : fields) {
    const absl::Status status = Parse(With(path, value)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path << " = " << value;
    std::string name = path.substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    EXPECT_TRUE(Contains(status, "\"" + name + "\"")) << path << ": " << status;
  }
  EXPECT_EQ(ParsePackageConfig("{", "c.json").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ParsePackageConfig("[]", "c.json").status().code(), absl::StatusCode::kInvalidArgument);
  // All at once.
  Json json = With("/slstm_block/slstm/function", "lstm");
  json["dropout"] = 2;
  EXPECT_TRUE(Contains(Parse(json).status(), "function"));
  EXPECT_TRUE(Contains(Parse(json).status(), "dropout"));
}

TEST(PackageConfig, LeavesOutTheFeedForwardOnlyWhereItIsNull) {
  EXPECT_EQ(Parse(With("/slstm_block/feedforward", nullptr))->spec.ffn_dim, 0);
  EXPECT_EQ(Parse(With("/slstm_block/feedforward", Json::object()))->spec.ffn_dim, 128);
}

TEST(PackageConfig, IsRecognisedByItsBlocks) {
  EXPECT_TRUE(IsPackageConfig(R"({"mlstm_block": {}})"));
  EXPECT_TRUE(IsPackageConfig(R"({"slstm_block": null})"));
  EXPECT_FALSE(IsPackageConfig(R"({"model_type": "xlstm", "slstm_block": null})"));
  EXPECT_FALSE(IsPackageConfig(R"({"hidden_size": 64})"));
  EXPECT_FALSE(IsPackageConfig("[1"));
}

TEST(CheckExpressibleInPackage, NamesWhatThePackageHasNot) {
  const auto refusal = [](void (*change)(ModelSpec*)) {
    ModelSpec spec = MixedPaperSpec();
    change(&spec);
    const absl::Status status = CheckExpressibleInPackage(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return status;
  };
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->family = Family::kLarge; }), "XLSTM_LARGE"));
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->norm_eps = 1e-6; }), "norm_eps"));
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->cell_eps = 1e-5; }), "cell_eps"));
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->logit_soft_cap = 30; }), "logit_soft_cap"));
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->gate_soft_cap = 15; }), "gate_soft_cap"));
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->input_gate = InputGate::kSigmoid; }), "SIGMOID"));
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->conv_kernel = 1; }), "conv_kernel"));
  EXPECT_TRUE(Contains(refusal([](ModelSpec* s) { s->slstm_conv_kernel = 1; }), "slstm_conv_kernel"));
}

TEST(SettingsThePackageLacks, NamesEverySettingThatIsLeftOut) {
  ModelSpec spec = MixedPaperSpec();
  EXPECT_EQ(SettingsThePackageLacks(spec), std::vector<std::string>{});
  spec.dropout = spec.embedding_dropout = 0.1;
  spec.slstm_gradient_clip = 1;
  EXPECT_EQ(SettingsThePackageLacks(spec), std::vector<std::string>{});
  spec.embedding_dropout = 0.3;
  spec.slstm_gradient_clip = 0.5;
  spec.slstm_bias_init = SlstmBiasInit::kZero;
  spec.igate_bias_init = -2;
  spec.normalizer_gradient = NormalizerGradient::kFrozen;
  const std::vector<std::string> settings = SettingsThePackageLacks(spec);
  ASSERT_EQ(settings.size(), 5u);
  for (const char* field : {"embedding_dropout = 0.3", "slstm_gradient_clip = 0.5", "slstm_bias_init = ZEROS",
                            "igate_bias_init = -2", "normalizer_gradient = FROZEN"}) {
    EXPECT_TRUE(std::any_of(settings.begin(), settings.end(), [&](const std::string& setting) {
      return setting.find(field) != std::string::npos;
    })) << field;
  }
}

TEST(PackageConfig, ACutGradientNeedsNoLimit) {
  Json json = With("/slstm_block/slstm/gradient_recurrent_cut", true);
  json["slstm_block"]["slstm"]["gradient_recurrent_clipval"] = 10;
  const auto config = Parse(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->spec.slstm_gradient_cut);
  EXPECT_EQ(config->spec.slstm_gradient_clip, 0);
}
}  // namespace
}  // namespace carousel
