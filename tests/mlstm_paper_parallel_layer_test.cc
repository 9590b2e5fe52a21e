// The mLSTM layer of the paper family with its heads split over a tensor axis, its tokens over a sequence
// axis, and both: forward and all gradients equal those of one rank.
#include "core/model/mlstm_paper_layer.h"

#include "tests/layer_backward.h"
#include "tests/mesh_layer_subjects.h"

namespace carousel {
namespace {
using testing::BlockSubject;
using testing::DocumentBorders;
using testing::ExpectSameAsOneRank;
using testing::LayerCase;
using testing::LayerResult;
using testing::OnOneRank;
using testing::RelativeL2;
using testing::RunLayer;

constexpr DType kDTypes[] = {DType::kF64, DType::kF32, DType::kBF16};
constexpr SequenceMode kModes[] = {SequenceMode::kState, SequenceMode::kHeads};
constexpr MeshSizes kMeshes[] = {
    {.tensor = 2}, {.tensor = 4}, {.sequence = 2}, {.sequence = 4}, {.sequence = 2, .tensor = 2}};

class PaperSubject {
 public:
  PaperSubject(const ModelSpec& spec, ParamStore& params)
      : compute_(params.compute()), layer_(spec, params, "layer.", 0, /*block=*/1) {}
  DType activations(const ParamStore&) const { return compute_; }
  void Bind(Arena& arena, const Ops& ops, const PassShape& shape) {
    memory_ = layer_.Bind(arena, ops, compute_, shape, /*train=*/true);
  }
  void Forward(const LayerContext& ctx, Tensor y, Tensor x) {
    layer_.Forward(ctx, memory_, {.y = y, .x = x});
  }
  void Backward(const LayerContext& ctx, Tensor dx, Tensor dy, Tensor x) {
    testing::LayerBackward(layer_, ctx, memory_, dx, dy, x);
  }

