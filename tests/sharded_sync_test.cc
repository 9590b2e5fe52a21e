// ShardedSync: the bits of the gradients and the weights on every mesh, and misuse. What it sends and when is
// in sharded_sync_volume_test.cc and sharded_sync_overlap_test.cc.
#include "parallel/sharded_sync.h"

#include "tests/sync_testing.h"

namespace carousel {
namespace {
using testing::LeafGradient;
using testing::RankOptions;
using testing::SyncRank;

std::string NameOf(const MeshSizes& sizes, int64_t M) {
  const auto text = [](const char* name, int64_t n) { return name + std::to_string(n) + " "; };
  return text("replicate ", sizes.replicate) + text("shard ", sizes.shard) +
         text("sequence ", sizes.sequence) + text("tensor ", sizes.tensor) + text("M ", M);
}

// Two steps: gradients have the bits of the tree, weights are those that the owners of the shards made.
template <class T>
void CheckSteps(const MeshSizes& sizes, const RankOptions& options) {
  const std::string where =
      NameOf(sizes, options.micro_batches) + "staging " + std::to_string(options.sync.staging_bytes);
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    SyncRank rank(mesh, options);
    for (int64_t step = 0; step < 2; ++step) {
      rank.Step<T>(step);
      int64_t total = rank.CheckShards<T>(step, where + " step " + std::to_string(step));
      rank.Update(step);
      if (mesh.world.size > 1) mesh.world.communicator->AllReduceSum(Tensor(&total, DType::kI64, {1}));
      // Shards tile what the ranks of each tensor index have.
      int64_t local = 0;
      for (const Param& p : rank.store.params()) local += p.local_elems;
      EXPECT_EQ(total, local * sizes.tensor) << where;
    }
    rank.MicroBatch<T>(2, rank.leaves().first);  // the last update's weights
    EXPECT_GT(rank.num_weights_checked(), 0);
    EXPECT_EQ(rank.sync().num_late_gathers(), 0) << where;
  });
}

TEST(ShardedSync, EveryFactorizationGivesTheBitsOfTheTree) {
  for (const int64_t P : {1, 2, 4, 8}) {
    for (int64_t F = 1; F <= P; F *= 2) {
      for (const int64_t accumulation : {1, 2, 3, 4}) {
        if (P == 8 && accumulation == 4) continue;  // time
        CheckSteps<float>({.replicate = P / F, .shard = F}, {.micro_batches = P * accumulation});
      }
    }
  }
}

TEST(ShardedSync, RanksNeedNotBeAPowerOfTwo) {
  for (const MeshSizes& sizes :
       {MeshSizes{.replicate = 3}, MeshSizes{.shard = 3}, MeshSizes{.replicate = 3, .shard = 2},
        MeshSizes{.replicate = 2, .shard = 3}, MeshSizes{.replicate = 5}, MeshSizes{.shard = 5}}) {
    for (const int64_t accumulation : {1, 2, 3}) {
      CheckSteps<float>(sizes, {.micro_batches = sizes.replicate * sizes.shard * accumulation});
    }
  }
}

TEST(ShardedSync, PartsOfSequencesAreAddedInOrderAfterTheTree) {
  for (const MeshSizes& sizes :
       {MeshSizes{.sequence = 2}, MeshSizes{.replicate = 2, .sequence = 2},
        MeshSizes{.shard = 2, .sequence = 2}, MeshSizes{.replicate = 2, .shard = 2, .sequence = 2},
        MeshSizes{.sequence = 3}, MeshSizes{.replicate = 3, .sequence = 2}}) {
    CheckSteps<float>(sizes, {.micro_batches = 6 % (sizes.replicate * sizes.shard) == 0 ? 6 : 12});
  }
}

TEST(ShardedSync, TensorRanksSumWhatTheyHaveWholeAndPartial) {
  for (const MeshSizes& sizes :
       {MeshSizes{.tensor = 2}, MeshSizes{.replicate = 2, .tensor = 2}, MeshSizes{.shard = 2, .tensor = 2},
        MeshSizes{.sequence = 2, .tensor = 2}, MeshSizes{.shard = 2, .sequence = 2, .tensor = 2}}) {
    CheckSteps<float>(sizes, {.micro_batches = 4});
  }
}

