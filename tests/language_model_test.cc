#include "core/model/language_model.h"

#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::AllLogits;
using testing::CpuDevice;
using testing::ExpectGradient;
using testing::Gradient;
using testing::InputOf;
using testing::Loss;
using testing::LossAndGradients;
using testing::RandomBatch;
using testing::RandomizeWeights;
using testing::RelativeL2;
using testing::TinySpec;

constexpr int64_t kB = 2, kT = 11;  // T is no multiple of the chunk length

std::unique_ptr<BoundModel> Model(Device& device, const ModelSpec& spec, DType compute = DType::kF64,
                                  bool gradients = true, int64_t B = kB, int64_t T = kT) {
  auto bound = std::make_unique<BoundModel>(
      spec, BoundModel::Options{.compute = compute, .B = B, .T = T, .gradients = gradients}, device);
  RandomizeWeights(*bound);
  return bound;
}

// Every parameter against central differences.
void ExpectAllGradients(const ModelSpec& spec, bool resets, int64_t elems_per_parameter) {
  const auto device = CpuDevice();
  const auto bound = Model(*device, spec);
  Batch batch = RandomBatch(kB, kT, spec.vocab_size, /*seed=*/3, resets);
  LossAndGradients(*bound, batch);
  ParamStore& params = bound->params();
  for (int i = 0; i < static_cast<int>(params.params().size()); ++i) {
    std::vector<double> gradient = Gradient(*bound, i);
    ExpectGradient(
        params.param(i).name, [&] { return Loss(*bound, batch); }, params.Weight(i).Flatten(),
        testing::HostView(gradient), elems_per_parameter);
  }
}

TEST(LanguageModel, GradientsEqualCentralDifferences) { ExpectAllGradients(TinySpec(), false, 6); }

TEST(LanguageModel, GradientsEqualCentralDifferencesWithResets) { ExpectAllGradients(TinySpec(), true, 6); }

TEST(LanguageModel, GradientsEqualCentralDifferencesWithBiasesAndWithoutCapsAndOutNorm) {
  ModelSpec spec = TinySpec();
  spec.use_bias = true;
  spec.add_out_norm = false;
  spec.gate_soft_cap = spec.logit_soft_cap = 0;
  ExpectAllGradients(spec, true, 4);
}

TEST(LanguageModel, GradientsEqualCentralDifferencesWithBiasesAndOutNorm) {
  ModelSpec spec = TinySpec();
  spec.use_bias = true;
  spec.num_blocks = 1;
  spec.logit_soft_cap = 2;  // low enough to bend
  spec.gate_soft_cap = 3;
  ExpectAllGradients(spec, false, 4);
}

TEST(LanguageModel, GradientsEqualCentralDifferencesWithSigmoidGate) {
  for (const bool normalize : {false, true}) {
    ModelSpec spec = TinySpec();
    spec.input_gate = InputGate::kSigmoid;
    spec.normalize_sigmoid = normalize;
    spec.num_blocks = 1;
    ExpectAllGradients(spec, true, 4);
  }
}

TEST(LanguageModel, LossIsTheSumOfTheTargetsNegativeLogProbabilities) {
  const auto device = CpuDevice();
  const ModelSpec spec = TinySpec();
  const auto bound = Model(*device, spec);
  Batch batch = RandomBatch(kB, kT, spec.vocab_size, /*seed=*/4, true);
  const std::vector<double> logits = AllLogits(*bound, batch);
  double expected = 0;
  for (int64_t n = 0; n < kB * kT; ++n) {
    const double* z = logits.data() + n * spec.vocab_size;
    double sum = 0;
    for (int64_t id = 0; id < spec.vocab_size; ++id) {
      sum += std::exp(z[id]);
      EXPECT_LT(std::abs(z[id]), spec.logit_soft_cap);
    }
    const int32_t target = batch.targets[static_cast<size_t>(n)];
    if (target >= 0) expected += std::log(sum) - z[target];
  }
  EXPECT_NEAR(Loss(*bound, batch), expected, 1e-12 * expected);
  EXPECT_EQ(Loss(*bound, batch), LossAndGradients(*bound, batch));
}

