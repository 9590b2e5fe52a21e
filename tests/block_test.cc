#include "core/model/block.h"

#include "launcher/plan/forwarding_ops.h"
#include "tests/layer_testing.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::RelativeL2;
using testing::TinySpec;

const MlstmLayer::Saved& MixerSaved(const Block::Memory& memory) {
  return std::get<MlstmLayer::Memory>(memory.mixer).saved;
}

// One block of a model. Its loss is sum(output * dy) with output = x2 + delta.
struct Rig {
  Rig(Device& device_in, const ModelSpec& spec, Block::Mode mode_in, DType compute = DType::kF64)
      : device(device_in), mode(mode_in), params(compute, 1, 0), block(spec, params, "block.", 0, 0) {
    const int64_t D = spec.embedding_dim, N = kB * kT;
    memory = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      const ScratchScope scope(arena);
      delta = arena.Scratch(compute, {N, D});
      bound = block.Bind(arena, device.ops(), {.B = kB, .T = kT}, mode);
      for (Tensor* t : {&x, &dy, &dx}) *t = arena.Persistent("test", WideOf(compute), {N, D});
      for (Tensor* t : {&delta_in, &rounded}) *t = arena.Persistent("test", compute, {N, D});
      if (compute == WideOf(compute)) rounded = dx;
    });
    testing::RandomizeWeights(params);
    testing::FillUnit(x, "x");
    testing::FillUnit(delta_in, "delta");
    testing::FillUnit(dy, "dy");
  }
  LayerContext Context() { return ContextOf(device.ops()); }
  LayerContext ContextOf(Ops& ops) { return {.ops = ops, .params = params, .B = kB, .T = kT}; }
  void Forward() { block.Forward(Context(), bound, {.delta_out = delta, .x = x, .delta_in = delta_in}); }
  double Loss() {
    Forward();
    return testing::Dot(bound.saved.x2, dy) + testing::Dot(delta, dy);
  }
  void Backward() { BackwardOn(device.ops(), true); }
  void BackwardOn(Ops& ops, bool round_out) {
    params.ZeroGradients(device.ops());
    std::memcpy(dx.data, dy.data, static_cast<size_t>(dx.num_bytes()));
    if (rounded.data != dx.data) device.ops().Cast({.y = rounded, .x = dx});
    block.Backward(ContextOf(ops), bound, mode, {.dx = dx, .dy = rounded, .round_out = round_out});
  }

  static constexpr int64_t kB = 2, kT = 5;
  Device& device;
  Block::Mode mode;
  ParamStore params;
  Block block;
  Block::Memory bound;
  Tensor x, delta_in, delta, dy, dx, rounded;
  std::unique_ptr<DeviceMemory> memory;
};

TEST(Block, GradientsEqualCentralDifferences) {
  const auto device = CpuDevice();
  for (const bool use_bias : {false, true}) {
    ModelSpec spec = TinySpec();
    spec.norm_eps = 1e-2;
    spec.use_bias = use_bias;
    Rig rig(*device, spec, Block::Mode::kSave);
    rig.Forward();
    rig.Backward();
    const auto loss = [&] { return rig.Loss(); };
    // The stream and what is still to be added to it have the same gradient.
    testing::ExpectGradient("x", loss, rig.x.Flatten(), rig.dx.Flatten());
    testing::ExpectGradient("delta", loss, rig.delta_in.Flatten(), rig.dx.Flatten());
    testing::ExpectParameterGradients(loss, rig.params, 6);
  }
}

TEST(Block, AddsItsTwoLayersToTheStream) {
  const auto device = CpuDevice();
  Rig rig(*device, TinySpec(), Block::Mode::kSave);
  // Without output projections the block is the identity.
  for (const char* name : {"block.mlstm_layer.out_proj.weight", "block.ffn.proj_down.weight"}) {
    device->ops().Fill({.y = rig.params.Weight(rig.params.Find(name)), .value = 0});
  }
  rig.Forward();
  for (int64_t j = 0; j < rig.x.num_elems(); ++j) {
    const double input = rig.x.as<double>()[j] + rig.delta_in.as<double>()[j];
    EXPECT_EQ(rig.bound.saved.x1.as<double>()[j], input);
    EXPECT_EQ(rig.bound.saved.x2.as<double>()[j] + rig.delta.as<double>()[j], input);
  }
}

