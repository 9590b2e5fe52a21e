#include "core/model/spec.h"

#include <string>
#include <utility>
#include <vector>

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

// xLSTM paper (arXiv:2405.04517), vocabulary 50304: per block and in all, without and with sLSTM blocks.
struct PublishedPaper {
  const char* name;
  int64_t D, num_blocks;
  int64_t mlstm_block, slstm_block;
  int64_t num_parameters;
  std::vector<int64_t> slstm_at;
  int64_t num_parameters_mixed;
};
const std::vector<PublishedPaper>& PublishedPapers() {
  static const auto& models = *new std::vector<PublishedPaper>{
      {"125M", 768, 24, 3605768, 3548160, 163806144, {3, 20}, 163690928},
      {"350M", 1024, 48, 6380552, 6238208, 409290112, {3, 5, 7, 40, 42, 44}, 408436048},
      {"760M", 1536, 48, 14289416, 14174208, 840427392, {3, 5, 7, 40, 42, 44}, 839736144},
      {"1.3B", 2048, 48, 25344008, 24928256, 1422559616, {3, 5, 7, 40, 42, 44}, 1420065104},
      {"2.7B", 2560, 64, 39544328, 38696960, 2788396032, {}, 2788396032},
  };
  return models;
}
ModelSpec SpecOf(const PublishedPaper& p) {
  ModelSpec spec;
  spec.family = Family::kPaper;
  spec.vocab_size = 50304;
  spec.embedding_dim = p.D;
  spec.num_blocks = p.num_blocks;
  spec.num_heads = 4;
  spec.qk_dim = spec.v_dim = ProjectionDim(p.D, 2.0, 64);
  return spec;
}
// With sLSTM blocks in the places of some mLSTM blocks.
ModelSpec WithSlstm(ModelSpec spec, std::vector<int64_t> slstm_at) {
  spec.slstm_at = std::move(slstm_at);
  spec.slstm_num_heads = spec.num_heads;
  if (spec.family == Family::kPaper) {
    spec.slstm_conv_kernel = 4;
    spec.ffn_dim = FfnDim(spec.embedding_dim, 1.3);
  }
  return spec;
}

TEST(NumParameters, EqualsThePublishedSizesOfThePaperFamily) {
  for (const PublishedPaper& p : PublishedPapers()) {
    ModelSpec spec = SpecOf(p);
    EXPECT_EQ(NumParameters(spec), p.num_parameters) << p.name;
    EXPECT_EQ(NumParameters(WithSlstm(spec, p.slstm_at)), p.num_parameters_mixed) << p.name;
    // One block more.
    const int64_t without = NumParameters(WithSlstm(spec, {0}));
    spec.num_blocks += 1;
    EXPECT_EQ(NumParameters(WithSlstm(spec, {0})) - without, p.mlstm_block) << p.name;
    EXPECT_EQ(NumParameters(WithSlstm(spec, {0, 1})) - without, p.slstm_block) << p.name;
    spec.tie_embeddings = true;
    EXPECT_EQ(NumParameters(spec), p.num_parameters + p.mlstm_block - 50304 * p.D) << p.name;
  }
}

// Small models of both families that differ in everything that decides which parameters there are.
std::vector<std::pair<std::string, ModelSpec>> VariedSpecs() {
  std::vector<std::pair<std::string, ModelSpec>> specs;
  const auto add = [&](const std::string& name, ModelSpec spec, const auto& change) {
    change(spec);
    specs.emplace_back(name, std::move(spec));
  };
  const ModelSpec large = testing::TinySpec();
  add("large", large, [](ModelSpec&) {});
  add("large, tied", large, [](ModelSpec& s) { s.tie_embeddings = true; });
  for (const bool use_bias : {false, true}) {
    for (const bool add_out_norm : {false, true}) {
      const std::string name = std::string(use_bias ? ", biases" : "") + (add_out_norm ? ", out norm" : "");
      const auto change = [&](ModelSpec& s) {
        s.use_bias = use_bias;
        s.add_out_norm = add_out_norm;
      };
      add("large" + name, large, change);
      add("large 1:1" + name, WithSlstm(large, {1}), change);
      add("large 0:1" + name, WithSlstm(large, {0, 1}), change);
    }
  }
  add("large 1:1, convolution, plain norm, three heads", WithSlstm(large, {0}), [](ModelSpec& s) {
    s.slstm_conv_kernel = 3;
    s.slstm_norm_weight = false;
    s.slstm_num_heads = 3;
  });
  ModelSpec paper = large;
  paper.family = Family::kPaper;
  paper.num_blocks = 3;
  paper.qk_dim = paper.v_dim = 30;
  paper.ffn_dim = 0;
  paper.qkv_block_size = 5;
  add("paper", paper, [](ModelSpec&) {});
  add("paper, one tap, blocks of 1", paper, [](ModelSpec& s) { s.conv_kernel = s.qkv_block_size = 1; });
  add("paper, one block", paper, [](ModelSpec& s) { s.qkv_block_size = 30; });
  add("paper, biases, tied", paper, [](ModelSpec& s) { s.use_bias = s.tie_embeddings = true; });
  add("paper 2:1", WithSlstm(paper, {1}), [](ModelSpec&) {});
  add("paper 2:1, all biases", WithSlstm(paper, {1}), [](ModelSpec& s) { s.use_bias = s.ffn_bias = true; });
  add("paper 2:1, no feed-forward", WithSlstm(paper, {2}), [](ModelSpec& s) { s.ffn_dim = 0; });
  add("paper 1:2, no convolution, plain norm, four heads, no out norm", WithSlstm(paper, {0, 2}),
      [](ModelSpec& s) {
        s.slstm_conv_kernel = 0;
        s.slstm_norm_weight = s.add_out_norm = false;
        s.slstm_num_heads = 4;
      });
  add("paper 0:1, feed-forward biases", WithSlstm(paper, {0, 1, 2}),
      [](ModelSpec& s) { s.use_bias = s.ffn_bias = true; });
  return specs;
}

