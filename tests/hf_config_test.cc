// Configs of Transformers and of the reference package, and tokenizer files.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "checkpoints/hf_config.h"
#include "core/base/int_math.h"
#include "core/text/hf_tokenizer_files.h"
#include "core/text/tokenizer.h"
#include "tests/hf_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::ExportableSpec;
using Json = nlohmann::json;

absl::StatusOr<ModelFileConfig> Parse(ConfigDialect dialect, const std::string& text) {
  return ParseModelConfig(dialect, text, "config.json");
}
ModelSpec MustParse(ConfigDialect dialect, const std::string& text) {
  const auto config = Parse(dialect, text);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? config->spec : ModelSpec{};
}

TEST(ReferenceFfnDim, RoundsAsThePublicImplementation) {
  // Known widths of published models and of int(((d * f + 63) // 64) * 64).
  EXPECT_EQ(ReferenceFfnDim(64, 2.6667, 64), 192);
  EXPECT_EQ(ReferenceFfnDim(768, 2.667, 64), 2048);  // a true ceiling gives 2112
  EXPECT_EQ(ReferenceFfnDim(1024, 2.667, 64), 2752);
  EXPECT_EQ(ReferenceFfnDim(1536, 2.667, 64), 4096);
  EXPECT_EQ(ReferenceFfnDim(2048, 2.667, 64), 5504);
  EXPECT_EQ(ReferenceFfnDim(2560, 2.667, 64), 6848);
  EXPECT_EQ(ReferenceFfnDim(3072, 2.6667, 64), 8192);
  EXPECT_EQ(ReferenceFfnDim(3072, 2.667, 64), 8256);
  EXPECT_EQ(ReferenceFfnDim(4096, 2.667, 64), 10944);
  EXPECT_EQ(ReferenceFfnDim(100, 1.5, 1), 150);
  EXPECT_EQ(ReferenceFfnDim(100, 1.501, 1), 150);
}

TEST(ReferenceConfig, FillsTheDefaultsOfThePackage) {
  const auto config = Parse(ConfigDialect::kReference,
                            R"({"embedding_dim": 3072, "num_heads": 4, "num_blocks": 2, "vocab_size": 100})");
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  EXPECT_EQ(spec.qk_dim, 1536);
  EXPECT_EQ(spec.v_dim, 3072);
  EXPECT_EQ(spec.ffn_dim, 8192);  // factor 2.6667
  EXPECT_FALSE(spec.use_bias);
  EXPECT_TRUE(spec.add_out_norm);
  EXPECT_EQ(spec.gate_soft_cap, 15);
  EXPECT_EQ(spec.logit_soft_cap, 30);
  EXPECT_EQ(spec.chunk_length, 64);
  EXPECT_EQ(spec.normalizer_gradient, NormalizerGradient::kFrozen);  // the default kernel is a Triton kernel
  EXPECT_FALSE(config->fused_weights);
}

TEST(TransformersConfig, FillsTheDefaultsOfTransformers) {
  const ModelSpec spec = MustParse(ConfigDialect::kTransformers, R"({"model_type": "xlstm"})");
  EXPECT_EQ(spec.vocab_size, 50304);
  EXPECT_EQ(spec.embedding_dim, 4096);
  EXPECT_EQ(spec.num_blocks, 32);
  EXPECT_EQ(spec.num_heads, 8);
  EXPECT_EQ(spec.ffn_dim, 10944);
  EXPECT_EQ(NumParameters(spec), 6865424896);
}

TEST(TransformersConfig, EitherNameOfAWidthServesAndBothMustAgree) {
  EXPECT_EQ(
      MustParse(ConfigDialect::kTransformers, R"({"embedding_dim": 128, "num_blocks": 3, "num_heads": 2})")
          .num_blocks,
      3);
  const auto both =
      Parse(ConfigDialect::kTransformers, R"({"hidden_size": 128, "embedding_dim": 256, "num_heads": 2})");
  EXPECT_TRUE(Contains(both.status(), "hidden_size")) << both.status();
}

