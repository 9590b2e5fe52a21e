// The same model, data and optimizer on meshes with a pipe, a tensor or a sequence axis.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/mesh_training.h"

namespace carousel {
namespace {
using testing::Difference;
using testing::MeshLargeSpec;
using testing::MeshPaperSpec;
using testing::MeshRun;
using testing::MeshRunOptions;
using testing::MeshTrainSpec;
using testing::TrainOnMesh;

std::string Text(const MeshSizes& s) {
  return "pipe " + std::to_string(s.pipe) + " replicate " + std::to_string(s.replicate) + " shard " +
         std::to_string(s.shard) + " sequence " + std::to_string(s.sequence) + " tensor " +
         std::to_string(s.tensor);
}

double Tolerance(DType compute) { return compute == DType::kF64 ? 1e-12 : 2e-6; }

// The run of `spec` on every mesh equals that on one rank up to rounding.
void ExpectEqualUpToRounding(const TrainSpec& spec, const std::vector<MeshSizes>& meshes) {
  const MeshRun one = TrainOnMesh({}, spec);
  for (const MeshSizes& sizes : meshes) {
    const MeshRun run = TrainOnMesh(sizes, spec);
    std::string where;
    EXPECT_LE(Difference(run, one, &where), Tolerance(spec.compute))
        << where << " on " << Text(sizes) << " " << NameOf(spec.compute);
  }
}

// Models that differ in what crosses the border between two ranks.
std::vector<ModelSpec> Models() {
  ModelSpec large = MeshLargeSpec(), paper = MeshPaperSpec(), recomputed = MeshPaperSpec(), bare = large;
  paper.dropout = paper.ffn_dropout = paper.embedding_dropout = 0.1;
  recomputed.recompute = Recompute::kRecompute;
  bare.add_out_norm = false;
  bare.embedding_dropout = 0.2;
  return {large, paper, recomputed, bare};
}

TEST(Pipeline, HasTheBitsOfOneStage) {
  for (const ModelSpec& model : Models()) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      const TrainSpec spec = MeshTrainSpec(model, compute);
      const MeshRun one = TrainOnMesh({}, spec);
      ASSERT_EQ(one.losses.size(), 3u);
      EXPECT_NE(one.losses[2], one.losses[0]);
      for (const MeshSizes& sizes : {MeshSizes{.pipe = 2}, MeshSizes{.pipe = 3}, MeshSizes{.pipe = 4},
                                     MeshSizes{.pipe = 2, .replicate = 2}}) {
        EXPECT_TRUE(TrainOnMesh(sizes, spec) == one) << Text(sizes) << " " << NameOf(compute);
      }
    }
  }
}

TEST(Pipeline, HasTheBitsOfOneStageWithFewerMicroBatchesThanStages) {
  TrainSpec spec = MeshTrainSpec(MeshPaperSpec(), DType::kF64);
  for (const int64_t micro_batches : {1, 2, 7}) {
    spec.micro_batches_per_step = micro_batches;
    EXPECT_TRUE(TrainOnMesh({.pipe = 4}, spec) == TrainOnMesh({}, spec)) << micro_batches;
  }
}

TEST(Pipeline, KeepsActivationsOfAsManyMicroBatchesAsAreInFlight) {
  ModelSpec model = MeshLargeSpec();
  model.slstm_at = {};
  const TrainSpec spec = MeshTrainSpec(model, DType::kF32);
  std::vector<int64_t> saved(4);
  RunLocalMesh({.pipe = 4}, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    ShardedSyncFactory sync;
    const Arena plan = Trainer::Plan(spec, *device, mesh, sync);
    saved[static_cast<size_t>(mesh.pipe.index)] = plan.bytes_by_category().at("saved");
  });
  // One block each: 4, 3, 2 and 1 times its activations, and the last stage has the head's.
  EXPECT_EQ(saved[0] * 3, saved[1] * 4);
  EXPECT_EQ(saved[0], saved[2] * 2);
  EXPECT_LT(saved[3], saved[2]);
  EXPECT_GT(saved[3], saved[2] / 2);
}