TEST(LanguageModel, ABatchWithoutTargetsHasNoLossAndNoGradient) {
  const auto device = CpuDevice();
  const auto bound = Model(*device, TinySpec());
  Batch batch = RandomBatch(kB, kT, TinySpec().vocab_size, /*seed=*/4, false);
  std::fill(batch.targets.begin(), batch.targets.end(), -1);
  EXPECT_EQ(LossAndGradients(*bound, batch), 0);
  for (int i = 0; i < static_cast<int>(bound->params().params().size()); ++i) {
    for (const double g : Gradient(*bound, i)) ASSERT_EQ(g, 0) << bound->params().param(i).name;
  }
}

// Loss and all gradients of `spec` on a fixed batch.
std::vector<std::vector<double>> Everything(Device& device, const ModelSpec& spec, DType compute) {
  const auto bound = Model(device, spec, compute);
  Batch batch = RandomBatch(kB, kT, spec.vocab_size, /*seed=*/5, true);
  std::vector<std::vector<double>> result = {{LossAndGradients(*bound, batch)}};
  for (int i = 0; i < static_cast<int>(bound->params().params().size()); ++i) {
    result.push_back(Gradient(*bound, i));
  }
  return result;
}

TEST(LanguageModel, RecomputationGivesTheSameBits) {
  const auto device = CpuDevice();
  for (const DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    ModelSpec spec = TinySpec();
    const auto saved = Everything(*device, spec, compute);
    spec.recompute = Recompute::kRecompute;
    EXPECT_EQ(Everything(*device, spec, compute), saved) << NameOf(compute);
  }
}

TEST(LanguageModel, RecomputationKeepsOnlyBlockInputs) {
  const auto device = CpuDevice();
  ModelSpec spec = TinySpec();
  spec.num_blocks = 6;
  const auto bytes_of = [&](Recompute recompute, int64_t num_blocks) {
    spec.recompute = recompute;
    spec.num_blocks = num_blocks;
    ParamStore params(DType::kF32, 1, 0);
    LanguageModel model(spec, params, false);
    Arena count;
    model.Bind(count, device->ops(), 16, 64, true);
    return count.total_bytes();
  };
  const int64_t N = 16 * 64;
  const int64_t per_block = bytes_of(Recompute::kRecompute, 6) - bytes_of(Recompute::kRecompute, 5);
  EXPECT_EQ(per_block, N * spec.embedding_dim * 4);
  EXPECT_GT(bytes_of(Recompute::kSave, 6) - bytes_of(Recompute::kSave, 5), 8 * per_block);
}

TEST(LanguageModel, ChunkLengthChangesNothingBeyondRounding) {
  const auto device = CpuDevice();
  ModelSpec spec = TinySpec();
  const auto expected = Everything(*device, spec, DType::kF64);
  for (const int64_t L : {1, 3, 11, 64}) {
    spec.chunk_length = L;
    const auto result = Everything(*device, spec, DType::kF64);
    for (size_t j = 0; j < expected.size(); ++j) {
      EXPECT_LT(RelativeL2(result[j], expected[j]), 1e-11) << "L " << L << " tensor " << j;
    }
  }
}

TEST(LanguageModel, LossChunksChangeNothingBeyondRounding) {
  const auto device = CpuDevice();
  ModelSpec spec = TinySpec();
  const auto expected = Everything(*device, spec, DType::kF64);
  for (const int64_t chunk : {1, 22, 1000}) {
    spec.loss_chunk_tokens = chunk;
    const auto result = Everything(*device, spec, DType::kF64);
    EXPECT_EQ(result[0], expected[0]);
    for (size_t j = 0; j < expected.size(); ++j) {
      EXPECT_LT(RelativeL2(result[j], expected[j]), 1e-12) << "chunk " << chunk << " tensor " << j;
    }
  }
}

TEST(LanguageModel, LogitsOfAllTokensAreNeverHeldInTraining) {
  const auto device = CpuDevice();
  ModelSpec spec = TinySpec();
  spec.vocab_size = 32768;
  ParamStore params(DType::kF32, 1, 0);
  LanguageModel model(spec, params, false);
  Arena count;
  model.Bind(count, device->ops(), 16, 64, true);
  EXPECT_LT(count.total_bytes(), 16 * 64 * spec.vocab_size * 4 / 4);
}

