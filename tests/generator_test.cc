#include "core/model/generator.h"

#include <map>

#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::RelativeL2;
using testing::TinySpec;

// ---- sampling
const std::vector<double> kLogits = {0.5, 2.0, -1.0, 2.0, 1.0};

TEST(SampleToken, GreedyTakesTheMostLikelyAndTheLowestIdOfATie) {
  EXPECT_EQ(SampleToken(kLogits, {.temperature = 0}, 0), 1);
  EXPECT_EQ(SampleToken(kLogits, {.temperature = 1, .top_k = 1}, 0), 1);
  EXPECT_EQ(SampleToken(kLogits, {.temperature = 1, .top_p = 0}, 0), 1);
}

TEST(SampleToken, DependsOnSeedAndPositionOnly) {
  int num_different = 0;
  for (int64_t position = 0; position < 50; ++position) {
    const int32_t id = SampleToken(kLogits, {.seed = 1}, position);
    EXPECT_EQ(SampleToken(kLogits, {.seed = 1}, position), id);
    num_different += SampleToken(kLogits, {.seed = 2}, position) != id;
  }
  EXPECT_GT(num_different, 10);
}

// Shares of the ids in many draws.
std::vector<double> Shares(const SamplingSpec& spec) {
  constexpr int64_t kDraws = 40000;
  std::vector<double> shares(kLogits.size(), 0);
  for (int64_t position = 0; position < kDraws; ++position) {
    shares[static_cast<size_t>(SampleToken(kLogits, spec, position))] += 1.0 / kDraws;
  }
  return shares;
}
// Softmax over the allowed ids.
std::vector<double> Softmax(double temperature, const std::vector<int>& allowed) {
  std::vector<double> p(kLogits.size(), 0);
  double sum = 0;
  for (const int id : allowed) {
    p[static_cast<size_t>(id)] = std::exp(kLogits[static_cast<size_t>(id)] / temperature);
    sum += p[static_cast<size_t>(id)];
  }
  for (double& x : p) x /= sum;
  return p;
}
void ExpectShares(const SamplingSpec& spec, const std::vector<double>& expected) {
  const std::vector<double> shares = Shares(spec);
  for (size_t id = 0; id < expected.size(); ++id) {
    // Four standard errors of 40000 draws are at most 0.01; what is excluded never occurs.
    EXPECT_NEAR(shares[id], expected[id], expected[id] == 0 ? 0 : 0.01) << "id " << id;
  }
}

TEST(SampleToken, FollowsTheSoftmaxAtItsTemperature) {
  ExpectShares({.temperature = 1}, Softmax(1, {0, 1, 2, 3, 4}));
  ExpectShares({.temperature = 0.5}, Softmax(0.5, {0, 1, 2, 3, 4}));
  ExpectShares({.temperature = 3}, Softmax(3, {0, 1, 2, 3, 4}));
}
TEST(SampleToken, TopKKeepsTheKMostLikely) {
  ExpectShares({.top_k = 3}, Softmax(1, {1, 3, 4}));
  ExpectShares({.top_k = 100}, Softmax(1, {0, 1, 2, 3, 4}));
}
TEST(SampleToken, TopPKeepsTheFewestThatReachIt) {
  // Probabilities: ids 1 and 3 0.377 each, 4 0.139, 0 0.084, 2 0.019.
  ExpectShares({.top_p = 0.5}, Softmax(1, {1, 3}));
  ExpectShares({.top_p = 0.8}, Softmax(1, {1, 3, 4}));
  ExpectShares({.top_k = 3, .top_p = 0.95}, Softmax(1, {1, 3, 4}));
}
TEST(SampleToken, NeverTakesIdsBeyondTheAllowedOnes) {
  ExpectShares({.num_allowed_ids = 3}, Softmax(1, {0, 1, 2}));
  EXPECT_EQ(SampleToken({0, 1, 9}, {.temperature = 0, .num_allowed_ids = 2}, 0), 1);
}
TEST(SampleToken, SurvivesLogitsThatAreNoNumbers) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  for (const double temperature : {0.0, 1.0}) {
    EXPECT_EQ(SampleToken({nan, -inf, 3, nan}, {.temperature = temperature}, 0), 2);
    EXPECT_EQ(SampleToken({nan, nan}, {.temperature = temperature}, 0), 0);
    EXPECT_EQ(SampleToken({0, inf, 0}, {.temperature = temperature}, 0), 1);
  }
}

// ---- generation
struct Rig {
  explicit Rig(DType compute = DType::kF64, int64_t T = 6)
      : device(CpuDevice()), bound(TinySpec(), {.compute = compute, .B = 1, .T = T}, *device) {
    testing::RandomizeWeights(bound);
  }
  // Logits after the last of `ids`, computed from all of them at once by a model bound for so many.
  std::vector<double> LastLogits(const std::vector<int32_t>& ids, int32_t reset_id) {
    const int64_t T = static_cast<int64_t>(ids.size()), V = TinySpec().vocab_size;
    BoundModel whole(TinySpec(), {.compute = bound.params().compute(), .B = 1, .T = T}, *device);
    testing::RandomizeWeights(whole);
    Batch batch;
    batch.B = 1;
    batch.T = T;
    batch.inputs = ids;
    batch.targets.assign(ids.size(), -1);
    for (const int32_t id : ids) batch.resets.push_back(id == reset_id);
    const std::vector<double> logits = testing::AllLogits(whole, batch);
    return std::vector<double>(logits.end() - V, logits.end());
  }
  std::unique_ptr<Device> device;
  BoundModel bound;
};
std::vector<int32_t> SomeIds(int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < count; ++t) ids.push_back(static_cast<int32_t>(7 * t * t % TinySpec().vocab_size));
  return ids;
}