TEST(ShardedSync, TheSizeOfThePiecesChangesNoBit) {
  // 1 byte: the smallest piece, 1024 elements of each block at a time.
  for (const MeshSizes& sizes : {MeshSizes{.replicate = 2}, MeshSizes{.replicate = 3}, MeshSizes{.shard = 2},
                                 MeshSizes{.replicate = 2, .shard = 2}, MeshSizes{.sequence = 2}}) {
    for (const int64_t staging_bytes : {1, 30000}) {
      CheckSteps<float>(sizes, {.micro_batches = 12, .sync = {.staging_bytes = staging_bytes}});
    }
  }
}

TEST(ShardedSync, GradientsOfBf16AreF32AndOfF64AreF64) {
  for (const MeshSizes& sizes : {MeshSizes{.replicate = 2}, MeshSizes{.shard = 2, .tensor = 2}}) {
    CheckSteps<float>(sizes, {.compute = DType::kBF16, .micro_batches = 4});
    CheckSteps<double>(sizes, {.compute = DType::kF64, .micro_batches = 4});
  }
}

TEST(ShardedSync, TiedEmbeddingsAndLongerPrefetchChangeNothing) {
  for (const bool tied : {false, true}) {
    for (const int distance : {1, 2, 3, 7}) {
      CheckSteps<float>({.replicate = 2, .shard = 2},
                        {.micro_batches = 8, .sync = {.prefetch_distance = distance}, .tied = tied});
    }
  }
}

// ---- placements

TEST(ShardedSync, AReductionThatIsMissingShowsInThatParameterAlone) {
  const MeshSizes meshes[] = {{.replicate = 2},
                              {.shard = 2},
                              {.sequence = 2},
                              {.tensor = 2},
                              {.replicate = 2, .shard = 2, .sequence = 2},
                              {.replicate = 3, .sequence = 2}};
  constexpr MeshAxis kAxes[] = {MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence,
                                MeshAxis::kTensor};
  for (const MeshSizes& sizes : meshes) {
    for (const MeshAxis axis : kAxes) {
      if (sizes.of(axis) == 1) continue;
      // Of each kind one: rows, norm, columns, one whose gradient is whole on every tensor rank.
      for (int broken = 4; broken <= 7; ++broken) {
        RunLocalMesh(sizes, [&](const Mesh& mesh) {
          bool reduces = false;
          const auto drop = [&](ParamStore& store) {
            reduces = store.param(broken).reduces_over(axis);
            store.set_reduce_axes(broken, store.param(broken).reduce_axes & ~(1u << static_cast<int>(axis)));
          };
          const int64_t M = 2 * sizes.replicate * sizes.shard;
          SyncRank rank(mesh, {.micro_batches = M}, nullptr, nullptr, drop);
          rank.Step<float>(0);
          const auto derived = [&](int param, MeshAxis a) { return param != broken || a != axis; };
          int64_t num_wrong = 0, num_of_broken = 0;
          rank.ForEachShardElement([&](int param, int64_t element, int64_t at, Tensor shard) {
            // Of every other parameter that is the full sum.
            EXPECT_EQ(shard.as<float>()[at], rank.Expected<float>(0, param, element, derived))
                << rank.store.param(param).name;
            if (param != broken) return;
            ++num_of_broken;
            num_wrong += shard.as<float>()[at] != rank.Expected<float>(0, param, element, SyncRank::All);
          });
          // Parameters that do not need the sum are right without it.
          EXPECT_GE(num_wrong, reduces ? num_of_broken * 9 / 10 : 0) << rank.store.param(broken).name;
          EXPECT_LE(num_wrong, reduces ? num_of_broken : 0) << rank.store.param(broken).name;
        });
      }
    }
  }
}