TEST(LanguageModel, ResetsEqualSeparateDocuments) {
  const auto device = CpuDevice();
  const ModelSpec spec = TinySpec();
  const auto bound = Model(*device, spec);
  Batch packed = RandomBatch(1, kT, spec.vocab_size, /*seed=*/6, true);
  packed.resets.assign(kT, 0);
  const std::vector<int64_t> starts = {0, 3, 4, 9, kT};
  std::vector<double> separate;
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    if (d > 0) packed.resets[static_cast<size_t>(starts[d])] = 1;
    Batch document;
    document.B = 1;
    document.T = starts[d + 1] - starts[d];
    document.inputs.assign(packed.inputs.begin() + starts[d], packed.inputs.begin() + starts[d + 1]);
    document.targets.assign(static_cast<size_t>(document.T), -1);
    const std::vector<double> logits = AllLogits(*bound, document);
    separate.insert(separate.end(), logits.begin(), logits.end());
  }
  EXPECT_LT(RelativeL2(AllLogits(*bound, packed), separate), 1e-12);
  packed.resets.clear();
  EXPECT_GT(RelativeL2(AllLogits(*bound, packed), separate), 1e-3);
}

TEST(LanguageModel, CarriedStatesGiveTheLogitsOfTheWholeSequence) {
  const auto device = CpuDevice();
  const ModelSpec spec = TinySpec();
  const auto bound = Model(*device, spec, DType::kF64, /*gradients=*/false);
  Batch batch = RandomBatch(kB, kT, spec.vocab_size, /*seed=*/7, true);
  const std::vector<double> all = AllLogits(*bound, batch);

  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, kT}, std::vector<int64_t>{0, 5, 6, kT}}) {
    std::vector<LayerState> states;
    const DeviceMemory memory(*device, [&](Arena& arena) { states = bound->model().BindStates(arena, kB); });
    for (size_t c = 0; c + 1 < cuts.size(); ++c) {
      Batch piece;
      piece.B = kB;
      piece.T = cuts[c + 1] - cuts[c];
      for (int64_t b = 0; b < kB; ++b) {
        const auto begin = b * kT + cuts[c], end = b * kT + cuts[c + 1];
        piece.inputs.insert(piece.inputs.end(), batch.inputs.begin() + begin, batch.inputs.begin() + end);
        piece.resets.insert(piece.resets.end(), batch.resets.begin() + begin, batch.resets.begin() + end);
      }
      piece.targets.assign(piece.inputs.size(), -1);
      std::vector<double> logits(static_cast<size_t>(kB * spec.vocab_size)), expected;
      bound->model().ForwardStep(device->ops(), InputOf(piece), states,
                                 Tensor(logits.data(), DType::kF64, {kB, spec.vocab_size}));
      for (int64_t b = 0; b < kB; ++b) {
        const auto row = all.begin() + (b * kT + cuts[c + 1] - 1) * spec.vocab_size;
        expected.insert(expected.end(), row, row + spec.vocab_size);
      }
      EXPECT_LT(RelativeL2(logits, expected), 1e-12) << "after token " << cuts[c + 1];
    }
  }
}

TEST(LanguageModel, ASmallerBatchThanBoundIsTheSameAsBoundForIt) {
  const auto device = CpuDevice();
  const ModelSpec spec = TinySpec();
  Batch batch = RandomBatch(1, 7, spec.vocab_size, /*seed=*/8, true);
  const auto large = Model(*device, spec, DType::kF64, true, 3, kT);
  const auto exact = Model(*device, spec, DType::kF64, true, 1, 7);
  Batch other = RandomBatch(3, kT, spec.vocab_size, /*seed=*/9, true);
  LossAndGradients(*large, other);  // leaves other numbers in its memory
  EXPECT_EQ(LossAndGradients(*large, batch), LossAndGradients(*exact, batch));
  for (int i = 0; i < static_cast<int>(large->params().params().size()); ++i) {
    EXPECT_LT(RelativeL2(Gradient(*large, i), Gradient(*exact, i)), 1e-13) << large->params().param(i).name;
  }
}

TEST(LanguageModel, InferenceBindingGivesTheSameLogitsWithLessMemory) {
  const auto device = CpuDevice();
  const ModelSpec spec = TinySpec();
  Batch batch = RandomBatch(kB, kT, spec.vocab_size, /*seed=*/10, true);
  const auto training = Model(*device, spec, DType::kF32, true);
  const auto inference = Model(*device, spec, DType::kF32, false);
  EXPECT_EQ(AllLogits(*training, batch), AllLogits(*inference, batch));
  EXPECT_EQ(Loss(*training, batch), Loss(*inference, batch));
  EXPECT_LT(inference->needed_bytes(), training->needed_bytes());
}

