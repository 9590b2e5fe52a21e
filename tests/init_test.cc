// Initial values: model-level rules and their independence of ranges and ranks.
#include "core/model/language_model.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {

Param NormalParam(const std::string& name, int64_t num_elems) {
  Param param;
  param.name = name;
  param.shape = {num_elems};
  param.num_elems = num_elems;
  param.init = {.rule = InitRule::kNormal, .a = 2};
  return param;
}
std::vector<double> Values(const Param& param, uint64_t seed, int64_t begin, int64_t count) {
  std::vector<double> values(static_cast<size_t>(count));
  InitialValues(param, seed, begin, count, values.data());
  return values;
}

TEST(InitialValues, AnyRangeAloneIsPartOfTheWhole) {
  const Param param = NormalParam("x", 1000);
  const std::vector<double> whole = Values(param, 5, 0, 1000);
  for (const int64_t begin : {0, 1, 2, 3, 4, 511, 998}) {
    for (const int64_t count : {0, 1, 2, 3, 7}) {
      if (begin + count > 1000) continue;
      const std::vector<double> part = Values(param, 5, begin, count);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + begin)) << begin << " " << count;
    }
  }
}

TEST(InitialValues, DependOnSeedAndName) {
  const std::vector<double> x = Values(NormalParam("x", 64), 5, 0, 64);
  const std::vector<double> y = Values(NormalParam("y", 64), 5, 0, 64);
  const std::vector<double> z = Values(NormalParam("x", 64), 6, 0, 64);
  for (size_t j = 0; j < 64; ++j) {
    EXPECT_NE(x[j], y[j]);
    EXPECT_NE(x[j], z[j]);
  }
}

TEST(InitialValues, NormalsHaveTheMomentsOfANormalDistribution) {
  constexpr int64_t kN = 1 << 20;
  const std::vector<double> x = Values(NormalParam("x", kN), 1, 0, kN);
  double mean = 0, m2 = 0, m4 = 0, neighbours = 0, within_one = 0;
  for (size_t j = 0; j < x.size(); ++j) {
    const double z = x[j] / 2;  // the deviation is 2
    mean += z;
    m2 += z * z;
    m4 += z * z * z * z;
    within_one += std::abs(z) < 1;
    if (j > 0) neighbours += z * x[j - 1] / 2;
  }
  // Four standard errors of 2^20 samples: 1/1024 for the mean, sqrt(2)/1024, sqrt(96)/1024, 1/1024,
  // 0.47/1024.
  constexpr double kError = 4.0 / 1024;
  EXPECT_NEAR(mean / kN, 0, kError);
  EXPECT_NEAR(m2 / kN, 1, 1.42 * kError);
  EXPECT_NEAR(m4 / kN, 3, 9.8 * kError);
  EXPECT_NEAR(neighbours / kN, 0, kError);
  EXPECT_NEAR(within_one / kN, 0.682689, 0.47 * kError);
}

TEST(InitialValues, LinspaceReachesBothEnds) {
  Param param = NormalParam("f", 4);
  param.init = {.rule = InitRule::kLinspace, .a = 3, .b = 6};
  EXPECT_EQ(Values(param, 1, 0, 4), (std::vector<double>{3, 4, 5, 6}));
  EXPECT_EQ(Values(param, 1, 2, 1), (std::vector<double>{5}));
  param.shape = {1};
  param.num_elems = 1;
  EXPECT_EQ(Values(param, 1, 0, 1), (std::vector<double>{3}));
}

// The published rules: small = sqrt(2 / (5 D)), wang = 2 / (num_blocks sqrt(D)).
TEST(LanguageModelInit, FollowsThePublishedRules) {
  ModelSpec spec = testing::TinySpec();
  spec.embedding_dim = 64;
  spec.num_blocks = 3;
  spec.num_heads = 4;
  spec.qk_dim = 32;
  spec.v_dim = 64;
  spec.ffn_dim = 128;
  spec.vocab_size = 96;
  spec.use_bias = true;
  ParamStore params(DType::kF32, 1, 0);
  const LanguageModel model(spec, params, /*decay_embedding=*/false);
  const double small = std::sqrt(2.0 / (5 * 64)), wang = 2.0 / 3 / 8;
  const std::string layer = "backbone.blocks.2.mlstm_layer.", ffn = "backbone.blocks.2.ffn.";
  const auto deviation = [&](const std::string& name) {
    const Param& param = params.param(params.Find(name));
    double sum = 0;
    for (const double x : Values(param, 3, 0, param.num_elems)) sum += x * x;
    return std::sqrt(sum / static_cast<double>(param.num_elems));
  };
  for (const std::string& name :
       {std::string("embedding.weight"), std::string("lm_head.weight"), layer + "q.weight",
        layer + "k.weight", layer + "v.weight", ffn + "proj_up_gate.weight", ffn + "proj_up.weight"}) {
    EXPECT_NEAR(deviation(name) / small, 1, 0.07) << name;  // 2048 or more samples
  }
  EXPECT_NEAR(deviation(layer + "out_proj.weight") / wang, 1, 0.07);
  EXPECT_NEAR(deviation(ffn + "proj_down.weight") / wang, 1, 0.07);
  const auto all = [&](const std::string& name) {
    const Param& param = params.param(params.Find(name));
    return Values(param, 3, 0, param.num_elems);
  };
  for (const char* name : {"ogate_preact.weight", "igate_preact.weight", "fgate_preact.weight", "q.bias",
                           "ogate_preact.bias", "multihead_norm.bias", "out_proj.bias"}) {
    for (const double x : all(layer + name)) ASSERT_EQ(x, 0) << name;
  }
  EXPECT_EQ(all(layer + "igate_preact.bias"), (std::vector<double>{-10, -10, -10, -10}));
  EXPECT_EQ(all(layer + "fgate_preact.bias"), (std::vector<double>{3, 4, 5, 6}));
  for (const std::string& name : {layer + "multihead_norm.weight", std::string("backbone.out_norm.weight"),
                                  std::string("backbone.blocks.0.norm_mlstm.weight"),
                                  std::string("backbone.blocks.0.norm_ffn.weight")}) {
    for (const double x : all(name)) ASSERT_EQ(x, 1) << name;
  }
}

TEST(LanguageModelInit, MatricesDecayAndNothingElse) {
  for (const bool decay_embedding : {false, true}) {
    ModelSpec spec = testing::TinySpec();
    spec.use_bias = true;
    ParamStore params(DType::kF32, 1, 0);
    const LanguageModel model(spec, params, decay_embedding);
    for (const Param& param : params.params()) {
      const bool expected = param.name == "embedding.weight" ? decay_embedding : param.shape.size() == 2;
      EXPECT_EQ(param.decay, expected) << param.name;
    }
  }
}
}  // namespace
}  // namespace carousel