TEST(ShardedSync, AReductionThatIsMissingShowsInUnorderedSumsToo) {
  const MeshSizes sizes = {.replicate = 2, .shard = 2, .sequence = 2};
  constexpr int kBroken = 5;
  for (const SyncOptions::Wire wire : {SyncOptions::Wire::kWide, SyncOptions::Wire::kBF16}) {
    for (const MeshAxis axis : {MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence}) {
      RunLocalMesh(sizes, [&](const Mesh& mesh) {
        const auto drop = [&](ParamStore& store) {
          store.set_reduce_axes(kBroken, store.param(kBroken).reduce_axes & ~(1u << static_cast<int>(axis)));
        };
        SyncRank rank(
            mesh,
            {.micro_batches = 4, .sync = {.reduction = SyncOptions::Reduction::kUnordered, .wire = wire}},
            nullptr, nullptr, drop);
        rank.Step<float>(0);
        const auto derived = [&](int param, MeshAxis a) { return param != kBroken || a != axis; };
        int64_t num_wrong = 0, num_of_broken = 0;
        // Eight values of magnitudes up to 1024, rounded to 8 bits twice at worst.
        const double tolerance = 8 * 1024 * std::ldexp(1, wire == SyncOptions::Wire::kWide ? -21 : -7);
        rank.ForEachShardElement([&](int param, int64_t element, int64_t at, Tensor shard) {
          const double found = shard.as<float>()[at];
          EXPECT_NEAR(found, rank.Expected<double>(0, param, element, derived), tolerance);
          if (param != kBroken) return;
          ++num_of_broken;
          num_wrong += std::abs(found - rank.Expected<double>(0, param, element, SyncRank::All)) > tolerance;
        });
        EXPECT_GE(num_wrong, num_of_broken / 8);
      });
    }
  }
}

// ---- unordered sums and bf16 on the wire

// Runs one step and gives the largest error relative to the sum of the magnitudes, over all ranks.
double LargestError(const MeshSizes& sizes, const RankOptions& options, std::vector<float>* rank0 = nullptr) {
  std::vector<double> errors(static_cast<size_t>(sizes.world()));
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    SyncRank rank(mesh, options);
    rank.Step<float>(0);
    rank.Update(0);
    rank.Step<float>(1);
    double& worst = errors[static_cast<size_t>(mesh.world.index)];
    rank.ForEachShardElement([&](int param, int64_t element, int64_t at, Tensor shard) {
      double magnitude = 0;
      const Param& p = rank.store.param(param);
      int64_t whole = -1;
      ForEachLocalRun(p.part, element, 1, [&](int64_t elem, int64_t, int64_t) { whole = elem; });
      const int64_t tensor_parts = testing::PartialOnTensor(p) ? sizes.tensor : 1;
      for (int64_t leaf = 0; leaf < options.micro_batches; ++leaf) {
        for (int64_t s = 0; s < sizes.sequence; ++s) {
          for (int64_t t = 0; t < tensor_parts; ++t) {
            magnitude += std::abs(LeafGradient(1, leaf, testing::PartOf(p, s, t), param, whole));
          }
        }
      }
      const double exact = rank.Expected<double>(1, param, element, SyncRank::All);
      worst = std::max(worst, std::abs(shard.as<float>()[at] - exact) / magnitude);
      if (rank0 != nullptr && mesh.world.index == 0) rank0->push_back(shard.as<float>()[at]);
    });
  });
  return *std::max_element(errors.begin(), errors.end());
}

constexpr MeshSizes kUnorderedMeshes[] = {{.replicate = 1},
                                          {.replicate = 4},
                                          {.shard = 4},
                                          {.replicate = 2, .shard = 2},
                                          {.replicate = 2, .sequence = 2},
                                          {.shard = 2, .sequence = 2, .tensor = 2}};

TEST(ShardedSync, UnorderedSumsAreRightAndRepeatTheirBits) {
  for (const MeshSizes& sizes : kUnorderedMeshes) {
    const RankOptions options = {.micro_batches = 8,
                                 .sync = {.reduction = SyncOptions::Reduction::kUnordered}};
    std::vector<float> first, second;
    // 16 or fewer terms in f32: each addition adds at most 2^-24 of the magnitudes.
    EXPECT_LE(LargestError(sizes, options, &first), 16 * std::ldexp(1, -24)) << NameOf(sizes, 8);
    LargestError(sizes, options, &second);
    EXPECT_EQ(first, second);
  }
}

