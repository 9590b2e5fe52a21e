// Language models with sLSTM mixers and of the paper family.
#include "core/model/language_model.h"

#include "core/model/generator.h"
#include "tests/layer_testing.h"

namespace carousel {
namespace {
using testing::AllLogits;
using testing::CpuDevice;
using testing::Gradient;
using testing::InputOf;
using testing::Loss;
using testing::LossAndGradients;
using testing::RandomBatch;
using testing::RelativeL2;
using testing::TinyPaperSpec;
using testing::TinySpec;

constexpr int64_t kB = 2, kT = 11;

std::unique_ptr<BoundModel> Model(Device& device, const ModelSpec& spec, DType compute = DType::kF64,
                                  bool gradients = true) {
  auto bound = std::make_unique<BoundModel>(
      spec, BoundModel::Options{.compute = compute, .B = kB, .T = kT, .gradients = gradients}, device);
  testing::RandomizeWeights(*bound);
  return bound;
}

struct NamedSpec {
  const char* name;
  ModelSpec spec;
};
std::vector<NamedSpec> Variants() {
  std::vector<NamedSpec> result;
  const auto add = [&](const char* name, ModelSpec spec, auto change) {
    change(spec);
    result.push_back({name, spec});
  };
  add("mixed", TinyPaperSpec(), [](ModelSpec&) {});
  add("mLSTM only, tied", TinyPaperSpec(), [](ModelSpec& s) {
    s.slstm_at = {};
    s.tie_embeddings = true;
  });
  add("sLSTM only", TinyPaperSpec(), [](ModelSpec& s) { s.slstm_at = {0, 1, 2}; });
  add("sLSTM without feed-forward", TinyPaperSpec(), [](ModelSpec& s) {
    s.slstm_at = {0, 2};
    s.ffn_dim = 0;
  });
  add("biases, no out norm", TinyPaperSpec(), [](ModelSpec& s) {
    s.use_bias = s.ffn_bias = true;
    s.add_out_norm = false;
  });
  add("tied, no out norm: an empty last group", TinyPaperSpec(), [](ModelSpec& s) {
    s.tie_embeddings = true;
    s.add_out_norm = false;
  });
  add("large with sLSTM", TinySpec(), [](ModelSpec& s) {
    s.norm_eps = 1e-2;
    s.num_blocks = 3;
    s.slstm_at = {0, 2};
    s.slstm_num_heads = 2;
  });
  add("large with sLSTM and convolution, biases", TinySpec(), [](ModelSpec& s) {
    s.norm_eps = 1e-2;
    s.slstm_at = {1};
    s.slstm_num_heads = 4;
    s.slstm_conv_kernel = 4;
    s.use_bias = true;
  });
  return result;
}

TEST(PaperModel, GradientsEqualCentralDifferences) {
  const auto device = CpuDevice();
  for (const NamedSpec& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    const auto bound = Model(*device, variant.spec);
    Batch batch = RandomBatch(kB, kT, variant.spec.vocab_size, /*seed=*/3, true);
    LossAndGradients(*bound, batch);
    const ParamStore& params = bound->params();
    for (int i = 0; i < static_cast<int>(params.params().size()); ++i) {
      testing::ExpectGradient(
          params.param(i).name, [&] { return Loss(*bound, batch); }, params.Weight(i).Flatten(),
          params.Grad(i).Flatten(), 6, 1e-6);
    }
  }
}

TEST(PaperModel, CarriedStatesGiveTheLogitsOfTheWholeSequence) {
  const auto device = CpuDevice();
  for (const NamedSpec& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    const ModelSpec& spec = variant.spec;
    const auto bound = Model(*device, spec, DType::kF64, /*gradients=*/false);
    Batch batch = RandomBatch(kB, kT, spec.vocab_size, /*seed=*/7, true);
    const std::vector<double> all = AllLogits(*bound, batch);
    std::vector<LayerState> states;
    const DeviceMemory memory(*device, [&](Arena& arena) { states = bound->model().BindStates(arena, kB); });
    const std::vector<int64_t> cuts = {0, 1, 2, 6, 7, 10, kT};
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

TEST(PaperModel, RecomputedBlocksGiveTheSameBits) {
  const auto device = CpuDevice();
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (NamedSpec variant : Variants()) {
      SCOPED_TRACE(variant.name);
      variant.spec.dropout = variant.spec.ffn_dropout = variant.spec.embedding_dropout = 0.2;
      Batch batch = RandomBatch(kB, kT, variant.spec.vocab_size, /*seed=*/4, true);
      LanguageModel::Input input = InputOf(batch);
      input.dropout_key = 77;
      std::vector<std::vector<double>> gradients[2];
      for (const bool recompute : {false, true}) {
        variant.spec.recompute = recompute ? Recompute::kRecompute : Recompute::kSave;
        const auto bound = Model(*device, variant.spec, compute);
        ExactSum sum;
        bound->ZeroGradients();
        bound->model().ForwardBackward(device->ops(), nullptr, input,
                                       Tensor(&sum, DType::kI64, {kExactSumElems}));
        gradients[recompute].push_back({sum.ToDouble()});
        for (int i = 0; i < static_cast<int>(bound->params().params().size()); ++i) {
          gradients[recompute].push_back(Gradient(*bound, i));
        }
      }
      EXPECT_EQ(gradients[0], gradients[1]);
    }
  }
}

TEST(PaperModel, GradientsEqualCentralDifferencesWithDropoutAtAFixedKey) {
  const auto device = CpuDevice();
  ModelSpec spec = TinyPaperSpec();
  spec.dropout = 0.2;
  spec.ffn_dropout = 0.3;
  spec.embedding_dropout = 0.1;
  const auto bound = Model(*device, spec);
  Batch batch = RandomBatch(kB, kT, spec.vocab_size, /*seed=*/3, true);
  LanguageModel::Input input = InputOf(batch);
  input.dropout_key = 5;
  const auto loss = [&] {
    ExactSum sum;
    bound->model().ForwardLoss(device->ops(), nullptr, input, Tensor(&sum, DType::kI64, {kExactSumElems}));
    return sum.ToDouble();
  };
  ExactSum sum;
  bound->ZeroGradients();
  bound->model().ForwardBackward(device->ops(), nullptr, input, Tensor(&sum, DType::kI64, {kExactSumElems}));
  EXPECT_EQ(sum.ToDouble(), loss());
  const ParamStore& params = bound->params();
  for (int i = 0; i < static_cast<int>(params.params().size()); ++i) {
    testing::ExpectGradient(params.param(i).name, loss, params.Weight(i).Flatten(), params.Grad(i).Flatten(),
                            6, 1e-6);
  }
  input.dropout_key = 6;
  EXPECT_NE(sum.ToDouble(), loss());
  input.dropout_key = {};
  EXPECT_NE(sum.ToDouble(), loss());
}

TEST(PaperModel, InferenceBindingGivesTheSameLogitsWithLessMemory) {
  const auto device = CpuDevice();
  for (const NamedSpec& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    Batch batch = RandomBatch(kB, kT, variant.spec.vocab_size, /*seed=*/10, true);
    const auto training = Model(*device, variant.spec, DType::kF32, true);
    const auto inference = Model(*device, variant.spec, DType::kF32, false);
    EXPECT_EQ(AllLogits(*training, batch), AllLogits(*inference, batch));
    EXPECT_LT(inference->needed_bytes(), training->needed_bytes());
  }
}

TEST(PaperModel, Bf16LosesTheBitsItLacksAndNoMore) {
  const auto device = CpuDevice();
  for (const NamedSpec& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    const auto exact = Model(*device, variant.spec, DType::kF64);
    const auto f32 = Model(*device, variant.spec, DType::kF32),
               bf16 = Model(*device, variant.spec, DType::kBF16);
    // How much this model amplifies rounding is what f32 shows; bf16 has 16 bits less. One batch is one draw,
    // up to three times off; over these the quotient is 0.27 to 0.72.
    double f32_squares = 0, bf16_squares = 0;
    for (uint64_t seed = 12; seed < 28; ++seed) {
      Batch batch = RandomBatch(kB, kT, variant.spec.vocab_size, seed, true);
      const std::vector<double> expected = AllLogits(*exact, batch);
      f32_squares += std::pow(RelativeL2(AllLogits(*f32, batch), expected), 2);
      bf16_squares += std::pow(RelativeL2(AllLogits(*bf16, batch), expected), 2);
    }
    EXPECT_LT(std::sqrt(bf16_squares), 65536 * std::sqrt(f32_squares));
  }
}

// Shorter sequences than trained on are more of them, which costs the cells more workspace.
TEST(PaperModel, SequencesOfAnotherLengthThanTrainedOnAreEvaluatedInTheSameMemory) {
  const auto device = CpuDevice();
  ModelSpec mlstm_only = TinyPaperSpec();
  mlstm_only.slstm_at = {};
  for (const ModelSpec& spec : {TinySpec(), mlstm_only, TinyPaperSpec()}) {
    for (const int64_t evaluation_T : {1, 2, 5, 11, 40}) {
      SCOPED_TRACE(evaluation_T);
      const int64_t B = std::max<int64_t>(1, kB * kT / evaluation_T), N = B * evaluation_T;
      ParamStore params(DType::kF32, 1, 0);
      LanguageModel model(spec, params, false);
      const DeviceMemory memory(*device, [&](Arena& arena) {
        params.Bind(arena, false);
        params.BindGradients(arena);
        model.Bind(arena, device->ops(), kB, kT, /*train=*/true, evaluation_T);
      });
      testing::RandomizeWeights(params);
      Batch batch = RandomBatch(B, evaluation_T, spec.vocab_size, /*seed=*/14, true);
      ExactSum sum;
      std::vector<uint8_t> correct(static_cast<size_t>(N), 7);
      model.ForwardLoss(device->ops(), nullptr, InputOf(batch), Tensor(&sum, DType::kI64, {kExactSumElems}),
                        Tensor(correct.data(), DType::kU8, {N}));

      BoundModel expected(spec, {.compute = DType::kF32, .B = B, .T = evaluation_T}, *device);
      testing::RandomizeWeights(expected);
      EXPECT_EQ(sum.ToDouble(), Loss(expected, batch));
      const std::vector<double> logits = AllLogits(expected, batch);
      for (int64_t n = 0; n < N; ++n) {
        const auto row = logits.begin() + n * spec.vocab_size;
        const int64_t best = std::max_element(row, row + spec.vocab_size) - row;
        EXPECT_EQ(correct[static_cast<size_t>(n)], best == batch.targets[static_cast<size_t>(n)]) << n;
      }
    }
  }
}

TEST(PaperModel, WideHeadsGenerateFromAModelBoundForLongPieces) {
  const auto device = CpuDevice();
  ModelSpec spec = TinyPaperSpec();
  spec.num_blocks = 1;
  spec.slstm_at = {0};
  spec.embedding_dim = 384;
  spec.slstm_num_heads = 1;
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    BoundModel bound(spec, {.compute = compute, .B = 1, .T = 64}, *device);
    testing::RandomizeWeights(bound);
    Generator generator(bound.model(), *device);
    generator.Reset();
    generator.Feed(std::vector<int32_t>(64, 3));
    EXPECT_EQ(generator.Feed({5}).size(), static_cast<size_t>(spec.vocab_size));
  }
}
}  // namespace
}  // namespace carousel