TEST(Configs, NullMeansNoSoftCapAndZeroIsRefused) {
  const std::string base = R"("embedding_dim": 64, "num_heads": 2, "num_blocks": 1, "vocab_size": 9, )";
  EXPECT_EQ(MustParse(ConfigDialect::kReference, "{" + base + R"("gate_soft_cap": null})").gate_soft_cap, 0);
  const auto zero = Parse(ConfigDialect::kReference, "{" + base + R"("output_logit_soft_cap": 0})");
  EXPECT_TRUE(Contains(zero.status(), "output_logit_soft_cap")) << zero.status();
}

TEST(Configs, NameEveryFieldThatCannotBeHonoured) {
  const auto config = Parse(ConfigDialect::kReference, R"({
    "embedding_dim": 64, "num_heads": 3, "num_blocks": 0, "vocab_size": "many", "tie_weights": true,
    "slstm_at": [1], "norm_eps": -1, "weight_mode": "both", "rope_theta": 1, "ffn_proj_factor": 1e30,
    "qk_dim_factor": [], "use_bias": 1, "chunkwise_kernel": "chunkwise--native_siging"})");
  ASSERT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* field :
       {"num_heads", "num_blocks", "vocab_size", "tie_weights", "slstm_at", "norm_eps", "weight_mode",
        "rope_theta", "ffn_proj_factor", "qk_dim_factor", "use_bias", "chunkwise_kernel"}) {
    EXPECT_TRUE(Contains(config.status(), std::string("\"") + field + "\"")) << field << "\n"
                                                                             << config.status();
  }
}

