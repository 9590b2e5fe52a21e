// The sLSTM layer with its heads split over a tensor axis, a sequence axis and both: forward and all
// gradients equal those of one rank.
#include "core/model/slstm_layer.h"

#include <cmath>

#include "tests/layer_backward.h"
#include "tests/mesh_layer_subjects.h"

namespace carousel {
namespace {
using testing::BlockSubject;
using testing::DocumentBorders;
using testing::LayerCase;
using testing::LayerResult;
using testing::OnOneRank;
using testing::RelativeL2;
using testing::RunLayer;

constexpr DType kDTypes[] = {DType::kF64, DType::kF32, DType::kBF16};
constexpr MeshSizes kMeshes[] = {
    {.tensor = 2}, {.tensor = 4}, {.sequence = 2}, {.sequence = 4}, {.sequence = 2, .tensor = 2}};

class SlstmSubject {
 public:
  SlstmSubject(const ModelSpec& spec, ParamStore& params)
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
  const SlstmLayer::Memory& memory() const { return memory_; }

 private:
  DType compute_;
  SlstmLayer layer_;
  SlstmLayer::Memory memory_;
};

ModelSpec Spec(int64_t conv_kernel = 3) {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.family = Family::kPaper;
  spec.num_blocks = 3;
  spec.slstm_at = {1};
  spec.slstm_num_heads = 4;
  spec.slstm_conv_kernel = conv_kernel;
  return spec;
}
std::string Name(const LayerCase& c) {
  return "sequence " + std::to_string(c.sizes.sequence) + " x tensor " + std::to_string(c.sizes.tensor) +
         ", " + NameOf(c.compute);
}

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  return std::sqrt(sum);
}
std::vector<double> Difference(std::vector<double> a, const std::vector<double>& b) {
  for (size_t j = 0; j < a.size(); ++j) a[j] -= b[j];
  return a;
}

// Forward and all gradients, every tensor relative to its norm.
template <class Subject = SlstmSubject>
void ExpectOneRanksResult(const LayerCase& c, const std::string& what) {
  const double tolerance = c.compute == DType::kF64 ? 1e-12 : c.compute == DType::kF32 ? 2e-6 : 2e-2;
  const LayerResult result = RunLayer<Subject>(c), one = RunLayer<Subject>(OnOneRank(c));
  EXPECT_LT(RelativeL2(result.y, one.y), tolerance) << what << ": y";
  EXPECT_LT(RelativeL2(result.dx, one.dx), tolerance) << what << ": dx";
  ASSERT_EQ(result.gradients.size(), one.gradients.size()) << what;
  for (const auto& [name, expected] : one.gradients) {
    // The input gate multiplies both c and n: a factor that all tokens have divides out, and the gradient of
    // its bias is zero but for rounding. Where every token is a document only z and o have gradients.
    std::string like = name;
    if (name.ends_with("igate.bias")) like.replace(like.size() - 10, 1, "z");
    EXPECT_LE(Norm(Difference(result.gradients.at(name), expected)), tolerance * Norm(one.gradients.at(like)))
        << what << ": gradient of " << name;
  }
}
void ExpectSameOnEveryMesh(LayerCase c) {
  for (const MeshSizes& sizes : kMeshes) {
    for (const DType compute : kDTypes) {
      c.sizes = sizes;
      c.compute = compute;
      ExpectOneRanksResult(c, Name(c));
    }
  }
}

TEST(SlstmParallelLayer, EqualsOneRank) {
  ExpectSameOnEveryMesh({.spec = Spec()});
  ExpectSameOnEveryMesh({.spec = Spec(), .B = 3, .T = 20});
  ExpectSameOnEveryMesh({.spec = Spec(), .B = 1, .T = 24});
}
TEST(SlstmParallelLayer, EqualsOneRankWithoutConvolution) {
  ExpectSameOnEveryMesh({.spec = Spec(0), .B = 3, .T = 8});
}
TEST(SlstmParallelLayer, EqualsOneRankWithAKernelLongerThanARanksTokens) {
  ExpectSameOnEveryMesh({.spec = Spec(6), .B = 4, .T = 4});
}
TEST(SlstmParallelLayer, EqualsOneRankWithoutNormWeight) {
  ModelSpec spec = Spec();
  spec.slstm_norm_weight = false;
  ExpectSameOnEveryMesh({.spec = spec});
}
TEST(SlstmParallelLayer, EqualsOneRankInTheLargeFamily) {
  ModelSpec spec = Spec();
  spec.family = Family::kLarge;
  ExpectSameOnEveryMesh({.spec = spec});
}
TEST(SlstmParallelLayer, EqualsOneRankWithAChangedRecurrentGradient) {
  ModelSpec clipped = Spec(), cut = Spec();
  clipped.slstm_gradient_clip = 1e-2;
  cut.slstm_gradient_cut = true;
  for (const MeshSizes& sizes : kMeshes) {
    for (const ModelSpec& spec : {clipped, cut}) {
      const LayerCase c = {.spec = spec, .sizes = sizes};
      ExpectOneRanksResult(c, Name(c));
    }
  }
}
TEST(SlstmParallelLayer, DocumentsMayCrossEveryBorder) {
  for (const MeshSizes& sizes : kMeshes) {
    for (const int64_t part : {4, 8}) {
      for (const auto& [name, resets] : DocumentBorders(2, 16, part)) {
        const LayerCase c = {.spec = Spec(), .sizes = sizes, .resets = resets};
        ExpectOneRanksResult(c, Name(c) + ", documents: " + name);
      }
    }
  }
}
TEST(SlstmParallelLayer, DropsTheSameElementsAsOneRank) {
  ModelSpec spec = Spec();
  spec.dropout = 0.3;
  for (const MeshSizes& sizes : kMeshes) {
    LayerCase c = {.spec = spec, .sizes = sizes, .dropout_key = 7};
    ExpectOneRanksResult(c, Name(c));
    c.compute = DType::kF32;
    ExpectOneRanksResult(c, Name(c));
    // And it does drop.
    LayerCase without = OnOneRank(c);
    without.dropout_key = {};
    EXPECT_GT(RelativeL2(RunLayer<SlstmSubject>(c).y, RunLayer<SlstmSubject>(without).y), 0.1);
  }
}
TEST(SlstmParallelLayer, BlocksThatKeepAndThatRecomputeEqualOneRank) {
  ModelSpec spec = Spec();
  spec.slstm_at = {0};
  spec.ffn_bias = true;
  spec.dropout = spec.ffn_dropout = 0.2;
  for (const MeshSizes& sizes : kMeshes) {
    const LayerCase c = {.spec = spec,
                         .sizes = sizes,
                         .resets = DocumentBorders(2, 16, 4).at("other places in each sequence"),
                         .dropout_key = 7};
    ExpectOneRanksResult<BlockSubject<Block::Mode::kSave>>(c, Name(c) + ", saved");
    ExpectOneRanksResult<BlockSubject<Block::Mode::kRecompute>>(c, Name(c) + ", recomputed");
  }
}
TEST(SlstmParallelLayer, PassesMayBeSmallerThanWhatWasBound) {
  for (const MeshSizes& sizes : kMeshes) {
    LayerCase c = {
        .spec = Spec(), .sizes = sizes, .B = 1, .T = 8, .bound = {.B = 2, .T = 16, .evaluation_T = 4}};
    ExpectOneRanksResult(c, Name(c) + ", short");
    c.B = 8;  // as in an evaluation
    c.T = 4;
    ExpectOneRanksResult(c, Name(c) + ", many sequences");
  }
}
TEST(SlstmParallelLayer, RepeatsItsBits) {
  for (const MeshSizes& sizes : kMeshes) {
    const LayerCase c = {.spec = Spec(), .sizes = sizes, .compute = DType::kF32};
    const LayerResult a = RunLayer<SlstmSubject>(c), b = RunLayer<SlstmSubject>(c);
    EXPECT_EQ(a.y, b.y);
    EXPECT_EQ(a.dx, b.dx);
    EXPECT_EQ(a.gradients, b.gradients);
  }
}

// Axes whose other ranks nobody reaches.
ModelAxes TensorAxis(int64_t size, int64_t index = 0) {
  ModelAxes axes;
  axes.tensor.size = size;
  axes.tensor.index = index;
  return axes;
}
ModelAxes SequenceAxis(int64_t size, int64_t index = 0) {
  ModelAxes axes;
  axes.sequence.size = size;
  axes.sequence.index = index;
  return axes;
}
// One rank of such axes, its layer bound for B sequences of T of its own tokens.
struct LoneRank {
  LoneRank(const ModelSpec& spec, const ModelAxes& axes_in, int64_t B, int64_t T)
      : axes(axes_in),
        device(testing::CpuDevice(1)),
        params(DType::kF32, {.tensor_size = axes.tensor.size, .tensor_index = axes.tensor.index}),
        layer(spec, params, "layer.", 0, 1) {
    memory = std::make_unique<DeviceMemory>(*device, [&](Arena& arena) {
      params.Bind(arena, false);
      const int64_t before = arena.total_bytes();
      bound = layer.Bind(arena, device->ops(), DType::kF32, {.B = B, .T = T, .axes = axes}, /*train=*/true);
      bytes = arena.total_bytes() - before;
    });
  }
  ModelAxes axes;
  std::unique_ptr<Device> device;
  ParamStore params;
  SlstmLayer layer;
  SlstmLayer::Memory bound;
  int64_t bytes = 0;
  std::unique_ptr<DeviceMemory> memory;
};

TEST(SlstmParallelLayer, OneRankHasNoExchangeMemory) {
  const LoneRank rank(Spec(), {}, 2, 16);
  EXPECT_FALSE(rank.bound.saved.x.defined());
  EXPECT_FALSE(rank.bound.scratch.exchange.outside.defined());
  EXPECT_FALSE(rank.bound.scratch.exchange.workspace.sent.defined());
  EXPECT_FALSE(rank.bound.scratch.packed.recurrent.defined());
}

TEST(SlstmParallelLayer, RanksShareTheMemory) {
  ModelSpec spec = Spec();
  spec.embedding_dim = 512;
  const LoneRank whole(spec, {}, 2, 256);
  // A rank of the tensor axis has all tokens, one of the sequence axis a part of them; both a part of the
  // columns of the cell. What is more than a quarter: the exchanged input and the exchange's buffers.
  const LoneRank tensor(spec, TensorAxis(4, 1), 2, 256);
  const LoneRank sequence(spec, SequenceAxis(4, 1), 2, 256 / 4);
  for (const LoneRank* rank : {&tensor, &sequence}) {
    EXPECT_LT(rank->bytes, 0.4 * static_cast<double>(whole.bytes));
  }
}

TEST(SlstmParallelLayer, RanksHoldEqualPartsOfEveryParameter) {
  ParamStore whole(DType::kF32, ParamPartition{}), part(DType::kF32, {.tensor_size = 2, .tensor_index = 1});
  const SlstmLayer a(Spec(), whole, "layer.", 0, 1), b(Spec(), part, "layer.", 0, 1);
  ASSERT_EQ(whole.params().size(), part.params().size());
  for (size_t i = 0; i < whole.params().size(); ++i) {
    const Param& param = part.params()[i];
    EXPECT_EQ(param.shape, whole.params()[i].shape) << param.name;
    EXPECT_EQ(2 * param.local_elems, whole.params()[i].local_elems) << param.name;
    EXPECT_FALSE(param.reduces_over(MeshAxis::kTensor)) << param.name;
    EXPECT_TRUE(param.reduces_over(MeshAxis::kSequence)) << param.name;
  }
}

TEST(SlstmParallelLayer, EachAxisIsCrossedByOneExchangeEachWay) {
  const LayerCase c = {.spec = Spec(), .sizes = {.sequence = 2, .tensor = 2}};
  const int64_t D = c.spec.embedding_dim, T = c.T / 2, N = c.B * T;
  RunLocalMesh(c.sizes, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    ParamStore params(c.compute, {.tensor_size = 2, .tensor_index = mesh.tensor.index});
    SlstmSubject subject(c.spec, params);
    const PassShape shape = {.B = c.B, .T = T, .axes = AxesOf(mesh)};
    Tensor x, y;
    const DeviceMemory memory(*device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      for (Tensor* tensor : {&x, &y}) *tensor = arena.Persistent("test", c.compute, {N / 2, D});
      subject.Bind(arena, device->ops(), shape);
    });
    const LayerContext ctx = {.ops = device->ops(), .params = params, .axes = shape.axes, .B = c.B, .T = T};
    std::vector<int64_t> before;
    for (const Axis* axis : {&mesh.tensor, &mesh.sequence}) {
      before.push_back(axis->communicator->recorder().num_calls());
    }
    subject.Forward(ctx, y, x);
    subject.Backward(ctx, x, y, x);
    for (const Axis* axis : {&mesh.tensor, &mesh.sequence}) {
      FlightRecorder& recorder = axis->communicator->recorder();
      EXPECT_EQ(recorder.num_calls() - before[axis == &mesh.sequence], 4);  // x, y, dy, dx
      for (const FlightRecorder::Entry& entry : recorder.Entries()) {
        if (entry.sequence < before[axis == &mesh.sequence]) continue;
        EXPECT_EQ(entry.call.op, CollectiveOp::kAllToAll);
        EXPECT_EQ(entry.call.num_elems, N * D / 2);
      }
    }
  });
}

TEST(SlstmParallelLayerDeathTest, HeadsMustDivide) {
  ParamStore params(DType::kF32, {.tensor_size = 3});
  EXPECT_DEATH(SlstmLayer(Spec(), params, "layer.", 0, 1), "CHECK");
  EXPECT_DEATH(LoneRank(Spec(), SequenceAxis(3), 2, 16), "CHECK");
}

TEST(SlstmParallelLayerDeathTest, AStateIsCarriedByOneRank) {
  LoneRank rank(Spec(), SequenceAxis(2), 1, 2);
  EXPECT_DEATH(
      {
        LayerState state;
        Tensor x;
        const DeviceMemory memory(*rank.device, [&](Arena& arena) {
          state = rank.layer.BindState(arena, DType::kF32, 1);
          x = arena.Persistent("test", DType::kF32, {2, Spec().embedding_dim});
        });
        rank.layer.Forward(
            {.ops = rank.device->ops(), .params = rank.params, .axes = rank.axes, .B = 1, .T = 2}, rank.bound,
            {.y = x, .x = x, .initial = state, .last = state});
      },
      "a state is carried");
}
}  // namespace
}  // namespace carousel
