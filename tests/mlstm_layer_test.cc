#include "core/model/mlstm_layer.h"

#include "tests/layer_backward.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::Dot;
using testing::RelativeL2;
using testing::TinySpec;

// An mLSTM layer with random weights, inputs and (every fourth token) resets.
struct Rig {
  Rig(Device& device_in, const ModelSpec& spec_in, int64_t B_in, int64_t T_in, bool with_resets = false,
      DType compute = DType::kF64)
      : device(device_in),
        spec(spec_in),
        B(B_in),
        T(T_in),
        params(compute, 1, 0),
        layer(spec, params, "mlstm_layer.", 0) {
    const int64_t D = spec.embedding_dim, N = B * T;
    memory = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      bound = layer.Bind(arena, device.ops(), compute, {.B = B, .T = T}, /*train=*/true);
      for (Tensor* t : {&x, &y, &dx, &dy}) *t = arena.Persistent("test", compute, {N, D});
      resets = arena.Persistent("test", DType::kU8, {N});
    });
    testing::RandomizeWeights(params);
    testing::FillUnit(x, "x");
    testing::FillUnit(dy, "dy");
    for (int64_t n = 0; with_resets && n < N; n += 4) resets.as<uint8_t>()[n] = 1;
    if (!with_resets) resets = Tensor();
  }
  LayerContext Context() { return {.ops = device.ops(), .params = params, .B = B, .T = T, .resets = resets}; }
  double Loss() {
    layer.Forward(Context(), bound, {.y = y, .x = x});
    return Dot(y, dy);
  }
  void Backward() {
    Loss();
    params.ZeroGradients(device.ops());
    testing::LayerBackward(layer, Context(), bound, dx, dy, x);
  }
  std::vector<double> Values(Tensor t) const {
    return std::vector<double>(t.as<double>(), t.as<double>() + t.num_elems());
  }

  Device& device;
  ModelSpec spec;
  int64_t B, T;
  ParamStore params;
  MlstmLayer layer;
  MlstmLayer::Memory bound;
  Tensor x, y, dx, dy, resets;
  std::unique_ptr<DeviceMemory> memory;
};

void ExpectGradients(const ModelSpec& spec, bool resets) {
  const auto device = CpuDevice();
  Rig rig(*device, spec, 2, 7, resets);
  rig.Backward();
  const auto loss = [&] { return rig.Loss(); };
  testing::ExpectGradient("x", loss, rig.x.Flatten(), rig.dx.Flatten(), 30, 1e-6);
  testing::ExpectParameterGradients(loss, rig.params, 12);
}

// A large epsilon in the head norm keeps central differences accurate where h almost vanishes.
ModelSpec WellConditioned() {
  ModelSpec spec = TinySpec();
  spec.norm_eps = 1e-2;
  return spec;
}

TEST(MlstmLayer, GradientsEqualCentralDifferences) { ExpectGradients(WellConditioned(), false); }
TEST(MlstmLayer, GradientsEqualCentralDifferencesWithResets) { ExpectGradients(WellConditioned(), true); }
TEST(MlstmLayer, GradientsEqualCentralDifferencesWithBiasesAndWithoutCap) {
  ModelSpec spec = WellConditioned();
  spec.use_bias = true;
  spec.gate_soft_cap = 0;
  ExpectGradients(spec, false);
}
TEST(MlstmLayer, GradientsEqualCentralDifferencesWithATightCap) {
  ModelSpec spec = WellConditioned();
  spec.gate_soft_cap = 1.5;
  ExpectGradients(spec, true);
}
TEST(MlstmLayer, GradientsEqualCentralDifferencesWithSigmoidGate) {
  for (const bool normalize : {false, true}) {
    ModelSpec spec = WellConditioned();
    spec.input_gate = InputGate::kSigmoid;
    spec.normalize_sigmoid = normalize;
    ExpectGradients(spec, false);
  }
}
TEST(MlstmLayer, GradientsEqualCentralDifferencesWithWideKeysAndNarrowValues) {
  ModelSpec spec = WellConditioned();
  spec.num_heads = 3;
  spec.qk_dim = 24;
  spec.v_dim = 6;
  ExpectGradients(spec, false);
}

TEST(MlstmLayer, AFrozenNormalizerChangesTheGradientOnly) {
  const auto device = CpuDevice();
  ModelSpec spec = WellConditioned();
  Rig exact(*device, spec, 1, 9);
  spec.normalizer_gradient = NormalizerGradient::kFrozen;
  Rig frozen(*device, spec, 1, 9);
  EXPECT_EQ(exact.Loss(), frozen.Loss());
  exact.Backward();
  frozen.Backward();
  const double difference = RelativeL2(frozen.Values(frozen.dx), exact.Values(exact.dx));
  EXPECT_GT(difference, 1e-6);
  EXPECT_LT(difference, 1);
}

