#include "core/model/spec.h"

#include "core/model/language_model.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {

struct Published {
  const char* name;
  int64_t D, num_blocks, NH, F;
  int64_t num_parameters;
  double flops_per_token;  // 0: none published
};
// xLSTM scaling laws (arXiv:2510.02228) and xLSTM 7B (arXiv:2503.13427), vocabulary 50304, context 8192.
constexpr Published kPublished[] = {
    {"164M", 768, 12, 6, 2112, 164110224, 7.66e8},
    {"406M", 1024, 24, 4, 2752, 406856896, 2.18e9},
    {"841M", 1536, 24, 4, 4160, 841496256, 4.69e9},
    {"1.4B", 2048, 24, 4, 5504, 1420839104, 8.09e9},
    {"2.8B", 2560, 32, 5, 6848, 2780449600, 1.62e10},
    {"6.9B", 4096, 32, 8, 10944, 6865424896, 4.04e10},
    {"162M, narrow ffn", 768, 12, 6, 2048, 162340752, 0},
    {"834M, narrow ffn", 1536, 24, 4, 4096, 834418368, 0},
};
ModelSpec SpecOf(const Published& p) {
  ModelSpec spec;
  spec.vocab_size = 50304;
  spec.embedding_dim = p.D;
  spec.num_blocks = p.num_blocks;
  spec.num_heads = p.NH;
  spec.qk_dim = p.D / 2;
  spec.v_dim = p.D;
  spec.ffn_dim = p.F;
  return spec;
}

TEST(NumParameters, EqualsThePublishedSizes) {
  for (const Published& p : kPublished) EXPECT_EQ(NumParameters(SpecOf(p)), p.num_parameters) << p.name;
}

TEST(NumParameters, EqualsWhatTheModelRegisters) {
  for (const bool use_bias : {false, true}) {
    for (const bool add_out_norm : {false, true}) {
      ModelSpec spec = testing::TinySpec();
      spec.use_bias = use_bias;
      spec.add_out_norm = add_out_norm;
      ParamStore params(DType::kF32, 1, 0);
      const LanguageModel model(spec, params, false);
      EXPECT_EQ(NumParameters(spec), params.num_parameters()) << use_bias << add_out_norm;
    }
  }
}

TEST(FfnDim, IsATrueCeiling) {
  for (const Published& p : kPublished) {
    if (p.flops_per_token == 0) continue;  // the width that the rounding down of other programs gives
    EXPECT_EQ(FfnDim(p.D, 2.667), p.F) << p.name;
  }
  EXPECT_EQ(FfnDim(384, 2.667), 1088);
  EXPECT_EQ(FfnDim(64, 2.6667), 192);
  EXPECT_EQ(FfnDim(64, 3), 192);
}

TEST(FfnDim, ReproducesAWidthFromItsRatio) {
  for (int64_t D = 64; D <= 8192; D += 64) {
    const int64_t F = FfnDim(D, 2.667);
    EXPECT_EQ(FfnDim(D, static_cast<double>(F) / static_cast<double>(D)), F) << D;
  }
}

TEST(TrainFlopsPerToken, AgreesWithThePublishedAccounting) {
  for (const Published& p : kPublished) {
    if (p.flops_per_token == 0) continue;
    // Published with three digits; the cell's element-wise work is counted slightly differently.
    EXPECT_NEAR(TrainFlopsPerToken(SpecOf(p), 8192) / p.flops_per_token, 1, 0.01) << p.name;
  }
}

TEST(TrainFlopsPerToken, DoesNotGrowWithTheContext) {
  const ModelSpec spec = SpecOf(kPublished[0]);
  EXPECT_EQ(TrainFlopsPerToken(spec, 64), TrainFlopsPerToken(spec, 1 << 20));
  EXPECT_LT(TrainFlopsPerToken(spec, 1), TrainFlopsPerToken(spec, 64));
}
}  // namespace
}  // namespace carousel
