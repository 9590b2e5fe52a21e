// Gradients that one product writes: a pass into buffers with anything in them gives the bits of a pass into
// zeros, and further passes add to it.
#include <cstring>
#include <limits>

#include "core/model/language_model.h"
#include "tests/layer_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::TinyPaperSpec;
using testing::TinySpec;

void FillGradients(Device& device, const ParamStore& params, double value) {
  for (int g = 0; g < params.num_groups(); ++g) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      device.ops().Fill({.y = params.segment(g, s).grads, .value = value});
    }
  }
}
void BeginGradients(Device& device, ParamStore& params) {
  for (int g = 0; g < params.num_groups(); ++g) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) params.BeginGradients(device.ops(), g, s);
  }
}
// All gradients and their padding.
std::vector<std::byte> GradientBits(const ParamStore& params) {
  std::vector<std::byte> bits;
  for (int g = 0; g < params.num_groups(); ++g) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      const Tensor t = params.segment(g, s).grads;
      const auto* data = static_cast<const std::byte*>(t.data);
      bits.insert(bits.end(), data, data + t.num_bytes());
    }
  }
  return bits;
}

TEST(WrittenGradients, OnlyWhatNoLayerWritesBeginsAtZero) {
  const auto device = CpuDevice();
  // written parameters at the front, in the middle, side by side and at the end
  for (int pattern = 0; pattern < 32; ++pattern) {
    ParamStore params(DType::kF32, 1, 0);
    for (int p = 0; p < 5; ++p) {
      params.Register(
          {.name = "p" + std::to_string(p), .shape = {3, 7 + p}, .written = (pattern >> p & 1) != 0});
    }
    params.Register({.name = "vector", .shape = {11}});
    const DeviceMemory memory(*device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
    });
    FillGradients(*device, params, 5);
    BeginGradients(*device, params);
    for (int p = 0; p < 6; ++p) {
      const bool written = params.param(p).written;
      const Tensor gradient = params.Grad(p).Flatten();
      for (int64_t j = 0; j < gradient.num_elems(); ++j) EXPECT_EQ(gradient.as<float>()[j], written ? 5 : 0);
      if (!written) continue;
      EXPECT_FALSE(params.AddsToGradient(p));
    }
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      const ParamStore::Segment& segment = params.segment(0, s);
      for (int64_t j = segment.size; j < segment.padded_size; ++j) EXPECT_EQ(segment.grads.as<float>()[j], 0);
    }
    params.KeepGradients();
    for (int p = 0; p < 5; ++p) {
      EXPECT_TRUE(!params.param(p).written || params.AddsToGradient(p));
    }
    BeginGradients(*device, params);
    params.ZeroGradients(device->ops());
    for (int p = 0; p < 5; ++p) {
      EXPECT_TRUE(!params.param(p).written || params.AddsToGradient(p));
    }
    EXPECT_DEATH(params.AddsToGradient(5), "vector: its gradient is added to");
  }
}

// A model whose gradients stand in the store's buffers.
struct Rig {
  Rig(Device& device_in, const ModelSpec& spec, DType compute)
      : device(device_in), params(compute, 1, 0), model(spec, params, true) {
    memory = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      model.Bind(arena, device.ops(), kB, kT, /*train=*/true);
      for (Tensor* t : {&ids, &targets, &to_targets}) *t = arena.Persistent("test", DType::kI32, {kB * kT});
      loss = arena.Persistent("test", DType::kI64, {kExactSumElems});
    });
    testing::RandomizeWeights(params);
    for (int64_t n = 0; n < kB * kT; ++n) {
      ids.as<int32_t>()[n] = static_cast<int32_t>(n * 7 % spec.vocab_size);
      targets.as<int32_t>()[n] = static_cast<int32_t>(n * 5 % spec.vocab_size);
      to_targets.as<int32_t>()[n] = 0;
    }
    device.ops().Fill({.y = loss, .value = 0});
  }
  void Pass(bool no_targets) {
    LanguageModel::Input input = {.ids = ids, .targets = targets};
    if (no_targets) {
      input.targets = targets.Rows(0, 0);
      input.rows = {.of_targets = targets.Rows(0, 0), .to_targets = to_targets};
    }
    model.ForwardBackward(device.ops(), nullptr, input, loss);
  }

  static constexpr int64_t kB = 2, kT = 5;
  Device& device;
  ParamStore params;
  LanguageModel model;
  Tensor ids, targets, to_targets, loss;
  std::unique_ptr<DeviceMemory> memory;
};

TEST(WrittenGradients, APassOverAnythingGivesTheBitsOfAPassOverZeros) {
  const auto device = CpuDevice();
  ModelSpec tied = TinySpec(), recomputed = TinySpec();
  tied.tie_embeddings = true;
  recomputed.recompute = Recompute::kRecompute;
  recomputed.use_bias = true;
  const ModelSpec specs[] = {TinySpec(), tied, recomputed, TinyPaperSpec()};
  for (size_t i = 0; i < std::size(specs); ++i) {
    for (const DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
      for (const bool no_targets : {false, true}) {
        SCOPED_TRACE(std::to_string(i) + " " + NameOf(compute) + (no_targets ? ", no targets" : ""));
        Rig rig(*device, specs[i], compute);
        rig.params.ZeroGradients(device->ops());
        rig.Pass(no_targets);
        const std::vector<std::byte> want = GradientBits(rig.params);
        rig.Pass(no_targets);
        const std::vector<std::byte> want_twice = GradientBits(rig.params);

        FillGradients(*device, rig.params, std::numeric_limits<double>::quiet_NaN());
        BeginGradients(*device, rig.params);
        rig.Pass(no_targets);
        EXPECT_TRUE(GradientBits(rig.params) == want);
        rig.params.KeepGradients();
        rig.Pass(no_targets);
        EXPECT_TRUE(GradientBits(rig.params) == want_twice);
        EXPECT_EQ(want == want_twice, no_targets);
      }
    }
  }
}
}  // namespace
}  // namespace carousel