// A gradient that is not finite on one stage is everybody's: nobody changes anything.
TEST(Pipeline, AStepThatIsNotFiniteIsSkippedByAllStagesAlike) {
  const TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  RunLocalMesh({.pipe = 2, .replicate = 2}, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    ShardedSyncFactory sync;
    Trainer trainer(spec, *device, mesh, sync);
    trainer.Initialize(1);
    testing::MeshSource source(spec);
    trainer.Step(0, source);
    std::map<std::string, std::vector<double>> before, after;
    testing::CollectWeights(trainer, &before);
    trainer.WaitForWeights();
    const int head = trainer.params().Find("lm_head.weight");
    if (mesh.world.index == 3) {
      trainer.params().Weight(head).as<float>()[5] = std::numeric_limits<float>::infinity();
    }
    const StepResult result = trainer.Step(1, source);
    EXPECT_TRUE(result.skipped);
    EXPECT_GT(result.num_non_finite, 0);
    testing::CollectWeights(trainer, &after);
    ASSERT_FALSE(before.empty());
    for (const auto& [name, values] : before) {
      // Bits, because what other ranks have is NaN here.
      const std::vector<double>& now = after.at(name);
      EXPECT_EQ(std::memcmp(values.data(), now.data(), values.size() * sizeof(double)), 0) << name;
    }
  });
}

// What a rank of the sequence axis reads of a micro-batch.
TEST(SequencePart, IsItsPartOfEverySequence) {
  Batch batch = testing::RandomBatch(/*B=*/3, /*T=*/8, /*V=*/50, /*seed=*/1, /*resets=*/true);
  for (int64_t n = 0; n < 24; ++n) batch.lengths.push_back(static_cast<uint16_t>(n));
  Batch storage;
  EXPECT_EQ(&SequencePart(batch, {}, &storage), &batch);
  Batch joined;
  std::vector<Batch> parts(4);
  for (int64_t s = 0; s < 4; ++s) {
    EXPECT_EQ(&SequencePart(batch, {.size = 4, .index = s}, &parts[static_cast<size_t>(s)]),
              &parts[static_cast<size_t>(s)]);
    EXPECT_EQ(parts[static_cast<size_t>(s)].T, 2);
  }
  for (size_t b = 0; b < 3; ++b) {
    for (const Batch& part : parts) {
      for (size_t n = 2 * b; n < 2 * b + 2; ++n) {
        joined.inputs.push_back(part.inputs[n]);
        joined.targets.push_back(part.targets[n]);
        joined.resets.push_back(part.resets[n]);
        joined.lengths.push_back(part.lengths[n]);
      }
    }
  }
  EXPECT_EQ(joined.inputs, batch.inputs);
  EXPECT_EQ(joined.targets, batch.targets);
  EXPECT_EQ(joined.resets, batch.resets);
  EXPECT_EQ(joined.lengths, batch.lengths);
}

TEST(Tensor, EqualsOneRank) {
  ModelSpec tied = MeshLargeSpec(), tied_paper = MeshPaperSpec();
  tied.tie_embeddings = tied_paper.tie_embeddings = true;
  tied.recompute = Recompute::kRecompute;
  std::vector<ModelSpec> models = Models();
  models.insert(models.end(), {tied, tied_paper});
  for (const ModelSpec& model : models) {
    for (const DType compute : {DType::kF64, DType::kF32}) {
      ExpectEqualUpToRounding(MeshTrainSpec(model, compute), {{.tensor = 2}, {.tensor = 4}});
    }
  }
}

TEST(Sequence, EqualsOneRankByStateAndByHeads) {
  for (const ModelSpec& model : Models()) {
    for (const DType compute : {DType::kF64, DType::kF32}) {
      for (const SequenceMode mode : {SequenceMode::kState, SequenceMode::kHeads}) {
        TrainSpec spec = MeshTrainSpec(model, compute);
        spec.sequence_mode = mode;
        ExpectEqualUpToRounding(spec, {{.sequence = 2}, {.sequence = 4}});
      }
    }
  }
}

