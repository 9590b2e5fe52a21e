#include "core/model/ffn.h"

#include "tests/layer_backward.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::TinySpec;

// A feed-forward layer with random weights and inputs.
struct Rig {
  Rig(Device& device_in, const ModelSpec& spec, int64_t N_in, DType compute)
      : device(device_in), N(N_in), params(compute, 1, 0), ffn(spec, params, "ffn.", 0, 0) {
    const int64_t D = spec.embedding_dim;
    memory = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      bound = ffn.Bind(arena, N, /*train=*/true);
      x = arena.Persistent("test", compute, {N, D});
      y = arena.Persistent("test", compute, {N, D});
      dx = arena.Persistent("test", compute, {N, D});
      dy = arena.Persistent("test", compute, {N, D});
    });
    testing::RandomizeWeights(params);
    testing::FillUnit(x, "x");
    testing::FillUnit(dy, "dy");
  }
  LayerContext Context() { return {.ops = device.ops(), .params = params, .B = 1, .T = N}; }
  double Loss() {
    ffn.Forward(Context(), bound, y, x);
    return testing::Dot(y, dy);
  }

  Device& device;
  int64_t N;
  ParamStore params;
  Ffn ffn;
  Ffn::Memory bound;
  Tensor x, y, dx, dy;
  std::unique_ptr<DeviceMemory> memory;
};

TEST(Ffn, ComputesTheGatedFormula) {
  const auto device = CpuDevice();
  ModelSpec spec = TinySpec();
  spec.use_bias = true;
  Rig rig(*device, spec, 3, DType::kF64);
  rig.Loss();
  const int64_t D = spec.embedding_dim, F = spec.ffn_dim;
  const auto weight = [&](const char* name) {
    return rig.params.Weight(rig.params.Find(std::string("ffn.") + name)).as<double>();
  };
  for (int64_t n = 0; n < 3; ++n) {
    std::vector<double> act(static_cast<size_t>(F));
    for (int64_t f = 0; f < F; ++f) {
      double gate = weight("proj_up_gate.bias")[f], up = weight("proj_up.bias")[f];
      for (int64_t d = 0; d < D; ++d) {
        gate += weight("proj_up_gate.weight")[f * D + d] * rig.x.as<double>()[n * D + d];
        up += weight("proj_up.weight")[f * D + d] * rig.x.as<double>()[n * D + d];
      }
      act[static_cast<size_t>(f)] = gate / (1 + std::exp(-gate)) * up;
    }
    for (int64_t d = 0; d < D; ++d) {
      double y = weight("proj_down.bias")[d];
      for (int64_t f = 0; f < F; ++f) {
        y += weight("proj_down.weight")[d * F + f] * act[static_cast<size_t>(f)];
      }
      EXPECT_NEAR(rig.y.as<double>()[n * D + d], y, 1e-13);
    }
  }
}

TEST(Ffn, GradientsEqualCentralDifferences) {
  const auto device = CpuDevice();
  for (const bool use_bias : {false, true}) {
    ModelSpec spec = TinySpec();
    spec.use_bias = use_bias;
    Rig rig(*device, spec, 5, DType::kF64);
    rig.Loss();
    rig.params.ZeroGradients(device->ops());
    testing::LayerBackward(rig.ffn, rig.Context(), rig.bound, rig.dx, rig.dy, rig.x);
    const auto loss = [&] { return rig.Loss(); };
    testing::ExpectGradient("x", loss, rig.x.Flatten(), rig.dx.Flatten());
    testing::ExpectParameterGradients(loss, rig.params, 40);
  }
}

TEST(Ffn, WeightGradientsAccumulate) {
  const auto device = CpuDevice();
  Rig rig(*device, TinySpec(), 4, DType::kF64);
  rig.params.ZeroGradients(device->ops());
  std::vector<double> once;
  for (int pass = 0; pass < 2; ++pass) {
    rig.Loss();
    testing::LayerBackward(rig.ffn, rig.Context(), rig.bound, rig.dx, rig.dy, rig.x);
    const Tensor grads = rig.params.segment(0, ParamStore::kMatrix).grads;
    if (pass == 0) once.assign(grads.as<double>(), grads.as<double>() + grads.num_elems());
    for (int64_t j = 0; j < grads.num_elems(); ++j) {
      ASSERT_DOUBLE_EQ(grads.as<double>()[j], (pass + 1) * once[static_cast<size_t>(j)]);
    }
  }
}

TEST(Ffn, WithoutAnOutputItStillSavesWhatBackwardNeeds) {
  const auto device = CpuDevice();
  for (const DType compute : {DType::kF64, DType::kBF16}) {
    Rig full(*device, TinySpec(), 4, compute), saving(*device, TinySpec(), 4, compute);
    full.ffn.Forward(full.Context(), full.bound, full.y, full.x);
    saving.ffn.Forward(saving.Context(), saving.bound, Tensor(), saving.x);
    for (Rig* rig : {&full, &saving}) {
      rig->params.ZeroGradients(device->ops());
      testing::LayerBackward(rig->ffn, rig->Context(), rig->bound, rig->dx, rig->dy, rig->x);
    }
    EXPECT_EQ(std::memcmp(full.dx.data, saving.dx.data, static_cast<size_t>(full.dx.num_bytes())), 0);
  }
}
}  // namespace
}  // namespace carousel