 private:
  DType compute_;
  MlstmPaperLayer layer_;
  MlstmPaperLayer::Memory memory_;
};

ModelSpec Spec() {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.family = Family::kPaper;
  spec.num_blocks = 3;
  spec.qk_dim = spec.v_dim = 24;
  spec.gate_soft_cap = spec.logit_soft_cap = 0;
  spec.qkv_block_size = 3;
  spec.conv_kernel = 4;
  spec.norm_eps = 0.5;  // so that the scale of the input gates matters: the gradient of their bias is no
                        // small difference of large terms
  return spec;
}
ModelSpec WithBiases() {
  ModelSpec spec = Spec();
  spec.use_bias = true;
  spec.qkv_block_size = 6;
  spec.conv_kernel = 2;
  return spec;
}
std::string Name(const LayerCase& c) {
  return std::string(c.mode == SequenceMode::kHeads ? "heads" : "state") + ", sequence " +
         std::to_string(c.sizes.sequence) + " x tensor " + std::to_string(c.sizes.tensor) + ", " +
         NameOf(c.compute);
}
// fn(case) of every mesh and, where there is a sequence axis, both ways over its borders.
template <class Fn>
void ForEveryMesh(LayerCase c, const Fn& fn) {
  for (const MeshSizes& sizes : kMeshes) {
    for (const SequenceMode mode : kModes) {
      if (sizes.sequence == 1 && mode != kModes[0]) continue;
      c.sizes = sizes;
      c.mode = mode;
      fn(c);
    }
  }
}
void ExpectSameOnEveryMesh(LayerCase c, const std::string& what = "") {
  ForEveryMesh(c, [&](LayerCase on_mesh) {
    for (const DType compute : kDTypes) {
      on_mesh.compute = compute;
      ExpectSameAsOneRank<PaperSubject>(on_mesh, Name(on_mesh) + what);
    }
  });
}

TEST(MlstmPaperParallelLayer, EqualsOneRank) {
  ExpectSameOnEveryMesh({.spec = Spec()});
  ExpectSameOnEveryMesh({.spec = Spec(), .B = 3, .T = 20});
  ExpectSameOnEveryMesh({.spec = Spec(), .B = 1, .T = 24});
}
TEST(MlstmPaperParallelLayer, EqualsOneRankWithBiases) {
  ExpectSameOnEveryMesh({.spec = WithBiases()});
  ExpectSameOnEveryMesh({.spec = WithBiases(), .B = 3, .T = 4});
}
TEST(MlstmPaperParallelLayer, EqualsOneRankWithKernelsOfOneTokenAndOfAllThatOneRankHas) {
  ModelSpec one = WithBiases(), longest = WithBiases();
  one.conv_kernel = 1;
  longest.conv_kernel = 5;  // 4 tokens before: what one of 4 ranks has
  ExpectSameOnEveryMesh({.spec = one});
  ExpectSameOnEveryMesh({.spec = longest, .resets = DocumentBorders(2, 16, 4).at("in the last part only")});
}
TEST(MlstmPaperParallelLayer, DocumentsMayCrossEveryBorder) {
  for (const int64_t part : {4, 8}) {
    for (const auto& [name, resets] : DocumentBorders(2, 16, part)) {
      ForEveryMesh({.spec = Spec(), .resets = resets}, [&](const LayerCase& c) {
        ExpectSameAsOneRank<PaperSubject>(c, Name(c) + ", documents: " + name);
      });
    }
  }
}
TEST(MlstmPaperParallelLayer, EveryKindOfCellEqualsOneRank) {
  ModelSpec sigmoid = WithBiases(), divided = WithBiases(), frozen = WithBiases();
  sigmoid.input_gate = divided.input_gate = InputGate::kSigmoid;
  sigmoid.normalize_sigmoid = false;
  frozen.normalizer_gradient = NormalizerGradient::kFrozen;
  frozen.chunk_length = 64;
  for (const ModelSpec& spec : {sigmoid, divided, frozen}) {
    ForEveryMesh({.spec = spec}, [&](const LayerCase& c) { ExpectSameAsOneRank<PaperSubject>(c, Name(c)); });
  }
}
TEST(MlstmPaperParallelLayer, DropsTheSameElementsAsOneRank) {
  ModelSpec spec = WithBiases();
  spec.dropout = 0.3;
  ForEveryMesh({.spec = spec, .dropout_key = 7}, [&](const LayerCase& c) {
    ExpectSameAsOneRank<PaperSubject>(c, Name(c));
    LayerCase without = OnOneRank(c);
    without.dropout_key = {};
    EXPECT_GT(RelativeL2(RunLayer<PaperSubject>(c).y, RunLayer<PaperSubject>(without).y), 0.1);
  });
}
TEST(MlstmPaperParallelLayer, BlocksThatKeepAndThatRecomputeEqualOneRank) {
  LayerCase on_mesh = {.spec = WithBiases(),
                       .resets = DocumentBorders(2, 16, 4).at("other places in each sequence"),
                       .dropout_key = 7};
  on_mesh.spec.dropout = 0.2;
  ForEveryMesh(on_mesh, [](const LayerCase& c) {
    ExpectSameAsOneRank<BlockSubject<Block::Mode::kSave>>(c, Name(c) + ", saved");
    ExpectSameAsOneRank<BlockSubject<Block::Mode::kRecompute>>(c, Name(c) + ", recomputed");
  });
}
TEST(MlstmPaperParallelLayer, PassesMayBeSmallerThanWhatWasBound) {
  const LayerCase bound = {.spec = Spec(), .B = 1, .T = 12, .bound = {.B = 2, .T = 16, .evaluation_T = 12}};
  ForEveryMesh(bound, [&](LayerCase c) {
    ExpectSameAsOneRank<PaperSubject>(c, Name(c) + ", short");
    c.B = 4;  // as in an evaluation
    c.T = 12;
    c.bound = {.B = 1, .T = 48, .evaluation_T = 12};
    ExpectSameAsOneRank<PaperSubject>(c, Name(c) + ", many sequences");
  });
}
TEST(MlstmPaperParallelLayer, RepeatsItsBits) {
  ForEveryMesh({.spec = Spec(), .compute = DType::kF32}, [&](const LayerCase& c) {
    const LayerResult a = RunLayer<PaperSubject>(c), b = RunLayer<PaperSubject>(c);
    EXPECT_EQ(a.y, b.y);
    EXPECT_EQ(a.dx, b.dx);
    EXPECT_EQ(a.gradients, b.gradients);
  });
}

// A layer on every rank of a mesh, run once forward and backward on the same numbers everywhere.
// after(mesh, params, number of calls on the tensor axis before).
template <class Fn>
void RunOnce(const LayerCase& c, const Fn& after) {
  const int64_t D = c.spec.embedding_dim, T = c.T / c.sizes.sequence, N = c.B * T, t = c.sizes.tensor;
  RunLocalMesh(c.sizes, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    ParamStore params(c.compute, {.tensor_size = t, .tensor_index = mesh.tensor.index});
    PaperSubject subject(c.spec, params);
    const PassShape shape = {.B = c.B, .T = T, .axes = AxesOf(mesh, c.mode)};
    Tensor x, y, dx;
    const DeviceMemory memory(*device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      for (Tensor* tensor : {&x, &y, &dx}) *tensor = arena.Persistent("test", c.compute, {N / t, D});
      subject.Bind(arena, device->ops(), shape);
    });
    testing::RandomizeWeightParts(params);
    testing::FillUnit(x, "x" + std::to_string(mesh.tensor.index));
    const LayerContext ctx = {.ops = device->ops(), .params = params, .axes = shape.axes, .B = c.B, .T = T};
    const int64_t before = mesh.tensor.communicator->recorder().num_calls();
    subject.Forward(ctx, y, x);
    subject.Backward(ctx, dx, y, x);
    after(mesh, params, before);
  });
}

