// The layers of the large family with the tokens of a sequence split over a sequence axis, and over sequence
// and tensor axes together: forward and all gradients equal those of one rank.
#include "tests/mesh_layer_subjects.h"

namespace carousel {
namespace {
using testing::BlockSubject;
using testing::DocumentBorders;
using testing::ExpectSameAsOneRank;
using testing::FfnSubject;
using testing::LayerCase;
using testing::MlstmSubject;

constexpr SequenceMode kModes[] = {SequenceMode::kState, SequenceMode::kHeads};
constexpr MeshSizes kMeshes[] = {{.sequence = 2}, {.sequence = 4}, {.sequence = 2, .tensor = 2}};

std::string Name(const LayerCase& c) {
  return std::string(c.mode == SequenceMode::kHeads ? "heads" : "state") + ", sequence " +
         std::to_string(c.sizes.sequence) + " x tensor " + std::to_string(c.sizes.tensor) + ", " +
         NameOf(c.compute);
}
template <class Subject>
void ExpectSameOnEveryMesh(LayerCase c) {
  for (const MeshSizes& sizes : kMeshes) {
    for (const SequenceMode mode : kModes) {
      for (const DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
        c.sizes = sizes;
        c.mode = mode;
        c.compute = compute;
        ExpectSameAsOneRank<Subject>(c, Name(c));
      }
    }
  }
}
ModelSpec WithBiases() {
  ModelSpec spec = testing::MeshSpecOfLayers();
  spec.use_bias = true;
  return spec;
}

TEST(SequenceParallelLayer, MlstmEqualsOneRank) {
  ExpectSameOnEveryMesh<MlstmSubject>({});
  ExpectSameOnEveryMesh<MlstmSubject>({.spec = WithBiases(), .B = 3, .T = 20});
  ExpectSameOnEveryMesh<MlstmSubject>({.B = 1, .T = 24});
}
TEST(SequenceParallelLayer, MlstmWithOneTokenPerRankEqualsOneRank) {
  for (const SequenceMode mode : kModes) {
    const LayerCase c = {.sizes = {.sequence = 4}, .mode = mode, .B = 3, .T = 4};
    ExpectSameAsOneRank<MlstmSubject>(c, Name(c));
  }
}
TEST(SequenceParallelLayer, DocumentsMayCrossEveryBorder) {
  for (const MeshSizes& sizes : kMeshes) {
    for (const auto& [name, resets] : DocumentBorders(2, 16, 16 / sizes.sequence)) {
      for (const SequenceMode mode : kModes) {
        const LayerCase c = {.spec = WithBiases(), .sizes = sizes, .mode = mode, .resets = resets};
        ExpectSameAsOneRank<MlstmSubject>(c, Name(c) + ", documents: " + name);
      }
    }
  }
}
TEST(SequenceParallelLayer, EveryKindOfCellEqualsOneRank) {
  ModelSpec sigmoid = WithBiases(), divided = WithBiases(), frozen = WithBiases(), eps = WithBiases();
  sigmoid.input_gate = divided.input_gate = InputGate::kSigmoid;
  sigmoid.normalize_sigmoid = false;
  sigmoid.gate_soft_cap = 1.5;
  frozen.normalizer_gradient = NormalizerGradient::kFrozen;
  frozen.gate_soft_cap = 0;
  eps.cell_eps = 1e-2;  // in units of the stabiliser, which must therefore be the same
  eps.chunk_length = 64;
  for (const ModelSpec& spec : {sigmoid, divided, frozen, eps}) {
    ExpectSameOnEveryMesh<MlstmSubject>(
        {.spec = spec, .resets = DocumentBorders(2, 16, 4).at("last token of a part")});
  }
}
TEST(SequenceParallelLayer, BlockEqualsOneRank) {
  const LayerCase c = {.spec = WithBiases(),
                       .resets = DocumentBorders(2, 16, 4).at("other places in each sequence")};
  ExpectSameOnEveryMesh<BlockSubject<Block::Mode::kSave>>(c);
  ExpectSameOnEveryMesh<BlockSubject<Block::Mode::kRecompute>>(c);
}
TEST(SequenceParallelLayer, BlockWithTheEpsilonsOfTrainingEqualsOneRank) {
  LayerCase c = {.spec = WithBiases()};
  c.spec.norm_eps = c.spec.cell_eps = 1e-6;
  for (const MeshSizes& sizes : kMeshes) {
    for (const SequenceMode mode : kModes) {
      c.sizes = sizes;
      c.mode = mode;
      ExpectSameAsOneRank<BlockSubject<Block::Mode::kSave>>(c, Name(c));
    }
  }
}
TEST(SequenceParallelLayer, DropsTheSameElementsAsOneRank) {
  ModelSpec spec = WithBiases();
  spec.ffn_dropout = 0.3;
  for (const MeshSizes& sizes : kMeshes) {
    const LayerCase c = {.spec = spec, .sizes = sizes, .mode = SequenceMode::kHeads, .dropout_key = 7};
    ExpectSameAsOneRank<FfnSubject>(c, Name(c));
    ExpectSameAsOneRank<BlockSubject<Block::Mode::kRecompute>>(c, Name(c));
  }
}
TEST(SequenceParallelLayer, PassesMayBeSmallerThanWhatWasBound) {
  for (const MeshSizes& sizes : kMeshes) {
    for (const SequenceMode mode : kModes) {
      const PassShape bound = {.B = 2, .T = 16, .evaluation_T = 4};
      LayerCase c = {.sizes = sizes, .mode = mode, .B = 1, .T = 8, .bound = bound};
      ExpectSameAsOneRank<BlockSubject<Block::Mode::kSave>>(c, Name(c) + ", short");
      c.B = 8;  // as in an evaluation
      c.T = 4;
      ExpectSameAsOneRank<BlockSubject<Block::Mode::kSave>>(c, Name(c) + ", many sequences");
    }
  }
}
TEST(SequenceParallelLayer, TheModeIsChosenWhereNoneIsAskedFor) {
  for (const int64_t num_heads : {2, 4}) {  // 2 heads do not divide over 4 ranks
    ModelSpec spec = WithBiases();
    spec.num_heads = num_heads;
    const LayerCase c = {.spec = spec, .sizes = {.sequence = 4}};
    ExpectSameAsOneRank<MlstmSubject>(c, std::to_string(num_heads) + " heads");
  }
}

// A context of one rank of an axis that nobody reaches.
void ForwardWithState(const ModelAxes& axes) {
  const ModelSpec spec = testing::MeshSpecOfLayers();
  const auto device = testing::CpuDevice(1);
  ParamStore params(DType::kF32, {.tensor_size = axes.tensor.size});
  const MlstmLayer layer(spec, params, "p.", 0);
  const PassShape shape = {.B = 1, .T = 2, .axes = axes};
  MlstmLayer::Memory bound;
  LayerState state;
  Tensor x, y;
  const DeviceMemory memory(*device, [&](Arena& arena) {
    params.Bind(arena, false);
    bound = layer.Bind(arena, device->ops(), DType::kF32, shape, /*train=*/false);
    state = layer.BindState(arena, DType::kF32, 1);
    x = arena.Persistent("test", DType::kF32, {2 / axes.tensor.size, spec.embedding_dim});
    y = arena.Persistent("test", DType::kF32, {2 / axes.tensor.size, spec.embedding_dim});
  });
  layer.Forward({.ops = device->ops(), .params = params, .axes = axes, .B = 1, .T = 2}, bound,
                {.y = y, .x = x, .initial = state, .last = state});
}
TEST(SequenceParallelLayerDeathTest, GenerationRunsOnOneRank) {
  ModelAxes sequence, tensor;
  sequence.sequence.size = 2;
  tensor.tensor.size = 2;
  EXPECT_DEATH(ForwardWithState(sequence), "a state is carried");
  EXPECT_DEATH(ForwardWithState(tensor), "a state is carried");
}
}  // namespace
}  // namespace carousel