// How far the gradients may be from f64, relative L2 over all parameters together.
double GradientError(DType compute) {
  const auto device = CpuDevice();
  ModelSpec spec = TinySpec();
  // Well conditioned: wide heads, and an epsilon against norms of almost nothing (a first token's h is q.k v,
  // and the norm of a small q.k v turns over with the sign of q.k).
  spec.norm_eps = 0.1;
  spec.embedding_dim = 64;
  spec.qk_dim = 32;
  spec.v_dim = spec.ffn_dim = 64;
  const auto exact = Everything(*device, spec, DType::kF64), result = Everything(*device, spec, compute);
  std::vector<double> a, b;
  for (size_t j = 1; j < exact.size(); ++j) {
    a.insert(a.end(), result[j].begin(), result[j].end());
    b.insert(b.end(), exact[j].begin(), exact[j].end());
  }
  EXPECT_NEAR(result[0][0], exact[0][0], 0.02 * exact[0][0]);
  return RelativeL2(a, b);
}
TEST(LanguageModel, SinglePrecisionGradientsAreClose) {
  EXPECT_LT(GradientError(DType::kF32), 1e-5);  // about 100 roundings of 6e-8
}
TEST(LanguageModel, BFloat16GradientsAreClose) {
  // A few dozen roundings of 2^-9, weights included.
  const double error = GradientError(DType::kBF16);
  EXPECT_LT(error, 0.1);
  EXPECT_GT(error, 1e-4);
}

// Records the order of calls, checks that weights are read only between Acquire and Release.
class RecordingSync final : public ParamSync {
 public:
  void BeginMicroBatch(int64_t) override { calls += "B "; }
  void Prefetch(int group) override { calls += "p" + std::to_string(group) + " "; }
  void Acquire(int group) override { calls += "a" + std::to_string(group) + " "; }
  void Release(int group) override { calls += "r" + std::to_string(group) + " "; }
  void GradReady(int group) override { calls += "g" + std::to_string(group) + " "; }
  void FinishStep() override {}
  void BeginGradients(int group) override { calls += "z" + std::to_string(group) + " "; }
  void WeightsUpdated(int) override {}
  std::string calls;
};

TEST(LanguageModel, TellsTheSyncWhichGroupsItReadsAndWhichGradientsAreComplete) {
  const auto device = CpuDevice();
  const auto bound = Model(*device, TinySpec());
  Batch batch = RandomBatch(kB, kT, TinySpec().vocab_size, /*seed=*/11, false);
  ExactSum sum;
  const Tensor loss_sum(&sum, DType::kI64, {kExactSumElems});
  RecordingSync sync;
  bound->model().ForwardBackward(device->ops(), &sync, InputOf(batch), loss_sum);
  EXPECT_EQ(sync.calls,
            "p0 p1 a0 r0 p2 a1 r1 p3 a2 r2 a3 "                // forward
            "p2 z3 r3 g3 p1 a2 z2 r2 g2 a1 z1 r1 g1 z0 g0 ");  // head, backward
  sync.calls.clear();
  bound->model().ForwardLoss(device->ops(), &sync, InputOf(batch), loss_sum);
  const std::string of_a_pass = "p0 p1 a0 r0 p2 a1 r1 p3 a2 r2 a3 r3 ";
  EXPECT_EQ(sync.calls, of_a_pass);
  sync.calls.clear();
  bound->model().ForwardNothing(sync);
  EXPECT_EQ(sync.calls, of_a_pass);
}

TEST(LanguageModelDeathTest, RejectsUseAgainstItsContract) {
  const auto device = CpuDevice(1);
  const auto bound = Model(*device, TinySpec(), DType::kF32, /*gradients=*/false);
  Batch batch = RandomBatch(kB, kT, TinySpec().vocab_size, /*seed=*/12, false);
  EXPECT_DEATH(LossAndGradients(*bound, batch), "");
  Batch longer = RandomBatch(1, kT + 1, TinySpec().vocab_size, /*seed=*/12, false);
  EXPECT_DEATH(Loss(*bound, longer), "T <= bound_.longest_T");
  ModelSpec uneven = TinySpec();
  uneven.num_heads = 4;
  ParamStore params(DType::kF32, 1, 0);
  EXPECT_DEATH(LanguageModel(uneven, params, false), "num_heads must divide");
}
}  // namespace
}  // namespace carousel