TEST(ShardedSync, Bf16OnTheWireRoundsOnceForEachExchange) {
  for (const MeshSizes& sizes : kUnorderedMeshes) {
    for (const int64_t staging_bytes : {int64_t{1}, kDefaultStagingBytes}) {
      const RankOptions options = {.micro_batches = 8,
                                   .sync = {.reduction = SyncOptions::Reduction::kUnordered,
                                            .wire = SyncOptions::Wire::kBF16,
                                            .staging_bytes = staging_bytes}};
      // Rounding to bf16's 8 bits changes a value by at most 2^-8 of it; the hybrid has two exchanges.
      const int num_exchanges = (sizes.shard > 1) + (sizes.replicate * sizes.sequence > 1);
      const double bound = num_exchanges * std::ldexp(1, -8) * (1 + std::ldexp(1, -8)) + std::ldexp(1, -19);
      const double error = LargestError(sizes, options);
      EXPECT_LE(error, bound) << NameOf(sizes, 8);
      EXPECT_GE(error, num_exchanges > 0 ? std::ldexp(1, -10) : 0) << NameOf(sizes, 8) << "was it rounded?";
    }
  }
}

// ---- memory

int64_t PaddedBytes(const ParamStore& store) {
  int64_t bytes = 0;
  for (int group = 0; group < store.num_groups(); ++group) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      bytes += store.segment(group, s).padded_size * SizeOf(store.wide());
    }
  }
  return bytes;
}

TEST(ShardedSync, OneRankWithOneMicroBatchKeepsOneGradientAndNoStaging) {
  SyncRank rank(Mesh{}, {});
  EXPECT_EQ(rank.arena().bytes_by_category().at("gradients"), PaddedBytes(rank.store));
  EXPECT_EQ(rank.arena().bytes_by_category().count("comm"), 0u);
  EXPECT_EQ(rank.arena().bytes_by_category().count("gathered weights"), 0u);
  rank.Step<float>(0);
  // In place: the shard is the buffer that the micro-batch wrote.
  EXPECT_EQ(rank.store.ShardGrad(0, 0).data, rank.store.segment(0, 0).grads.data);
}

TEST(ShardedSync, UnorderedSumsNeedOneBufferAndNoStaging) {
  RunLocalMesh({.replicate = 2}, [](const Mesh& mesh) {
    SyncRank rank(mesh, {.micro_batches = 16, .sync = {.reduction = SyncOptions::Reduction::kUnordered}});
    EXPECT_EQ(rank.arena().bytes_by_category().at("gradients"), PaddedBytes(rank.store));
    EXPECT_EQ(rank.arena().bytes_by_category().count("comm"), 0u);
  });
}

TEST(ShardedSync, ShardedWeightsAreWholeOnlyWhereTheyAreUsed) {
  RunLocalMesh({.shard = 4}, [](const Mesh& mesh) {
    SyncRank rank(mesh, {.micro_batches = 4});
    int64_t largest[2] = {}, embedding = 0;
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      embedding += rank.store.segment(0, s).padded_size;
      for (int g = 1; g < rank.store.num_groups(); ++g) {
        largest[s] = std::max(largest[s], rank.store.segment(g, s).padded_size);
      }
    }
    const int64_t whole = (embedding + 2 * (largest[0] + largest[1])) * SizeOf(DType::kF32);
    EXPECT_EQ(rank.arena().bytes_by_category().at("gathered weights"), whole);
    EXPECT_EQ(rank.arena().bytes_by_category().at("gradients"), whole + PaddedBytes(rank.store) / 4);
    EXPECT_FALSE(rank.store.segment(1, 0).weights.defined());
    rank.Step<float>(0);
    for (int g = 0; g < rank.store.num_groups(); ++g)
      EXPECT_FALSE(rank.store.segment(g, 0).weights.defined());
  });
}