TEST(Configs, RefuseWhatIsNoJsonObject) {
  for (const char* text : {"", "{", "[]", "null", "{\"a\": }", "\xff\xfe", "3"}) {
    EXPECT_EQ(Parse(ConfigDialect::kReference, text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(Configs, RefuseNumbersBeyondAllBounds) {
  for (const char* value :
       {"1e300", "18446744073709551615", "-9223372036854775808", "0.5", "true", "\"64\""}) {
    const auto config = Parse(ConfigDialect::kReference,
                              std::string(R"({"num_heads": 2, "num_blocks": 1, "vocab_size": 9,)") +
                                  "\"embedding_dim\": " + value + "}");
    EXPECT_TRUE(Contains(config.status(), "embedding_dim")) << value;
  }
}

TEST(TransformersConfigJson, ReadsBackAsTheSameModel) {
  ModelSpec spec = ExportableSpec();
  spec.gate_soft_cap = 7.5;
  spec.cell_eps = 3e-5;
  spec.use_bias = true;
  const std::string text = TransformersConfigJson(spec, SpecialTokens{}, DType::kF32);
  const auto config = Parse(ConfigDialect::kTransformers, text);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.qk_dim, spec.qk_dim);
  EXPECT_EQ(config->spec.v_dim, spec.v_dim);
  EXPECT_EQ(config->spec.ffn_dim, spec.ffn_dim);
  EXPECT_EQ(config->spec.gate_soft_cap, 7.5);
  EXPECT_EQ(config->spec.cell_eps, 3e-5);
  EXPECT_TRUE(config->spec.use_bias);
  EXPECT_EQ(config->tokens.bos, 256);
  EXPECT_EQ(config->tokens.eos, std::vector<int64_t>{256});
  EXPECT_EQ(config->tokens.pad, 257);
}

TEST(TransformersConfigJson, SaysWhatTheEnginesRead) {
  const Json json = Json::parse(TransformersConfigJson(ExportableSpec(), SpecialTokens{}, DType::kBF16));
  EXPECT_EQ(json["hidden_size"], 128);
  EXPECT_EQ(json["embedding_dim"], 128);
  EXPECT_EQ(json["num_hidden_layers"], 2);
  EXPECT_EQ(json["num_blocks"], 2);
  EXPECT_EQ(json["torch_dtype"], "bfloat16");
  EXPECT_EQ(json["dtype"], "bfloat16");
  EXPECT_EQ(json["chunkwise_kernel"], "chunkwise--native_autograd");
  EXPECT_EQ(json["mode"], "inference");
  EXPECT_EQ(json["return_last_states"], true);
  EXPECT_TRUE(json["gate_soft_cap"].is_number_float());  // strict readers refuse an integer
}

TEST(TransformersConfigJson, ReproducesEveryWidth) {
  ModelSpec spec = ExportableSpec();
  for (int64_t d = 128; d <= 8192; d += 64) {
    for (const int64_t ffn : {FfnDim(d, 2.667), d + 64, d + 1, 3 * d - 7}) {
      spec.embedding_dim = d;
      spec.ffn_dim = ffn;
      spec.num_heads = 1;
      spec.qk_dim = 64 * (1 + d % 7);
      spec.v_dim = RoundUp(d, 64) + 64;
      ASSERT_TRUE(CheckExpressibleInTransformers(spec).ok()) << d << " " << ffn;
      const ModelSpec read =
          MustParse(ConfigDialect::kTransformers, TransformersConfigJson(spec, SpecialTokens{}, DType::kF32));
      ASSERT_EQ(read.ffn_dim, ffn) << d;
      ASSERT_EQ(read.qk_dim, spec.qk_dim) << d;
      ASSERT_EQ(read.v_dim, spec.v_dim) << d;
    }
  }
}

TEST(CheckExpressibleInTransformers, NamesEverySettingThatCannotBe) {
  ModelSpec spec = ExportableSpec();
  EXPECT_TRUE(CheckExpressibleInTransformers(spec).ok());
  spec.qk_dim = 32;
  spec.v_dim = 96;
  spec.input_gate = InputGate::kSigmoid;
  spec.add_out_norm = false;
  spec.gate_soft_cap = 0;
  spec.logit_soft_cap = 0;
  const absl::Status status = CheckExpressibleInTransformers(spec);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  for (const char* what : {"qk_dim_factor = 32", "v_dim_factor = 96", "SIGMOID", "add_out_norm",
                           "gate_soft_cap", "logit_soft_cap"}) {
    EXPECT_TRUE(Contains(status, what)) << what << "\n" << status;
  }
}

TEST(ByteCharacter, IsAPermutationOfDistinctCharacters) {
  std::set<std::string> seen;
  for (int byte = 0; byte < 256; ++byte) seen.insert(ByteCharacter(byte));
  EXPECT_EQ(seen.size(), 256u);
  EXPECT_EQ(ByteCharacter('A'), "A");
  EXPECT_EQ(ByteCharacter(' '), "\xc4\xa0");   // U+0120, as in every GPT-2 vocabulary
  EXPECT_EQ(ByteCharacter('\n'), "\xc4\x8a");  // U+010A
  EXPECT_EQ(ByteCharacter(0xAD), "\xc5\x83");  // U+0143, the last one
}

TEST(ByteTokenizerFiles, DescribeTheByteTokenizer) {
  for (const auto& [name, content] : ByteTokenizerFiles()) {
    const Json json = Json::parse(content, nullptr, false);
    ASSERT_TRUE(json.is_object()) << name;
    if (name != "tokenizer.json") continue;
    EXPECT_TRUE(CheckIsByteTokenizer(content).ok());
    EXPECT_EQ(json["model"]["vocab"].size(), 256u);
    EXPECT_EQ(json["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"][0], ByteTokenizer::kEod);
  }
}

TEST(CheckIsByteTokenizer, RefusesOtherTokenizers) {
  const std::string good = ByteTokenizerFiles()[0].second;
  const auto refused = [&](const std::function<void(Json&)>& change) {
    Json json = Json::parse(good);
    change(json);
    return !CheckIsByteTokenizer(json.dump()).ok();
  };
  EXPECT_TRUE(refused([](Json& j) { j["model"]["type"] = "WordPiece"; }));
  EXPECT_TRUE(refused([](Json& j) { j["model"]["merges"].push_back("a b"); }));
  EXPECT_TRUE(refused([](Json& j) { j["model"]["vocab"]["A"] = 66; }));
  EXPECT_TRUE(refused([](Json& j) { j["normalizer"] = {{"type", "NFC"}}; }));
  EXPECT_TRUE(refused([](Json& j) { j["added_tokens"][0]["id"] = 300; }));
  EXPECT_FALSE(CheckIsByteTokenizer("[]").ok());
  EXPECT_FALSE(CheckIsByteTokenizer("not json").ok());
}
}  // namespace
}  // namespace carousel