// Counts casts of the stream's gradient.
class CastCounter : public ForwardingOps {
 public:
  CastCounter(Ops& ops, const void* of) : ForwardingOps(ops), of_(of) {}
  void Cast(const CastArgs& a) override {
    num_casts += a.x.data == of_ ? 1 : 0;
    ForwardingOps::Cast(a);
  }
  int num_casts = 0;

 private:
  const void* of_;
};

TEST(Block, TheGradientGoesOutRoundedWithoutAPassOfItsOwn) {
  const auto device = CpuDevice();
  ModelSpec slstm = testing::TinyPaperSpec();
  slstm.slstm_at = {0};
  for (const ModelSpec& spec : {TinySpec(), testing::TinyPaperSpec(), slstm}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      Rig rig(*device, spec, Block::Mode::kSave, compute), last(*device, spec, Block::Mode::kSave, compute);
      CastCounter ops(device->ops(), rig.dx.data);
      rig.Forward();
      rig.BackwardOn(ops, /*round_out=*/true);
      EXPECT_EQ(ops.num_casts, 0);
      const int64_t N = rig.dx.dim[0], D = rig.dx.dim[1];
      std::vector<std::byte> want(static_cast<size_t>(rig.rounded.num_bytes()));
      device->ops().Cast({.y = Tensor(want.data(), compute, {N, D}), .x = rig.dx});
      EXPECT_EQ(std::memcmp(rig.rounded.data, want.data(), want.size()), 0);
      // whoever needs no rounded gradient behind the block gets the same dx
      last.Forward();
      last.BackwardOn(device->ops(), /*round_out=*/false);
      EXPECT_EQ(std::memcmp(rig.dx.data, last.dx.data, static_cast<size_t>(rig.dx.num_bytes())), 0);
    }
  }
}

TEST(Block, RecomputationFromItsInputGivesTheSameBits) {
  const auto device = CpuDevice();
  for (const DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    Rig saved(*device, TinySpec(), Block::Mode::kSave, compute);
    Rig recomputed(*device, TinySpec(), Block::Mode::kRecompute, compute);
    saved.Forward();
    recomputed.Forward();
    // Another block uses the shared memory in between.
    for (const Tensor& t : {recomputed.bound.saved.x2, recomputed.bound.scratch.u,
                            MixerSaved(recomputed.bound).qkvo, MixerSaved(recomputed.bound).h,
                            recomputed.bound.ffn.saved.gate_up, recomputed.bound.ffn.scratch.act}) {
      device->ops().Fill({.y = t, .value = std::nan("")});
    }
    saved.Backward();
    recomputed.Backward();
    EXPECT_EQ(std::memcmp(saved.dx.data, recomputed.dx.data, static_cast<size_t>(saved.dx.num_bytes())), 0);
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      const Tensor a = saved.params.segment(0, s).grads, b = recomputed.params.segment(0, s).grads;
      EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.num_bytes())), 0) << NameOf(compute);
    }
  }
}

TEST(Block, RecomputedBlocksShareEverythingButTheirInput) {
  const auto device = CpuDevice();
  ParamStore params(DType::kF32, 1, 0);
  const Block a(TinySpec(), params, "a.", 0, 0), b(TinySpec(), params, "b.", 1, 1);
  Block::Memory memory_a, memory_b;
  const DeviceMemory memory(*device, [&](Arena& arena) {
    memory_a = a.Bind(arena, device->ops(), {.B = 2, .T = 3}, Block::Mode::kRecompute);
    memory_b = b.Bind(arena, device->ops(), {.B = 2, .T = 3}, Block::Mode::kRecompute);
  });
  EXPECT_NE(memory_a.saved.x1.data, memory_b.saved.x1.data);
  EXPECT_EQ(memory_a.saved.x2.data, memory_b.saved.x2.data);
  EXPECT_EQ(MixerSaved(memory_a).qkvo.data, MixerSaved(memory_b).qkvo.data);
  EXPECT_EQ(memory_a.ffn.saved.gate_up.data, memory_b.ffn.saved.gate_up.data);
}
}  // namespace
}  // namespace carousel
