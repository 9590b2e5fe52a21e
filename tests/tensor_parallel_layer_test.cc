// The layers of the large family with their heads and features split over a tensor axis: forward and all
// gradients equal those of one rank.
#include "tests/mesh_layer_subjects.h"

namespace carousel {
namespace {
using testing::BlockSubject;
using testing::ExpectSameAsOneRank;
using testing::FfnSubject;
using testing::LayerCase;
using testing::MlstmSubject;
using testing::NormSubject;

constexpr DType kDTypes[] = {DType::kF64, DType::kF32, DType::kBF16};

template <class Subject>
void ExpectSameOnEveryTensorAxis(const ModelSpec& spec) {
  for (const int64_t t : {2, 4}) {
    for (const DType compute : kDTypes) {
      LayerCase c = {.spec = spec, .sizes = {.tensor = t}, .compute = compute};
      ExpectSameAsOneRank<Subject>(c, std::to_string(t) + " ranks, " + NameOf(compute));
    }
  }
}
ModelSpec WithBiases() {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.use_bias = true;
  return spec;
}

TEST(TensorParallelLayer, NormEqualsOneRank) { ExpectSameOnEveryTensorAxis<NormSubject>(WithBiases()); }
TEST(TensorParallelLayer, LayerNormEqualsOneRank) {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.family = Family::kPaper;
  ExpectSameOnEveryTensorAxis<NormSubject>(spec);
}
TEST(TensorParallelLayer, FeedForwardEqualsOneRank) {
  ExpectSameOnEveryTensorAxis<FfnSubject>(testing::MeshSpecOfLayers());
  ExpectSameOnEveryTensorAxis<FfnSubject>(WithBiases());
}
TEST(TensorParallelLayer, FeedForwardOfThePaperFamilyEqualsOneRank) {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.family = Family::kPaper;
  spec.ffn_bias = true;
  ExpectSameOnEveryTensorAxis<FfnSubject>(spec);
}
TEST(TensorParallelLayer, MlstmEqualsOneRank) {
  ExpectSameOnEveryTensorAxis<MlstmSubject>(testing::MeshSpecOfLayers());
  ExpectSameOnEveryTensorAxis<MlstmSubject>(WithBiases());
}
TEST(TensorParallelLayer, MlstmWithASigmoidGateAndATightCapEqualsOneRank) {
  for (const bool normalize : {false, true}) {
    ModelSpec spec = WithBiases();
    spec.input_gate = InputGate::kSigmoid;
    spec.normalize_sigmoid = normalize;
    spec.gate_soft_cap = 1.5;
    ExpectSameOnEveryTensorAxis<MlstmSubject>(spec);
  }
}
TEST(TensorParallelLayer, MlstmWithDocumentsEqualsOneRank) {
  for (const auto& [name, resets] : testing::DocumentBorders(2, 16, 4)) {
    LayerCase c = {.sizes = {.tensor = 4}, .resets = resets};
    ExpectSameAsOneRank<MlstmSubject>(c, name);
  }
}
TEST(TensorParallelLayer, BlockWithTheEpsilonsOfTrainingEqualsOneRank) {
  ModelSpec spec = WithBiases();
  spec.norm_eps = spec.cell_eps = 1e-6;
  for (const int64_t t : {2, 4}) {
    const LayerCase c = {.spec = spec, .sizes = {.tensor = t}};
    ExpectSameAsOneRank<BlockSubject<Block::Mode::kSave>>(c, std::to_string(t) + " ranks");
  }
}
TEST(TensorParallelLayer, BlockEqualsOneRank) {
  ExpectSameOnEveryTensorAxis<BlockSubject<Block::Mode::kSave>>(WithBiases());
  ExpectSameOnEveryTensorAxis<BlockSubject<Block::Mode::kRecompute>>(WithBiases());
}
TEST(TensorParallelLayer, DropsTheSameElementsAsOneRank) {
  ModelSpec spec = WithBiases();
  spec.ffn_dropout = 0.3;
  for (const int64_t t : {2, 4}) {
    LayerCase c = {.spec = spec, .sizes = {.tensor = t}, .dropout_key = 7};
    ExpectSameAsOneRank<FfnSubject>(c, std::to_string(t) + " ranks");
    ExpectSameAsOneRank<BlockSubject<Block::Mode::kRecompute>>(c, std::to_string(t) + " ranks");
  }
}
TEST(TensorParallelLayer, PassesMayBeSmallerThanWhatWasBound) {
  LayerCase c = {.sizes = {.tensor = 2}, .B = 1, .T = 6, .bound = {.B = 2, .T = 16, .evaluation_T = 4}};
  ExpectSameAsOneRank<BlockSubject<Block::Mode::kSave>>(c, "short");
  c.B = 8;  // as in an evaluation
  c.T = 4;
  ExpectSameAsOneRank<BlockSubject<Block::Mode::kSave>>(c, "many sequences");
}

TEST(TensorParallelLayer, RanksHoldEqualPartsOfEverythingButNormsAndRowBiases) {
  const ModelSpec spec = WithBiases();
  ParamStore whole(DType::kF32, ParamPartition{}), part(DType::kF32, {.tensor_size = 2, .tensor_index = 1});
  const Block a(spec, whole, "block.", 0, 0), b(spec, part, "block.", 0, 0);
  ASSERT_EQ(whole.params().size(), part.params().size());
  for (size_t i = 0; i < whole.params().size(); ++i) {
    const Param& w = whole.params()[i];
    const Param& p = part.params()[i];
    const bool replicated = w.name.find("block.norm") == 0 || w.name == "block.mlstm_layer.out_proj.bias" ||
                            w.name == "block.ffn.proj_down.bias";
    EXPECT_EQ(w.name, p.name);
    EXPECT_EQ(w.shape, p.shape) << w.name;
    EXPECT_EQ(p.local_elems, replicated ? w.local_elems : w.local_elems / 2) << w.name;
    EXPECT_EQ(p.reduces_over(MeshAxis::kTensor), replicated) << w.name;
    EXPECT_TRUE(p.reduces_over(MeshAxis::kSequence)) << w.name;
  }
}

// With widths that fill whole units of the arena.
TEST(TensorParallelLayer, RanksShareEverythingThatABlockKeeps) {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.embedding_dim = spec.qk_dim = spec.v_dim = spec.ffn_dim = 64;
  const auto device = testing::CpuDevice(1);
  const auto kept_bytes = [&](int64_t t) {
    ParamStore params(DType::kF32, {.tensor_size = t});
    const Block block(spec, params, "block.", 0, 0);
    PassShape shape = {.B = 4, .T = 64};
    shape.axes.tensor.size = t;
    Arena arena;
    block.Bind(arena, device->ops(), shape, Block::Mode::kSave);
    return arena.bytes_by_category().at("saved");
  };
  EXPECT_EQ(2 * kept_bytes(2), kept_bytes(1));
  EXPECT_EQ(4 * kept_bytes(4), kept_bytes(1));
}

// What crosses the tensor axis: the number of calls and their bytes.
template <class Subject>
void ExpectCrossings(int64_t num_gathers_of_d, int64_t num_sums_of_d) {
  const LayerCase c = {.sizes = {.tensor = 2}};
  std::vector<FlightRecorder::Entry> entries;
  RunLocalMesh(c.sizes, [&](const Mesh& mesh) {
    const int64_t D = c.spec.embedding_dim, N = c.B * c.T;
    const auto device = testing::CpuDevice(1);
    ParamStore params(c.compute, {.tensor_size = 2, .tensor_index = mesh.tensor.index});
    Subject subject(c.spec, params);
    const PassShape shape = {.B = c.B, .T = c.T, .axes = AxesOf(mesh)};
    Tensor x, y;
    const DeviceMemory memory(*device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      for (Tensor* tensor : {&x, &y}) *tensor = arena.Persistent("test", c.compute, {N / 2, D});
      subject.Bind(arena, device->ops(), shape);
    });
    const LayerContext ctx = {.ops = device->ops(), .params = params, .axes = shape.axes, .B = c.B, .T = c.T};
    FlightRecorder& recorder = mesh.tensor.communicator->recorder();
    const int64_t before = recorder.num_calls();
    subject.Forward(ctx, y, x);
    subject.Backward(ctx, x, y, x);
    if (mesh.tensor.index > 0) return;
    for (const FlightRecorder::Entry& entry : recorder.Entries()) {
      if (entry.sequence >= before) entries.push_back(entry);
    }
  });
  int64_t gathers = 0, sums = 0;
  for (const FlightRecorder::Entry& entry : entries) {
    EXPECT_EQ(entry.call.num_elems, c.B * c.T * c.spec.embedding_dim);
    gathers += entry.call.op == CollectiveOp::kAllGather;
    sums += entry.call.op == CollectiveOp::kReduceScatterSum;
  }
  EXPECT_EQ(gathers, num_gathers_of_d);
  EXPECT_EQ(sums, num_sums_of_d);
  EXPECT_EQ(static_cast<int64_t>(entries.size()), num_gathers_of_d + num_sums_of_d);
}
TEST(TensorParallelLayer, ALayerCrossesTheBorderTwiceForwardAndThreeTimesBackward) {
  ExpectCrossings<FfnSubject>(3, 2);
  ExpectCrossings<MlstmSubject>(3, 2);
  ExpectCrossings<NormSubject>(0, 0);
}

TEST(TensorParallelLayerDeathTest, HeadsMustDivide) {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.num_heads = 2;
  ParamStore params(DType::kF32, {.tensor_size = 4});
  EXPECT_DEATH(MlstmLayer(spec, params, "p.", 0), "");
}
}  // namespace
}  // namespace carousel