TEST(MlstmLayer, ChunkLengthChangesNothingBeyondRounding) {
  const auto device = CpuDevice();
  for (const bool resets : {false, true}) {
    ModelSpec spec = TinySpec();
    Rig expected(*device, spec, 2, 13, resets);
    expected.Backward();
    for (const int64_t L : {1, 2, 5, 13, 100}) {
      spec.chunk_length = L;
      Rig rig(*device, spec, 2, 13, resets);
      rig.Backward();
      EXPECT_LT(RelativeL2(rig.Values(rig.y), expected.Values(expected.y)), 1e-12);
      EXPECT_LT(RelativeL2(rig.Values(rig.dx), expected.Values(expected.dx)), 1e-11);
      for (int i = 0; i < static_cast<int>(rig.params.params().size()); ++i) {
        EXPECT_LT(RelativeL2(rig.Values(rig.params.Grad(i)), expected.Values(expected.params.Grad(i))), 1e-11)
            << "L " << L << " " << rig.params.param(i).name;
      }
    }
  }
}

TEST(MlstmLayer, SplittingTheSequenceAnywhereEqualsCarryingTheState) {
  const auto device = CpuDevice();
  constexpr int64_t kT = 10;
  const ModelSpec spec = TinySpec();
  Rig whole(*device, spec, 1, kT);
  whole.Loss();
  const std::vector<double> expected = whole.Values(whole.y);
  for (int64_t cut = 1; cut < kT; ++cut) {
    Rig rig(*device, spec, 1, kT);
    LayerState state;
    const DeviceMemory states(
        *device, [&](Arena& arena) { state = rig.layer.BindState(arena, DType::kF64, /*B=*/1); });
    for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, cut}, {cut, kT - cut}}) {
      rig.layer.Forward(
          {.ops = device->ops(), .params = rig.params, .B = 1, .T = count}, rig.bound,
          {.y = rig.y.Rows(begin, count), .x = rig.x.Rows(begin, count), .initial = state, .last = state});
    }
    EXPECT_LT(RelativeL2(rig.Values(rig.y), expected), 1e-12) << "cut at " << cut;
  }
}

TEST(MlstmLayer, SequencesOfABatchDoNotSeeEachOther) {
  const auto device = CpuDevice();
  Rig both(*device, TinySpec(), 2, 5), one(*device, TinySpec(), 1, 5);
  both.Loss();
  const int64_t elems = 5 * TinySpec().embedding_dim;
  std::memcpy(one.x.data, both.x.as<double>() + elems, static_cast<size_t>(elems) * sizeof(double));
  one.Loss();
  const std::vector<double> y = both.Values(both.y);
  EXPECT_LT(RelativeL2(one.Values(one.y), std::vector<double>(y.begin() + elems, y.end())), 1e-14);
}

TEST(MlstmLayer, TheFutureHasNoEffect) {
  const auto device = CpuDevice();
  Rig rig(*device, TinySpec(), 1, 8);
  rig.Loss();
  const int64_t seen = 5 * TinySpec().embedding_dim;
  const std::vector<double> before = rig.Values(rig.y);
  rig.x.as<double>()[seen] += 1;  // token 5
  rig.Loss();
  const std::vector<double> after = rig.Values(rig.y);
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + seen, after.begin()));
  EXPECT_FALSE(std::equal(before.begin() + seen, before.end(), after.begin() + seen));
}

TEST(MlstmLayer, UsesTheNamesOfThePublicImplementation) {
  ModelSpec spec = TinySpec();
  spec.use_bias = true;
  ParamStore params(DType::kF32, 1, 0);
  const MlstmLayer layer(spec, params, "p.", 0);
  const std::pair<const char*, std::vector<int64_t>> expected[] = {{"q.weight", {6, 12}},
                                                                   {"k.weight", {6, 12}},
                                                                   {"v.weight", {10, 12}},
                                                                   {"ogate_preact.weight", {10, 12}},
                                                                   {"igate_preact.weight", {2, 12}},
                                                                   {"fgate_preact.weight", {2, 12}},
                                                                   {"q.bias", {6}},
                                                                   {"k.bias", {6}},
                                                                   {"v.bias", {10}},
                                                                   {"ogate_preact.bias", {10}},
                                                                   {"igate_preact.bias", {2}},
                                                                   {"fgate_preact.bias", {2}},
                                                                   {"multihead_norm.weight", {10}},
                                                                   {"multihead_norm.bias", {10}},
                                                                   {"out_proj.weight", {12, 10}},
                                                                   {"out_proj.bias", {12}}};
  EXPECT_EQ(params.params().size(), std::size(expected));
  for (const auto& [name, shape] : expected) {
    const int index = params.Find(std::string("p.") + name);
    ASSERT_GE(index, 0) << name;
    EXPECT_EQ(params.param(index).shape, shape) << name;
  }
}
}  // namespace
}  // namespace carousel
