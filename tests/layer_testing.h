// What the tests of the mixers share: a layer with random weights and inputs, and the checks that hold for
// every mixer.
#pragma once
#include "tests/layer_backward.h"
#include "tests/model_testing.h"

namespace carousel::testing {

// A small model of the paper family; odd sizes on purpose.
inline ModelSpec TinyPaperSpec() {
  ModelSpec spec = TinySpec();
  spec.family = Family::kPaper;
  spec.num_blocks = 3;
  spec.qk_dim = spec.v_dim = 20;
  spec.gate_soft_cap = spec.logit_soft_cap = 0;
  spec.qkv_block_size = 5;
  spec.conv_kernel = 4;
  spec.slstm_at = {1};
  spec.slstm_num_heads = 3;
  spec.slstm_conv_kernel = 3;
  // A large epsilon keeps central differences accurate where a head almost vanishes.
  spec.norm_eps = 1e-2;
  return spec;
}

// A layer of type MlstmPaperLayer or SlstmLayer in f64. Its loss is sum(y * dy).
template <class Layer>
struct LayerRig {
  LayerRig(Device& device_in, const ModelSpec& spec_in, int64_t B_in, int64_t T_in, bool with_resets = false)
      : device(device_in),
        spec(spec_in),
        B(B_in),
        T(T_in),
        params(DType::kF64, 1, 0),
        layer(spec, params, "layer.", 0, /*block=*/1) {
    const int64_t D = spec.embedding_dim, N = B * T;
    memory = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      bound = layer.Bind(arena, device.ops(), DType::kF64, {.B = B, .T = T}, /*train=*/true);
      for (Tensor* t : {&x, &y, &dx, &dy}) *t = arena.Persistent("test", DType::kF64, {N, D});
      resets = arena.Persistent("test", DType::kU8, {N});
    });
    RandomizeWeights(params);
    FillUnit(x, "x");
    FillUnit(dy, "dy");
    for (int64_t n = 0; with_resets && n < N; n += 4) resets.as<uint8_t>()[n] = 1;
    if (!with_resets) resets = Tensor();
  }
  LayerContext Context() const {
    return {
        .ops = device.ops(), .params = params, .B = B, .T = T, .resets = resets, .dropout_key = dropout_key};
  }
  double Loss() {
    layer.Forward(Context(), bound, {.y = y, .x = x});
    return Dot(y, dy);
  }
  void Backward() {
    Loss();
    params.ZeroGradients(device.ops());
    LayerBackward(layer, Context(), bound, dx, dy, x);
  }
  std::vector<double> Values(Tensor t) const {
    return std::vector<double>(t.as<double>(), t.as<double>() + t.num_elems());
  }

  Device& device;
  ModelSpec spec;
  int64_t B, T;
  std::optional<uint64_t> dropout_key;
  ParamStore params;
  Layer layer;
  typename Layer::Memory bound;
  Tensor x, y, dx, dy, resets;
  std::unique_ptr<DeviceMemory> memory;
};

template <class Layer>
void ExpectLayerGradients(const ModelSpec& spec, bool resets, std::optional<uint64_t> dropout_key = {}) {
  const auto device = CpuDevice();
  LayerRig<Layer> rig(*device, spec, 2, 7, resets);
  rig.dropout_key = dropout_key;
  rig.Backward();
  const auto loss = [&] { return rig.Loss(); };
  ExpectGradient("x", loss, rig.x.Flatten(), rig.dx.Flatten(), 40, 1e-6);
  for (int i = 0; i < static_cast<int>(rig.params.params().size()); ++i) {
    ExpectGradient(rig.params.param(i).name, loss, rig.params.Weight(i).Flatten(),
                   rig.params.Grad(i).Flatten(), 16, 1e-6);
  }
}

// The sequence in two pieces with the state carried between them, cut anywhere, and one token at a time.
template <class Layer>
void ExpectSplittingEqualsCarrying(const ModelSpec& spec) {
  const auto device = CpuDevice();
  constexpr int64_t kT = 9;
  for (const bool with_resets : {false, true}) {
    LayerRig<Layer> whole(*device, spec, 1, kT, with_resets);
    whole.Loss();
    const std::vector<double> expected = whole.Values(whole.y);
    for (int64_t piece = 1; piece < kT; ++piece) {
      LayerRig<Layer> rig(*device, spec, 1, kT, with_resets);
      LayerState state;
      const DeviceMemory states(
          *device, [&](Arena& arena) { state = rig.layer.BindState(arena, DType::kF64, /*B=*/1); });
      for (int64_t begin = 0; begin < kT; begin += piece) {
        const int64_t count = std::min(piece, kT - begin);
        LayerContext context = {.ops = device->ops(), .params = rig.params, .B = 1, .T = count};
        if (with_resets) context.resets = rig.resets.Rows(begin, count);
        rig.layer.Forward(
            context, rig.bound,
            {.y = rig.y.Rows(begin, count), .x = rig.x.Rows(begin, count), .initial = state, .last = state});
      }
      EXPECT_LT(RelativeL2(rig.Values(rig.y), expected), 1e-12) << "pieces of " << piece;
    }
  }
}

// Documents packed into one sequence, with resets, equal the documents alone: outputs and gradients.
template <class Layer>
void ExpectPackingEqualsSeparateDocuments(const ModelSpec& spec) {
  const auto device = CpuDevice();
  constexpr int64_t kT = 11;
  const std::vector<int64_t> starts = {0, 1, 3, 8, kT};  // documents of 1, 2, 5 and 3 tokens
  LayerRig<Layer> packed(*device, spec, 1, kT, true);
  for (int64_t t = 0; t < kT; ++t) packed.resets.template as<uint8_t>()[t] = 0;
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    packed.resets.template as<uint8_t>()[starts[d]] = d > 0;  // the first one needs no mark
  }
  packed.Backward();

  LayerRig<Layer> alone(*device, spec, 1, kT);
  alone.params.ZeroGradients(device->ops());
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    const int64_t begin = starts[d], count = starts[d + 1] - begin;
    const LayerContext context = {.ops = device->ops(), .params = alone.params, .B = 1, .T = count};
    const Tensor x = alone.x.Rows(begin, count);
    alone.layer.Forward(context, alone.bound, {.y = alone.y.Rows(begin, count), .x = x});
    LayerBackward(alone.layer, context, alone.bound, alone.dx.Rows(begin, count), alone.dy.Rows(begin, count),
                  x);
  }
  EXPECT_LT(RelativeL2(packed.Values(packed.y), alone.Values(alone.y)), 1e-13);
  EXPECT_LT(RelativeL2(packed.Values(packed.dx), alone.Values(alone.dx)), 1e-12);
  // Compared on one scale: the gradient of the sLSTM's input gate bias is zero but for rounding, because that
  // gate multiplies both c and n.
  for (int i = 0; i < static_cast<int>(packed.params.params().size()); ++i) {
    const std::vector<double> a = packed.Values(packed.params.Grad(i)),
                              b = alone.Values(alone.params.Grad(i));
    for (size_t j = 0; j < a.size(); ++j) {
      EXPECT_NEAR(a[j], b[j], 1e-12 * std::max(1.0, std::abs(b[j]))) << packed.params.param(i).name;
    }
  }
}
}  // namespace carousel::testing