TEST(Mesh, EqualsOneRankOnEveryPairOfAxes) {
  ModelSpec large = MeshLargeSpec();
  large.dropout = large.ffn_dropout = large.embedding_dropout = 0.1;
  for (const ModelSpec& model : {large, MeshPaperSpec()}) {
    ExpectEqualUpToRounding(MeshTrainSpec(model, DType::kF64), {{.pipe = 2, .tensor = 2},
                                                                {.pipe = 2, .sequence = 2},
                                                                {.pipe = 2, .shard = 2},
                                                                {.replicate = 2, .tensor = 2},
                                                                {.replicate = 2, .sequence = 2},
                                                                {.shard = 2, .tensor = 2},
                                                                {.shard = 2, .sequence = 2},
                                                                {.sequence = 2, .tensor = 2}});
  }
}

TEST(Mesh, HasTheBitsOfOneRankWhereOnlyMicroBatchesAreSpread) {
  const TrainSpec spec = MeshTrainSpec(MeshPaperSpec(), DType::kBF16);
  const MeshRun one = TrainOnMesh({}, spec);
  for (const MeshSizes& sizes :
       {MeshSizes{.shard = 2}, MeshSizes{.shard = 4}, MeshSizes{.replicate = 2, .shard = 2},
        MeshSizes{.pipe = 2, .shard = 2}, MeshSizes{.pipe = 2, .replicate = 2, .shard = 2}}) {
    EXPECT_TRUE(TrainOnMesh(sizes, spec) == one) << Text(sizes);
  }
}

// Every part has the names, groups and initial values of the whole model.
TEST(Pipeline, PartsAreTheWholeModelCutBetweenBlocks) {
  ModelSpec spec = MeshPaperSpec();
  spec.num_blocks = 5;
  ParamStore whole(DType::kF32, 1, 0);
  const LanguageModel model(spec, whole, /*decay_embedding=*/true);
  for (int64_t stages = 1; stages <= 5; ++stages) {
    size_t num_params = 0;
    int64_t next_block = 0;
    for (int64_t stage = 0; stage < stages; ++stage) {
      const ModelAxes axes = {.tensor = {}, .sequence = {}, .pipe = {.size = stages, .index = stage}};
      ParamStore params(DType::kF32, 1, 0);
      const LanguageModel part(spec, params, /*decay_embedding=*/true, axes);
      EXPECT_EQ(part.part().first_block, next_block);
      EXPECT_GE(part.part().num_blocks, 5 / stages);
      EXPECT_LE(part.part().num_blocks, 5 / stages + 1);
      next_block += part.part().num_blocks;
      for (const Param& param : params.params()) {
        const Param& same = whole.param(whole.Find(param.name));
        EXPECT_EQ(param.group, same.group);
        EXPECT_EQ(param.decay, same.decay);
        EXPECT_EQ(param.offset, same.offset) << param.name;
        ++num_params;
      }
    }
    EXPECT_EQ(next_block, 5);
    EXPECT_EQ(num_params, whole.params().size());
  }
}

TEST(PipelineDeathTest, TiedEmbeddingsAndStagesWithoutBlocksAreRefused) {
  ModelSpec spec = MeshLargeSpec();
  const auto make = [&](int64_t stages) {
    ParamStore params(DType::kF32, 1, 0);
    const LanguageModel part(spec, params, false,
                             {.tensor = {}, .sequence = {}, .pipe = {.size = stages, .index = 0}});
  };
  EXPECT_DEATH(make(5), "every stage of the pipe axis needs a block");
  spec.tie_embeddings = true;
  EXPECT_DEATH(make(2), "tied embeddings");
}
}  // namespace
}  // namespace carousel