TEST(MlstmPaperParallelLayer, GateBiasesHaveTheWholeGradientOnEveryRankOfTheTensorAxis) {
  const LayerCase c = {.spec = Spec(), .sizes = {.tensor = 4}, .compute = DType::kF32};
  std::vector<std::vector<float>> gradients(4);
  RunOnce(c, [&](const Mesh& mesh, const ParamStore& params, int64_t) {
    const int bias = params.Find("layer.igate_preact.bias");
    EXPECT_FALSE(params.param(bias).reduces_over(MeshAxis::kTensor));
    const Tensor grad = params.FusedGrad(bias, 2);
    gradients[static_cast<size_t>(mesh.tensor.index)] = {grad.as<float>(), grad.as<float>() + 8};
  });
  for (const std::vector<float>& gradient : gradients) {
    EXPECT_EQ(gradient, gradients[0]);
    for (const float value : gradient) EXPECT_NE(value, 0.0f);
  }
}

TEST(MlstmPaperParallelLayer, TheTensorAxisIsCrossedAtTheBordersAndByTheGates) {
  const LayerCase c = {.spec = Spec(), .sizes = {.tensor = 2}};
  const int64_t N = c.B * c.T, D = c.spec.embedding_dim, NH = c.spec.num_heads;
  RunOnce(c, [&](const Mesh& mesh, const ParamStore&, int64_t before) {
    std::vector<std::pair<CollectiveOp, int64_t>> calls;
    for (const FlightRecorder::Entry& entry : mesh.tensor.communicator->recorder().Entries()) {
      if (entry.sequence >= before) calls.emplace_back(entry.call.op, entry.call.num_elems);
    }
    const std::vector<std::pair<CollectiveOp, int64_t>> expected = {
        {CollectiveOp::kAllGather, N * D},          // x
        {CollectiveOp::kAllReduceSum, N * 2 * NH},  // gates
        {CollectiveOp::kReduceScatterSum, N * D},   // y
        {CollectiveOp::kAllGather, N * D},          // dy
        {CollectiveOp::kAllGather, N * 2 * NH},     // gradients of the gates
        {CollectiveOp::kReduceScatterSum, N * D},   // dx
        {CollectiveOp::kAllGather, N * D},          // x again
    };
    EXPECT_EQ(calls, expected);
  });
}

