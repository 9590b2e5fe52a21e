// Logits of the tokens that have a target, alone: the same loss, gradients and right answers as with all.
#include <gtest/gtest.h>

#include "core/device_memory.h"
#include "core/train/device_batch.h"
#include "tests/layer_testing.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::TinyPaperSpec;
using testing::TinySpec;

constexpr int64_t kB = 2, kT = 9;

// One token in `every` has a target (0: none has).
Batch SparseBatch(int64_t V, int64_t every, uint64_t seed) {
  Batch batch = testing::RandomBatch(kB, kT, V, seed, /*resets=*/true);
  batch.lengths.assign(batch.targets.size(), 0);
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    const bool target = every > 0 && static_cast<int64_t>(i) % every == every - 1;
    batch.targets[i] = target ? static_cast<int32_t>((7 * i + seed) % static_cast<uint64_t>(V)) : -1;
    batch.lengths[i] = target ? 5 : 0;
  }
  return batch;
}

struct Pass {
  double loss = 0, evaluated_loss = 0;
  std::vector<double> gradients;
  std::vector<uint8_t> correct;  // of the targets
};

Pass RunPass(const ModelSpec& spec, DType compute, const Batch& batch, bool all_tokens) {
  const auto device = CpuDevice();
  BoundModel bound(spec, {.compute = compute, .B = kB, .T = kT, .gradients = true}, *device);
  testing::RandomizeWeights(bound);
  DeviceBatch place;
  DeviceMemory memory(*device, [&](Arena& arena) { place.Bind(arena, kB * kT); });
  EXPECT_TRUE(memory.ok());
  Batch copy = batch;
  if (all_tokens) copy.lengths.clear();
  const LanguageModel::Input input = place.Load(*device, copy);
  EXPECT_EQ(input.rows.defined(), !all_tokens);

  Pass pass;
  ExactSum sum, evaluated;
  bound.ZeroGradients();
  bound.model().ForwardBackward(device->ops(), nullptr, input, Tensor(&sum, DType::kI64, {kExactSumElems}));
  pass.loss = sum.ToDouble();
  for (int p = 0; p < static_cast<int>(bound.params().params().size()); ++p) {
    const std::vector<double> gradient = testing::Gradient(bound, p);
    pass.gradients.insert(pass.gradients.end(), gradient.begin(), gradient.end());
  }
  std::vector<uint8_t> correct(static_cast<size_t>(input.targets.dim[0]));
  bound.model().ForwardLoss(device->ops(), nullptr, input, Tensor(&evaluated, DType::kI64, {kExactSumElems}),
                            Tensor(correct.data(), DType::kU8, {input.targets.dim[0]}));
  pass.evaluated_loss = evaluated.ToDouble();
  for (size_t i = 0; i < correct.size(); ++i) {
    if (!all_tokens || batch.targets[i] >= 0) pass.correct.push_back(correct[i]);
  }
  return pass;
}

TEST(TargetRows, GiveTheSameLossGradientsAndRightAnswers) {
  ModelSpec tied = TinyPaperSpec();
  tied.tie_embeddings = true;
  ModelSpec chunked = TinySpec();
  chunked.loss_chunk_tokens = 2;
  for (const ModelSpec& spec : {TinySpec(), TinyPaperSpec(), tied, chunked}) {
    for (const int64_t every : {3, 4, 17}) {
      const Batch batch = SparseBatch(spec.vocab_size, every, 3);
      const Pass all = RunPass(spec, DType::kF64, batch, true),
                 rows = RunPass(spec, DType::kF64, batch, false);
      EXPECT_GT(all.loss, 0);
      EXPECT_NEAR(rows.loss, all.loss, 1e-13 * all.loss);
      EXPECT_NEAR(rows.evaluated_loss, all.loss, 1e-13 * all.loss);
      EXPECT_EQ(rows.correct, all.correct);
      EXPECT_EQ(rows.correct.size(), static_cast<size_t>(kB * kT / every));
      EXPECT_LT(testing::RelativeL2(rows.gradients, all.gradients), 1e-13);
    }
  }
}

// In bf16 a row passes through f32 and back, which changes nothing.
TEST(TargetRows, AreExactInBfloat16) {
  const Batch batch = SparseBatch(TinySpec().vocab_size, 3, 8);
  const Pass all = RunPass(TinySpec(), DType::kBF16, batch, true);
  const Pass rows = RunPass(TinySpec(), DType::kBF16, batch, false);
  EXPECT_NEAR(rows.loss, all.loss, 1e-6 * all.loss);
  EXPECT_LT(testing::RelativeL2(rows.gradients, all.gradients), 1e-6);
}

TEST(TargetRows, WithoutAnyTargetGradientsAreZero) {
  const Pass none =
      RunPass(TinyPaperSpec(), DType::kF32, SparseBatch(TinyPaperSpec().vocab_size, 0, 3), false);
  EXPECT_EQ(none.loss, 0);
  EXPECT_EQ(none.evaluated_loss, 0);
  EXPECT_TRUE(none.correct.empty());
  for (const double g : none.gradients) ASSERT_EQ(g, 0);
}

TEST(TargetRows, AreUsedOnlyWhereMostTokensHaveNoTarget) {
  const auto device = CpuDevice();
  DeviceBatch place;
  DeviceMemory memory(*device, [&](Arena& arena) { place.Bind(arena, kB * kT); });
  Batch batch = SparseBatch(19, 2, 3);
  EXPECT_FALSE(place.Load(*device, batch).rows.defined());
  batch.targets[1] = -1;
  const LanguageModel::Input input = place.Load(*device, batch);
  ASSERT_TRUE(input.rows.defined());
  EXPECT_EQ(input.targets.dim[0], 8);
  EXPECT_EQ(input.rows.of_targets.as<int32_t>()[0], 3);
  const int32_t* to = input.rows.to_targets.as<int32_t>();
  EXPECT_EQ(std::vector<int32_t>(to, to + 6), (std::vector<int32_t>{8, 8, 8, 0, 8, 1}));
  EXPECT_EQ(input.targets.as<int32_t>()[0], batch.targets[3]);
}
}  // namespace
}  // namespace carousel
