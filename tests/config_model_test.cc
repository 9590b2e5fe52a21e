// The model section of a config: defaults by family, what a model has no use for, blocks and sizes that fit,
// and the counts of the shipped recipes.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "configs/load.h"

namespace carousel {
namespace {

constexpr char kPaper[] =
    "model { family: XLSTM_PAPER embedding_dim: 192 num_blocks: 6 num_heads: 4 slstm_at: [1, 3] }\n";
constexpr char kLarge[] = "model { embedding_dim: 192 num_blocks: 6 num_heads: 4 }\n";

absl::StatusOr<RunSpec> Load(const std::string& text, const std::vector<std::string>& sets = {}) {
  return LoadRunFromText(text, "test.textproto", {.sets = sets});
}
ModelSpec SpecOf(const std::string& text, const std::vector<std::string>& sets = {}) {
  const absl::StatusOr<RunSpec> run = Load(text, sets);
  EXPECT_TRUE(run.ok()) << run.status();
  return run.ok() ? run->model : ModelSpec();
}
std::string ErrorOf(const std::string& text, const std::vector<std::string>& sets = {}) {
  const absl::StatusOr<RunSpec> run = Load(text, sets);
  EXPECT_FALSE(run.ok()) << "accepted: " << text;
  if (run.ok()) return "";
  EXPECT_TRUE(absl::IsInvalidArgument(run.status()));
  return std::string(run.status().message());
}
bool Says(const std::string& message, const std::string& part) {
  if (message.find(part) != std::string::npos) return true;
  ADD_FAILURE() << "\"" << part << "\" is not in:\n" << message;
  return false;
}

TEST(ModelConfig, DefaultsOfThePaperFamilyAreThoseOfItsPackage) {
  const ModelSpec spec = SpecOf(kPaper);
  EXPECT_EQ(spec.family, Family::kPaper);
  EXPECT_EQ(spec.qk_dim, 384);
  EXPECT_EQ(spec.v_dim, 384);
  EXPECT_EQ(spec.conv_kernel, 4);
  EXPECT_EQ(spec.qkv_block_size, 4);
  EXPECT_EQ(spec.ffn_dim, 256);  // 64 * ceil(192 * 1.3 / 64)
  EXPECT_EQ(spec.norm_eps, 1e-5);
  EXPECT_EQ(spec.cell_eps, 1e-6);
  EXPECT_EQ(spec.gate_soft_cap, 0);
  EXPECT_EQ(spec.logit_soft_cap, 0);
  EXPECT_EQ(spec.igate_bias_init, 0);
  EXPECT_EQ(spec.igate_bias_std, 0.1);
  EXPECT_FALSE(spec.use_bias || spec.ffn_bias || spec.tie_embeddings);
  EXPECT_TRUE(spec.add_out_norm);
  EXPECT_EQ(spec.slstm_at, (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(spec.slstm_num_heads, 4);
  EXPECT_EQ(spec.slstm_conv_kernel, 4);
  EXPECT_TRUE(spec.slstm_norm_weight);
  EXPECT_EQ(spec.slstm_bias_init, SlstmBiasInit::kPowerLaw);
  EXPECT_EQ(spec.slstm_recurrent_init, RecurrentInit::kZero);
  EXPECT_EQ(spec.slstm_gradient_clip, 0);
  EXPECT_FALSE(spec.slstm_gradient_cut);
  EXPECT_EQ(spec.dropout + spec.ffn_dropout + spec.embedding_dropout, 0);
}

TEST(ModelConfig, DefaultsOfTheLargeFamilyAreUnchangedBySlstmBlocks) {
  const ModelSpec plain = SpecOf(kLarge), mixed = SpecOf(kLarge, {"model.slstm_at=[2, 5]"});
  for (const ModelSpec& spec : {plain, mixed}) {
    EXPECT_EQ(spec.family, Family::kLarge);
    EXPECT_EQ(spec.qk_dim, 96);
    EXPECT_EQ(spec.v_dim, 192);
    EXPECT_EQ(spec.ffn_dim, 576);
    EXPECT_EQ(spec.norm_eps, 1e-6);
    EXPECT_EQ(spec.gate_soft_cap, 15);
    EXPECT_EQ(spec.logit_soft_cap, 30);
    EXPECT_EQ(spec.igate_bias_init, -10);
    EXPECT_EQ(spec.igate_bias_std, 0);
  }
  EXPECT_TRUE(plain.slstm_at.empty());
  EXPECT_EQ(mixed.slstm_at, (std::vector<int64_t>{2, 5}));
  EXPECT_EQ(mixed.slstm_num_heads, 4);
  EXPECT_EQ(mixed.slstm_conv_kernel, 0);
}

TEST(ModelConfig, EveryGivenFieldReachesTheSpec) {
  const ModelSpec spec = SpecOf(kPaper, {"model.inner_dim=100",
                                         "model.num_heads=5",
                                         "model.qkv_block_size=25",
                                         "model.conv_kernel=3",
                                         "model.slstm_num_heads=3",
                                         "model.slstm_conv_kernel=0",
                                         "model.slstm_norm_weight=false",
                                         "model.slstm_bias_init=STANDARD",
                                         "model.slstm_recurrent_init=STANDARD",
                                         "model.slstm_gradient_clip=10",
                                         "model.use_bias=true",
                                         "model.ffn_bias=true",
                                         "model.tie_embeddings=true",
                                         "model.dropout=0.1",
                                         "model.ffn_dropout=0.2",
                                         "model.embedding_dropout=0.3",
                                         "model.igate_bias_init=-1",
                                         "model.igate_bias_std=0.5",
                                         "model.logit_soft_cap=20",
                                         "model.ffn_dim=77",
                                         "model.norm_eps=1e-4"});
  EXPECT_EQ(spec.qk_dim, 100);
  EXPECT_EQ(spec.v_dim, 100);
  EXPECT_EQ(spec.num_heads, 5);
  EXPECT_EQ(spec.qkv_block_size, 25);
  EXPECT_EQ(spec.conv_kernel, 3);
  EXPECT_EQ(spec.slstm_num_heads, 3);
  EXPECT_EQ(spec.slstm_conv_kernel, 0);
  EXPECT_FALSE(spec.slstm_norm_weight);
  EXPECT_EQ(spec.slstm_bias_init, SlstmBiasInit::kStandard);
  EXPECT_EQ(spec.slstm_recurrent_init, RecurrentInit::kStandard);
  EXPECT_EQ(spec.slstm_gradient_clip, 10);
  EXPECT_TRUE(spec.use_bias && spec.ffn_bias && spec.tie_embeddings);
  EXPECT_EQ(spec.dropout, 0.1);
  EXPECT_EQ(spec.ffn_dropout, 0.2);
  EXPECT_EQ(spec.embedding_dropout, 0.3);
  EXPECT_EQ(spec.igate_bias_init, -1);
  EXPECT_EQ(spec.igate_bias_std, 0.5);
  EXPECT_EQ(spec.logit_soft_cap, 20);
  EXPECT_EQ(spec.ffn_dim, 77);
  EXPECT_EQ(spec.norm_eps, 1e-4);
  EXPECT_EQ(SpecOf(kPaper, {"model.slstm_bias_init=SMALL_INIT"}).slstm_bias_init, SlstmBiasInit::kSmall);
  EXPECT_EQ(SpecOf(kPaper, {"model.slstm_bias_init=ZEROS"}).slstm_bias_init, SlstmBiasInit::kZero);
  EXPECT_TRUE(SpecOf(kPaper, {"model.slstm_gradient_cut=true"}).slstm_gradient_cut);
  EXPECT_EQ(SpecOf(kLarge, {"model.igate_bias_std=0.25"}).igate_bias_std, 0.25);
}

TEST(ModelConfig, SlstmBlocksAreNamedInAnyOrderOrAllAtOnce) {
  const std::vector<int64_t> all = {0, 1, 2, 3, 4, 5}, some = {0, 2, 5};
  for (const char* text : {kPaper, kLarge}) {
    EXPECT_EQ(SpecOf(text, {"model.slstm_at=", "model.slstm_all=true"}).slstm_at, all);
    EXPECT_EQ(SpecOf(text, {"model.slstm_at=[5,2, 0]"}).slstm_at, some);
    EXPECT_EQ(SpecOf(text, {"model.slstm_at=2,0,5"}).slstm_at, some);
    EXPECT_EQ(SpecOf(text, {"model.slstm_at=4", "model.slstm_at[1]=0", "model.slstm_at[0]=2",
                            "model.slstm_at[2]=5"})
                  .slstm_at,
              some);
    EXPECT_TRUE(SpecOf(text, {"model.slstm_at=[]"}).slstm_at.empty());
    EXPECT_TRUE(SpecOf(text, {"model.slstm_at="}).slstm_at.empty());
  }
}

TEST(ModelConfig, TheInnerWidthIsAFactorOrAWidth) {
  EXPECT_EQ(SpecOf(kPaper, {"model.proj_factor=1.5"}).qk_dim, 320);  // 288, rounded up
  EXPECT_EQ(SpecOf(kPaper, {"model.proj_factor=1.5", "model.proj_multiple_of=32"}).qk_dim, 288);
  EXPECT_EQ(SpecOf(kPaper, {"model.inner_dim=512", "model.embedding_dim=256", "model.proj_factor=2"}).qk_dim,
            512);
  Says(ErrorOf(kPaper, {"model.inner_dim=400", "model.proj_factor=2"}),
       "model.inner_dim=400 contradicts model.proj_factor=2 and model.proj_multiple_of=64, which give 384");
  Says(ErrorOf(kPaper, {"model.inner_dim=400", "model.proj_multiple_of=32"}),
       "model.inner_dim=400 contradicts");
  Says(ErrorOf(kPaper, {"model.proj_factor=1000", "model.embedding_dim=8192"}),
       "gives a width of 8192000, above");
}

TEST(ModelConfig, ResolvedTextNamesWhatIsNotUsedAndLoadsToTheSameModel) {
  const struct {
    const char* text;
    std::vector<std::string> sets;
    const char* says;
  } kCases[] = {
      {kPaper, {}, "# qk_dim_factor: not used with model.family=XLSTM_PAPER"},
      {kPaper, {}, "slstm_at: [1, 3]  # 2 of 6 blocks"},
      {kPaper, {"model.slstm_at="}, "# slstm_num_heads: not used without sLSTM blocks"},
      {kPaper, {"model.slstm_at="}, "# ffn_dim: not used without sLSTM blocks"},
      {kPaper, {"model.ffn_dim=0"}, "# ffn_dropout: not used with model.ffn_dim=0"},
      {kPaper, {"model.inner_dim=100"}, "# proj_factor: not used, inner_dim is given"},
      {kPaper, {"model.slstm_at=", "model.slstm_all=true"}, "# conv_kernel: not used where every block has"},
      {kLarge, {}, "# proj_factor: not used with model.family=XLSTM_LARGE"},
      {kLarge, {"model.slstm_all=true"}, "# gate_soft_cap: not used where every block has an sLSTM mixer"},
  };
  for (const auto& c : kCases) {
    const absl::StatusOr<RunSpec> run = Load(c.text, c.sets);
    ASSERT_TRUE(run.ok()) << run.status();
    Says(run->resolved_text, c.says);
    const absl::StatusOr<RunSpec> again = Load(run->resolved_text);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->resolved_text, run->resolved_text);
    EXPECT_EQ(NumParameters(again->model), NumParameters(run->model));
  }
}

TEST(ModelConfigErrors, AFieldThatTheModelHasNoUseForIsNamedWithTheReason) {
  const struct {
    const char* text;
    std::vector<std::string> sets;
    const char* says;
  } kCases[] = {
      {kPaper,
       {"model.qk_dim_factor=0.5"},
       "model.qk_dim_factor=0.5 has no meaning with model.family=XLSTM_PAPER"},
      {kPaper, {"model.v_dim_factor=1"}, "model.proj_factor and model.inner_dim set the width"},
      {kPaper,
       {"model.gate_soft_cap=15"},
       "model.gate_soft_cap=15 has no meaning with model.family=XLSTM_PAPER"},
      {kLarge,
       {"model.proj_factor=2"},
       "model.proj_factor=2 has no meaning with model.family=XLSTM_LARGE; leave it "
       "out, or use model.family=XLSTM_PAPER"},
      {kLarge, {"model.inner_dim=384"}, "model.inner_dim=384 has no meaning"},
      {kLarge, {"model.conv_kernel=4"}, "model.conv_kernel=4 has no meaning"},
      {kLarge, {"model.qkv_block_size=4"}, "model.qkv_block_size=4 has no meaning"},
      {kLarge, {"model.ffn_bias=true"}, "leave it out; model.use_bias is for all maps"},
      {kLarge, {"model.dropout=0.1"}, "model.dropout=0.1 has no meaning with model.family=XLSTM_LARGE"},
      {kLarge,
       {"model.slstm_num_heads=2"},
       "model.slstm_num_heads=2 has no meaning without sLSTM blocks; leave it "
       "out, or name sLSTM blocks with model.slstm_at"},
      {kLarge,
       {"model.slstm_conv_kernel=0"},
       "model.slstm_conv_kernel=0 has no meaning without sLSTM blocks"},
      {kLarge, {"model.slstm_bias_init=ZEROS"}, "model.slstm_bias_init=ZEROS has no meaning without"},
      {kLarge, {"model.slstm_recurrent_init=ZEROS"}, "model.slstm_recurrent_init=ZEROS has no meaning"},
      {kLarge, {"model.slstm_gradient_clip=1"}, "model.slstm_gradient_clip=1 has no meaning"},
      {kLarge, {"model.slstm_gradient_cut=true"}, "model.slstm_gradient_cut=true has no meaning"},
      {kLarge, {"model.slstm_norm_weight=true"}, "model.slstm_norm_weight=true has no meaning"},
      {kPaper,
       {"model.slstm_at=", "model.ffn_dim=128"},
       "model.ffn_dim=128 has no meaning without sLSTM blocks, the "
       "only ones of XLSTM_PAPER with a feed-forward"},
      {kPaper,
       {"model.ffn_dim=0", "model.ffn_bias=true"},
       "model.ffn_bias=true has no meaning with model.ffn_dim=0"},
      {kPaper,
       {"model.slstm_at=0,1,2,3,4,5", "model.qkv_block_size=4"},
       "model.qkv_block_size=4 has no meaning where every block has an sLSTM mixer"},
      {kLarge,
       {"model.slstm_all=true", "model.chunk_length=64"},
       "model.chunk_length=64 has no meaning where every"},
      {kPaper,
       {"model.slstm_at=", "model.slstm_all=true", "model.slstm_num_heads=2"},
       "model.num_heads=4 has no meaning where every block has an sLSTM mixer with model.slstm_num_heads=2"},
  };
  for (const auto& c : kCases) Says(ErrorOf(c.text, c.sets), c.says);
}

TEST(ModelConfigErrors, SlstmBlocksMustExistOnce) {
  const std::string text =
      "model { family: XLSTM_PAPER embedding_dim: 192 num_blocks: 6 num_heads: 4\n  slstm_at: [1, 6, 3, 1] }";
  const std::string error = ErrorOf(text);
  Says(error,
       "test.textproto:2:3: model.slstm_at[1]=6 is not a block: the model.num_blocks=6 blocks are counted "
       "from 0; use at most 5");
  Says(error, "test.textproto:2:3: model.slstm_at[3]=1 repeats model.slstm_at[0]; name each block once");
  Says(error, "2 problems");
  Says(ErrorOf(kPaper, {"model.slstm_at=-1"}), "--set: model.slstm_at[0]=-1 is not between 0 and 65535");
  Says(ErrorOf(kPaper, {"model.slstm_all=true"}), "give one of the two only");
  // What the blocks are is then not known: nothing is said about fields that depend on it.
  const std::string negative = ErrorOf(kPaper, {"model.slstm_at=-1", "model.slstm_num_heads=2"});
  EXPECT_EQ(negative.find("has no meaning"), std::string::npos) << negative;
  const std::string misspelt =
      ErrorOf(kPaper, {"model.family=XLSTM_PAPR", "model.slstm_at=x", "model.conv_kernel=3"});
  Says(misspelt, "did you mean XLSTM_PAPER?");
  Says(misspelt, "model.slstm_at[0] is an integer of at most 63 bits");
  EXPECT_EQ(misspelt.find("has no meaning"), std::string::npos) << misspelt;
}

TEST(ModelConfigErrors, SizesThatDoNotFitNameTheNearestOnesThatDo) {
  Says(ErrorOf(kPaper, {"model.num_heads=5", "model.slstm_num_heads=4"}),
       "model.num_heads=5 does not divide model.inner_dim=384; use 4 or 6");
  Says(ErrorOf(kPaper, {"model.qkv_block_size=5"}),
       "model.qkv_block_size=5 does not divide model.inner_dim=384; use 4 or 6");
  Says(ErrorOf(kPaper, {"model.slstm_num_heads=5"}),
       "--set: model.slstm_num_heads=5 does not divide model.embedding_dim=192; use 4 or 6");
  Says(ErrorOf(kPaper, {"model.num_heads=128"}),
       "--set: model.slstm_num_heads=128, by default model.num_heads, does not divide "
       "model.embedding_dim=192; use "
       "96 or 192");
  Says(ErrorOf(kPaper, {"model.conv_kernel=0"}),
       "model.conv_kernel=0 is not between 1 and 1024; for example 4");
  Says(ErrorOf(kPaper, {"model.slstm_conv_kernel=-1"}),
       "model.slstm_conv_kernel=-1 is not between 0 and 1024");
  Says(ErrorOf(kLarge, {"model.ffn_dim=0"}), "every block of model.family=XLSTM_LARGE has one");
  Says(ErrorOf(kPaper, {"model.slstm_gradient_cut=true", "model.slstm_gradient_clip=2"}),
       "model.slstm_gradient_clip=2 has nothing to clamp with model.slstm_gradient_cut=true");
  for (const char* rate : {"model.dropout", "model.ffn_dropout", "model.embedding_dropout"}) {
    Says(ErrorOf(kPaper, {std::string(rate) + "=1"}),
         std::string(rate) + "=1 must be at least 0 and below 1");
    Says(ErrorOf(kPaper, {std::string(rate) + "=-0.5"}), std::string(rate) + "=-0.5 must be at least 0");
  }
  Says(ErrorOf(kPaper, {"model.slstm_gradient_clip=-1"}), "model.slstm_gradient_clip=-1 must be at least 0");
  Says(ErrorOf(kPaper, {"model.slstm_at=[1"}), "model.slstm_at is a list, written like [1, 2], not \"[1\"");
  Says(ErrorOf(kPaper, {"model.slstm_at[4]=1"}),
       "model.slstm_at has 2 element(s), so the next index is [2], not [4]");
}

TEST(ModelConfig, RecipesHaveThePublishedNumbersOfParameters) {
  const struct {
    const char* recipe;
    int64_t num_parameters;
  } kSizes[] = {{"paper_125m", 163806144}, {"paper_125m_7to1", 163690928},
                {"paper_350m", 409290112}, {"paper_350m_7to1", 408436048},
                {"paper_760m", 840427392}, {"paper_760m_7to1", 839736144},
                {"paper_1b3", 1422559616}, {"paper_1b3_7to1", 1420065104},
                {"paper_2b7", 2788396032}, {"xlstm_7b_7to1", 6663901632}};
  for (const auto& size : kSizes) {
    const std::string path = std::string(CAROUSEL_SOURCE_DIR "/configs/") + size.recipe + ".textproto";
    const absl::StatusOr<RunSpec> run = LoadRun(path, {});
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(NumParameters(run->model), size.num_parameters) << path;
  }
}
}  // namespace
}  // namespace carousel