TEST(Generator, APromptReadInPiecesGivesTheLogitsOfTheWhole) {
  Rig rig;  // pieces of 6 tokens
  Generator generator(rig.bound.model(), *rig.device);
  for (const int32_t reset_id : {-1, 7}) {
    for (const int64_t count : {1, 5, 6, 7, 12, 29}) {
      const std::vector<int32_t> ids = SomeIds(count);
      generator.Reset();
      EXPECT_LT(RelativeL2(generator.Feed(ids, reset_id), rig.LastLogits(ids, reset_id)), 1e-12) << count;
    }
  }
}

TEST(Generator, FeedingTokenByTokenContinues) {
  Rig rig;
  Generator generator(rig.bound.model(), *rig.device);
  generator.Reset();
  const std::vector<int32_t> ids = SomeIds(11);
  for (size_t t = 0; t < ids.size(); ++t) {
    const std::vector<double> logits = generator.Feed({ids[t]});
    EXPECT_LT(RelativeL2(logits, rig.LastLogits({ids.begin(), ids.begin() + t + 1}, -1)), 1e-12) << t;
  }
}

TEST(Generator, GreedyTokensAreThoseOfTheWholeSequence) {
  Rig rig;
  Generator generator(rig.bound.model(), *rig.device);
  std::vector<int32_t> text = SomeIds(4);
  const std::vector<int32_t> generated = generator.Generate(
      {.prompt = text, .max_new_tokens = 9, .sampling = {.temperature = 0, .num_allowed_ids = 17}});
  ASSERT_EQ(generated.size(), 9u);
  for (const int32_t id : generated) {
    EXPECT_EQ(id, SampleToken(rig.LastLogits(text, -1), {.temperature = 0, .num_allowed_ids = 17}, 0));
    text.push_back(id);
  }
}

TEST(Generator, TheSameSeedGivesTheSameTextWhateverCameBefore) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    Rig rig(compute);
    Generator generator(rig.bound.model(), *rig.device);
    const GenerateArgs args = {.prompt = SomeIds(8), .max_new_tokens = 20, .sampling = {.seed = 5}};
    const std::vector<int32_t> first = generator.Generate(args);
    generator.Generate({.prompt = SomeIds(3), .max_new_tokens = 5, .sampling = {.seed = 6}});
    EXPECT_EQ(generator.Generate(args), first);
    Generator another(rig.bound.model(), *rig.device);
    EXPECT_EQ(another.Generate(args), first);
  }
}

TEST(Generator, StopsAtAStopIdOrWhenTheCallerSaysSo) {
  Rig rig;
  Generator generator(rig.bound.model(), *rig.device);
  const GenerateArgs args = {.prompt = SomeIds(4), .max_new_tokens = 30, .sampling = {.seed = 1}};
  const std::vector<int32_t> all = generator.Generate(args);
  ASSERT_EQ(all.size(), 30u);
  std::vector<int32_t> seen;
  EXPECT_EQ(generator
                .Generate(args,
                          [&](int32_t id) {
                            seen.push_back(id);
                            return seen.size() < 3;
                          })
                .size(),
            3u);
  EXPECT_EQ(seen, std::vector<int32_t>(all.begin(), all.begin() + 3));

  GenerateArgs stopping = args;
  stopping.stop_ids = {all[5]};
  const auto first = std::find(all.begin(), all.end(), all[5]);
  EXPECT_EQ(generator.Generate(stopping), std::vector<int32_t>(all.begin(), first));
  stopping.max_new_tokens = 0;
  EXPECT_TRUE(generator.Generate(stopping).empty());
}

TEST(Generator, WorksOnAModelBoundForTraining) {
  const auto device = CpuDevice();
  BoundModel training(TinySpec(), {.compute = DType::kF32, .B = 3, .T = 6, .gradients = true}, *device);
  testing::RandomizeWeights(training);
  Rig inference(DType::kF32);
  Generator a(training.model(), *device), b(inference.bound.model(), *inference.device);
  const GenerateArgs args = {.prompt = SomeIds(20), .max_new_tokens = 10, .sampling = {.temperature = 0}};
  EXPECT_EQ(a.Generate(args), b.Generate(args));
}

TEST(Generator, MemoryDoesNotGrowWithTheText) {
  // All memory is taken at construction: what is bound is the states of one sequence and one piece.
  Rig rig;
  const ModelSpec spec = TinySpec();
  Arena count;
  rig.bound.model().BindStates(count, 1);
  const int64_t state_elems =
      spec.num_heads * (spec.head_dim_qk() * spec.head_dim_v() + spec.head_dim_qk() + 1);
  EXPECT_GE(count.total_bytes(), spec.num_blocks * state_elems * 8);
  EXPECT_LE(count.total_bytes(), spec.num_blocks * (state_elems * 8 + 3 * Arena::kAlignBytes));
  EXPECT_EQ(count.bytes_by_category().at("states"), count.total_bytes());
}
}  // namespace
}  // namespace carousel