TEST(ShardedSync, StagingMemoryStaysWithinItsBudget) {
  for (const MeshSizes& sizes :
       {MeshSizes{.replicate = 4}, MeshSizes{.shard = 4}, MeshSizes{.shard = 2, .sequence = 2}}) {
    for (const bool bf16 : {false, true}) {
      for (const int64_t staging_bytes : {60000, 100000, 1 << 30}) {
        RunLocalMesh(sizes, [&](const Mesh& mesh) {
          SyncOptions sync = {.staging_bytes = staging_bytes};
          if (bf16) sync.reduction = SyncOptions::Reduction::kUnordered, sync.wire = SyncOptions::Wire::kBF16;
          SyncRank rank(mesh, {.micro_batches = 4, .sync = sync});
          EXPECT_LE(rank.arena().bytes_by_category().at("comm"), staging_bytes);
          EXPECT_GT(rank.arena().bytes_by_category().at("comm"), 0);
        });
      }
    }
  }
}

// ---- recording

TEST(ShardedSync, PassesAreRecordedOnlyWhereNothingCrossesRanksInThem) {
  SyncRank alone(Mesh{}, {.micro_batches = 2});
  EXPECT_TRUE(alone.sync().allows_recording(0) && alone.sync().allows_recording(1));
  RunLocalMesh({.replicate = 2}, [](const Mesh& mesh) {
    SyncRank rank(mesh, {.micro_batches = 4});
    EXPECT_TRUE(rank.sync().allows_recording(rank.leaves().at(0)));
    EXPECT_FALSE(rank.sync().allows_recording(rank.leaves().at(1)));
  });
  for (const MeshSizes& sizes : {MeshSizes{.shard = 2}, MeshSizes{.sequence = 2}, MeshSizes{.tensor = 2}}) {
    RunLocalMesh(sizes, [](const Mesh& mesh) {
      SyncRank rank(mesh, {.micro_batches = 4});
      for (int64_t leaf = 0; leaf < 4; ++leaf) EXPECT_FALSE(rank.sync().allows_recording(leaf));
    });
  }
}

// ---- misuse

class ShardedSyncDeathTest : public ::testing::Test {
 protected:
  ShardedSyncDeathTest() : rank(Mesh{}, {.micro_batches = 2}) {}
  SyncRank rank;
};

TEST_F(ShardedSyncDeathTest, MicroBatchesOutOfOrderAreRefused) {
  EXPECT_DEATH(rank.sync().BeginMicroBatch(1), "micro-batch 1 out of order; this rank's next is 0");
  rank.MicroBatch<float>(0, 0);
  EXPECT_DEATH(rank.sync().BeginMicroBatch(0), "micro-batch 0 out of order");
  EXPECT_DEATH(rank.sync().FinishStep(), "before the last micro-batch");
  rank.MicroBatch<float>(0, 1);
  EXPECT_DEATH(rank.sync().BeginMicroBatch(2), "has had its last one of the step");
}

TEST_F(ShardedSyncDeathTest, AGroupBeginsAndIsReadyOnceInEachMicroBatch) {
  EXPECT_DEATH(rank.sync().BeginGradients(1), "outside of one");
  rank.sync().BeginMicroBatch(0);
  EXPECT_DEATH(rank.sync().GradReady(2), "GradReady without BeginGradients for group 2");
  rank.sync().BeginGradients(2);
  EXPECT_DEATH(rank.sync().BeginGradients(2), "twice in one micro-batch");
  rank.sync().GradReady(2);
  EXPECT_DEATH(rank.sync().GradReady(2), "GradReady twice for group 2");
  EXPECT_DEATH(rank.sync().BeginMicroBatch(1), "no GradReady for group 0");
}

TEST_F(ShardedSyncDeathTest, Bf16OnTheWireNeedsUnorderedSumsOfF32) {
  EXPECT_DEATH(SyncRank(Mesh{}, {.sync = {.wire = SyncOptions::Wire::kBF16}}), "only if they are f32");
  EXPECT_DEATH(SyncRank(Mesh{}, {.compute = DType::kF64,
                                 .sync = {.reduction = SyncOptions::Reduction::kUnordered,
                                          .wire = SyncOptions::Wire::kBF16}}),
               "only if they are f32");
}