TEST(MlstmPaperParallelLayer, RanksHoldEqualPartsOfEverythingButGateAndRowBiases) {
  ParamStore whole(DType::kF32, ParamPartition{}), part(DType::kF32, {.tensor_size = 2, .tensor_index = 1});
  const MlstmPaperLayer a(WithBiases(), whole, "layer.", 0, 1), b(WithBiases(), part, "layer.", 0, 1);
  ASSERT_EQ(whole.params().size(), part.params().size());
  for (size_t i = 0; i < whole.params().size(); ++i) {
    const Param& w = whole.params()[i];
    const Param& p = part.params()[i];
    const bool row_bias = w.name == "layer.proj_down.bias";
    const bool gate_bias = w.name.ends_with("gate_preact.bias");
    EXPECT_EQ(p.shape, w.shape) << w.name;
    EXPECT_EQ(p.local_elems, row_bias || gate_bias ? w.local_elems : w.local_elems / 2) << w.name;
    EXPECT_EQ(p.reduces_over(MeshAxis::kTensor), row_bias) << w.name;
    EXPECT_TRUE(p.reduces_over(MeshAxis::kSequence)) << w.name;
  }
}

// Bytes of a layer that is bound for B sequences of T tokens of one rank of the mesh.
int64_t BoundBytes(const ModelSpec& spec, const MeshSizes& sizes, SequenceMode mode, int64_t B, int64_t T) {
  ModelAxes axes;
  axes.tensor.size = sizes.tensor;
  axes.sequence.size = sizes.sequence;
  axes.sequence_mode = mode;
  const auto device = testing::CpuDevice(1);
  ParamStore params(DType::kF32, {.tensor_size = axes.tensor.size});
  const MlstmPaperLayer layer(spec, params, "layer.", 0, 1);
  Arena arena;
  layer.Bind(arena, device->ops(), DType::kF32, {.B = B, .T = T, .axes = axes}, /*train=*/true);
  return arena.total_bytes();
}
TEST(MlstmPaperParallelLayer, RanksShareTheMemory) {
  ModelSpec spec = Spec();
  spec.embedding_dim = 64;
  spec.qk_dim = spec.v_dim = 384;
  const auto whole = static_cast<double>(BoundBytes(spec, {}, SequenceMode::kAuto, 2, 512));
  // Besides a quarter of each: rows of all ranks of the tensor axis.
  EXPECT_LT(static_cast<double>(BoundBytes(spec, {.tensor = 4}, SequenceMode::kAuto, 2, 512)), 0.3 * whole);
  for (const SequenceMode mode : kModes) {
    EXPECT_LT(static_cast<double>(BoundBytes(spec, {.sequence = 4}, mode, 2, 512 / 4)), 0.45 * whole);
  }
}

TEST(MlstmPaperParallelLayerDeathTest, HeadsAndBlocksMustDivide) {
  ParamStore three(DType::kF32, {.tensor_size = 3}), four(DType::kF32, {.tensor_size = 4});
  EXPECT_DEATH(MlstmPaperLayer(Spec(), three, "layer.", 0, 1), "CHECK");
  ModelSpec spec = Spec();
  spec.qkv_block_size = 12;  // two blocks
  EXPECT_DEATH(MlstmPaperLayer(spec, four, "layer.", 0, 1), "CHECK");
}
}  // namespace
}  // namespace carousel