TEST(NumParameters, EqualsWhatTheModelRegisters) {
  for (const auto& [name, spec] : VariedSpecs()) {
    ParamStore params(DType::kF32, 1, 0);
    const LanguageModel model(spec, params, false);
    EXPECT_EQ(NumParameters(spec), params.num_parameters()) << name;
  }
}

TEST(ProjectionDim, RoundsUpToAMultiple) {
  EXPECT_EQ(ProjectionDim(192, 2.0, 64), 384);
  EXPECT_EQ(ProjectionDim(100, 2.0, 64), 256);
  EXPECT_EQ(ProjectionDim(100, 2.0, 1), 200);
  EXPECT_EQ(ProjectionDim(768, 1.3, 64), 1024);
  EXPECT_EQ(ProjectionDim(2560, 1.3, 64), 3328);  // the product is a multiple: not one more
  EXPECT_EQ(ProjectionDim(3, 1e-12, 64), 64);
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

// Every product of a forward pass, counted one by one; the backward pass has two for each.
TEST(TrainFlopsPerToken, CountsEveryProductOfMixedModels) {
  ModelSpec paper;
  paper.family = Family::kPaper;
  paper.vocab_size = 100;
  paper.embedding_dim = 12;
  paper.num_blocks = 3;
  paper.num_heads = 2;
  paper.qk_dim = paper.v_dim = 20;
  paper.qkv_block_size = 5;
  paper.conv_kernel = 3;
  const double head = 2 * 12 * 100;
  const double mlstm = 2 * 12 * 40 + 2 * 20 * 12     // up, down
                       + 20 * 2 * 3                  // convolution: 20 columns of 3 taps
                       + 3 * (20 / 5) * (2 * 5 * 5)  // q, k, v: blocks of 5
                       + 2 * (2 * 60 * 2);           // two gates of two heads from [q|k|v]
  const double cells = TrainFlopsPerToken(paper, 64) / 3 - head - 3 * mlstm;
  EXPECT_GT(cells, 3 * 2 * (4 * 10 * 10));  // at least: a step of the recurrence touches C twice per head
  const double cell = cells / 3;

  ModelSpec mixed = WithSlstm(paper, {1});
  mixed.slstm_num_heads = 3;
  mixed.slstm_conv_kernel = 4;
  mixed.ffn_dim = 7;
  const double slstm = 2 * 4 * 3 * (2 * 4 * 4)  // input and recurrent maps: 4 gates of 3 heads
                       + 12 * 2 * 4;            // convolution
  const double ffn = 3 * (2 * 12 * 7);
  EXPECT_DOUBLE_EQ(TrainFlopsPerToken(mixed, 64), 3 * (head + 2 * (mlstm + cell) + slstm + ffn));
  // In the large family every block has a feed-forward, and an sLSTM mixer costs the same.
  ModelSpec large = mixed;
  large.family = Family::kLarge;
  large.slstm_at = {0, 1, 2};
  EXPECT_DOUBLE_EQ(TrainFlopsPerToken(large, 64), 3 * (head + 3 * (slstm + ffn)));
  // The sLSTM's arithmetic does not depend on the length.
  EXPECT_EQ(TrainFlopsPerToken(large, 1), TrainFlopsPerToken(large, 1 << 20));
}
}  // namespace
}  // namespace carousel