TEST_F(ShardedSyncDeathTest, AStoreCutForAnotherMeshIsRefused) {
  ParamStore store(DType::kF32, 2, 0);
  testing::RegisterSyncParams(store);
  EXPECT_DEATH(ShardedSync(store, nullptr, Mesh{}, 1, {}), "num_shards");
}

// A rank of a shard axis alone, whose collectives move nothing.
struct LoneShard {
  LoneShard() : communicator(0, 2), store(DType::kF32, PartitionOf(mesh())) {
    testing::RegisterSyncParams(store);
    sync = std::make_unique<ShardedSync>(store, nullptr, mesh(), 2, SyncOptions{});
    Arena counting;
    store.Bind(counting, true);
    sync->Bind(counting);
  }
  Mesh mesh() {
    Mesh mesh;
    mesh.shard = mesh.world = {.size = 2, .index = 0, .communicator = &communicator};
    return mesh;
  }
  CountingCommunicator communicator;
  ParamStore store;
  std::unique_ptr<ShardedSync> sync;
};

TEST_F(ShardedSyncDeathTest, WeightsThatAreNotAcquiredCannotBeReleasedAndUsedOnesNotUpdated) {
  LoneShard lone;
  EXPECT_DEATH(lone.sync->Release(1), "Release of group 1, which is not acquired");
  lone.sync->Prefetch(1);
  lone.sync->Acquire(1);
  EXPECT_DEATH(lone.sync->WeightsUpdated(1), "updated while in use");
  lone.sync->Prefetch(2);
  lone.sync->Acquire(2);
  EXPECT_DEATH(lone.sync->Acquire(3), "group 3 is acquired while too many other groups are");
}

TEST_F(ShardedSyncDeathTest, GradientsOfThreeBlocksAtATimeAreRefused) {
  LoneShard lone;
  lone.sync->BeginMicroBatch(0);
  for (const int group : {0, 1, 2}) lone.sync->BeginGradients(group);
  EXPECT_DEATH(lone.sync->BeginGradients(3), "begin while those of two others are not ready");
}

TEST(ShardedSync, AnAcquireWithoutAPrefetchGathersAndIsCounted) {
  LoneShard lone;
  lone.sync->Acquire(1);
  EXPECT_EQ(lone.sync->num_late_gathers(), 1);
  EXPECT_EQ(lone.communicator.calls().size(), 2u);  // its two segments
  EXPECT_TRUE(lone.store.segment(1, 0).weights.defined());
  lone.sync->Release(1);
  EXPECT_FALSE(lone.store.segment(1, 0).weights.defined());
  lone.sync->Acquire(1);  // still there
  EXPECT_EQ(lone.sync->num_late_gathers(), 1);
  EXPECT_EQ(lone.communicator.calls().size(), 2u);
  lone.sync->Release(1);
  // More groups ahead than there are places: the third waits for one, and none is gathered twice.
  for (const int group : {2, 3, 4}) lone.sync->Prefetch(group);
  EXPECT_EQ(lone.communicator.calls().size(), 6u);
  for (const int group : {2, 3, 4}) {
    lone.sync->Acquire(group);
    lone.sync->Release(group);
  }
  EXPECT_EQ(lone.communicator.calls().size(), 7u);  // group 4 has one segment
  EXPECT_EQ(lone.sync->num_late_gathers(), 1);
}

TEST(ShardedSync, NewInitialWeightsReplaceGatheredOnes) {
  RunLocalMesh({.shard = 2}, [](const Mesh& mesh) {
    SyncRank rank(mesh, {.micro_batches = 2});
    const auto first_weight = [&] {
      rank.sync().Prefetch(1);
      rank.sync().Acquire(1);
      const float value = rank.store.Weight(1).Flatten().as<float>()[0];
      rank.sync().Release(1);
      return value;
    };
    const float before = first_weight();
    rank.store.Initialize(*rank.device, 77);
    double expected = 0;
    InitialValues(rank.store.param(1), 77, 0, 1, &expected);
    EXPECT_EQ(first_weight(), static_cast<float>(expected));
    EXPECT_NE(first_weight(), before);
  });
}
}  // namespace
}  // namespace carousel
