// What a step of ShardedSync sends, to the byte, by the formulas of parallel/sharded_sync.h.
#include <gtest/gtest.h>

#include "tests/sync_testing.h"

namespace carousel {
namespace {
using testing::kNumBlocks;

int64_t SentPart(int64_t bytes, int64_t ranks) { return bytes / ranks * (ranks - 1); }

struct CountOptions {
  DType compute = DType::kBF16;
  int64_t accumulation = 1;  // micro-batches per rank
  SyncOptions sync = {};
  bool last_rank = false;  // count for the last rank instead of the first
};

// One rank of a mesh of any size, without the others and without memory.
struct CountedRank {
  CountedRank(const MeshSizes& mesh_sizes, const CountOptions& count_options)
      : sizes(mesh_sizes), options(count_options), store(options.compute, PartitionOf(MakeMesh())) {
    testing::RegisterSyncParams(store);
    const int64_t M = options.accumulation * sizes.replicate * sizes.shard;
    ShardedSync sync(store, nullptr, mesh, M, options.sync);
    Arena counting;
    store.Bind(counting, true);
    sync.Bind(counting);
    const Leaves leaves = LeavesOf(mesh, M);
    for (int64_t j = 0; j < leaves.count; ++j) {
      testing::CallAsAModel(
          sync, leaves.at(j), /*tied=*/false, [](int, const std::string&) {}, [](int) {});
    }
    sync.FinishStep();
    for (int group = 0; group < store.num_groups(); ++group) sync.WeightsUpdated(group);
    EXPECT_EQ(sync.num_late_gathers(), 0);
  }
  const Mesh& MakeMesh() {
    const auto axis = [&](std::unique_ptr<CountingCommunicator>* c, int64_t size) {
      const int64_t index = options.last_rank ? size - 1 : 0;
      *c = std::make_unique<CountingCommunicator>(static_cast<int>(index), static_cast<int>(size));
      return Axis{.size = size, .index = index, .communicator = size > 1 ? c->get() : nullptr};
    };
    mesh.replicate = axis(&unused, sizes.replicate);
    mesh.sequence = axis(&unused, sizes.sequence);
    mesh.replicate.communicator = mesh.sequence.communicator = nullptr;
    mesh.replicas = axis(&replicas, sizes.replicate * sizes.sequence);
    mesh.shard = axis(&shard, sizes.shard);
    mesh.tensor = axis(&tensor, sizes.tensor);
    mesh.world = axis(&world, sizes.world());
    return mesh;
  }
  // Bytes of a group's weights, of all its gradients, padding included.
  int64_t WeightBytes(int group) const {
    int64_t bytes = 0;
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      bytes += store.segment(group, s).padded_size *
               SizeOf(s == ParamStore::kMatrix ? store.compute() : store.wide());
    }
    return bytes;
  }
  int64_t AllWeightBytes() const {
    int64_t bytes = 0;
    for (int g = 0; g < store.num_groups(); ++g) bytes += WeightBytes(g);
    return bytes;
  }
  int64_t AllGradientBytes(DType wire) const {
    int64_t elems = 0;
    for (int g = 0; g < store.num_groups(); ++g) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) elems += store.segment(g, s).padded_size;
    }
    return elems * SizeOf(wire);
  }
  static CommTotals::Row Of(const CountingCommunicator& c, const char* op) {
    const CommTotals totals = c.Totals();
    const auto found = totals.by_op.find(op);
    return found == totals.by_op.end() ? CommTotals::Row{} : found->second;
  }

  MeshSizes sizes;
  CountOptions options;
  std::unique_ptr<CountingCommunicator> unused, replicas, shard, tensor, world;
  Mesh mesh;
  ParamStore store;
};

void CheckVolume(const MeshSizes& sizes, const CountOptions& options) {
  const CountedRank rank(sizes, options);
  const bool unordered = options.sync.reduction == SyncOptions::Reduction::kUnordered;
  const bool bf16_wire = options.sync.wire == SyncOptions::Wire::kBF16;
  const int64_t F = sizes.shard, n = sizes.replicate * sizes.sequence, a = options.accumulation;
  const int64_t G = rank.AllGradientBytes(bf16_wire ? DType::kBF16 : rank.store.wide());
  const int64_t W = rank.AllWeightBytes();
  const std::string where = "replicate " + std::to_string(sizes.replicate) + " shard " + std::to_string(F) +
                            " sequence " + std::to_string(sizes.sequence) + " tensor " +
                            std::to_string(sizes.tensor) + " accumulation " + std::to_string(a);
  const char* reduce = unordered && !bf16_wire ? "ReduceScatterSum" : "AllToAll";

  EXPECT_EQ(CountedRank::Of(*rank.shard, reduce).wire_bytes, a * SentPart(G, F)) << where;
  const int64_t rounds =
      unordered ? 1 : PlanOwner(a * sizes.replicate * F, sizes.replicate, sizes.sequence).num_rounds;
  EXPECT_EQ(CountedRank::Of(*rank.replicas, reduce).wire_bytes, rounds * SentPart(G / F, n)) << where;
  EXPECT_EQ(CountedRank::Of(*rank.replicas, "AllGather").wire_bytes, SentPart(W / F, n)) << where;
  int64_t gathered = 0;
  if (F > 1) {
    const auto w = [&](int group) { return rank.WeightBytes(group); };
    int64_t blocks = 0;
    for (int l = 1; l <= kNumBlocks; ++l) blocks += w(l);
    gathered = a * (2 * blocks - w(1) - w(2) - w(kNumBlocks) + w(kNumBlocks + 1)) + w(1) + w(2) + w(0);
    EXPECT_LE(gathered, 2 * a * W);
  }
  EXPECT_EQ(CountedRank::Of(*rank.shard, "AllGather").wire_bytes, SentPart(gathered, F)) << where;
  // One all-reduce of this rank's shards of the three norms' and the out norm's gradients.
  int64_t partial_bytes = 0;
  for (int g = 0; g < rank.store.num_groups(); ++g) {
    for (const ParamStore::ShardPiece& piece : rank.store.ShardPieces(g, ParamStore::kVector)) {
      const std::string& name = rank.store.param(piece.param).name;
      if (name.find("norm") != std::string::npos) partial_bytes += piece.count * SizeOf(rank.store.wide());
    }
  }
  const CommTotals::Row sum = CountedRank::Of(*rank.tensor, "AllReduceSum");
  EXPECT_EQ(sum.wire_bytes, sizes.tensor > 1 ? 2 * SentPart(partial_bytes, sizes.tensor) : 0) << where;
  EXPECT_EQ(sum.num_calls, sizes.tensor > 1 && partial_bytes > 0 ? 1 : 0) << where;

  // Nothing else.
  int64_t num_others = rank.world->Totals().total.num_calls + rank.tensor->Totals().total.num_calls;
  EXPECT_EQ(num_others, sum.num_calls) << where;
  for (const CountingCommunicator* c : {rank.shard.get(), rank.replicas.get()}) {
    EXPECT_EQ(c->Totals().total.num_calls,
              CountedRank::Of(*c, reduce).num_calls + CountedRank::Of(*c, "AllGather").num_calls);
  }
  // With room for whole shards a segment is one call.
  constexpr int64_t kNumSegments = 2 * (kNumBlocks + 2) - 2;  // of the store, that are not empty
  if (options.sync.staging_bytes < kDefaultStagingBytes) return;
  EXPECT_EQ(CountedRank::Of(*rank.shard, reduce).num_calls, F > 1 ? a * kNumSegments : 0) << where;
  EXPECT_EQ(CountedRank::Of(*rank.replicas, reduce).num_calls, n > 1 ? rounds * kNumSegments : 0) << where;
  EXPECT_EQ(CountedRank::Of(*rank.replicas, "AllGather").num_calls, n > 1 ? kNumSegments : 0) << where;
}

TEST(ShardedSyncVolume, EqualsTheFormulasForMeshesUpTo4096Ranks) {
  int num_meshes = 0;
  for (const int64_t replicate : {1, 2, 3, 16, 64}) {
    for (const int64_t shard : {1, 2, 8, 32}) {
      for (const int64_t sequence : {1, 2}) {
        for (const int64_t tensor : {1, 2}) {
          const MeshSizes sizes = {
              .replicate = replicate, .shard = shard, .sequence = sequence, .tensor = tensor};
          if (sizes.world() > 4096) continue;
          ++num_meshes;
          CheckVolume(sizes, {.accumulation = 1 + num_meshes % 4, .last_rank = num_meshes % 2 == 0});
        }
      }
    }
  }
  EXPECT_GE(num_meshes, 30);
}

TEST(ShardedSyncVolume, IsTheSameForEveryDtypeOfTheModelByItsBytes) {
  for (const DType compute : {DType::kBF16, DType::kF32, DType::kF64}) {
    for (const MeshSizes& sizes : {MeshSizes{.replicate = 8}, MeshSizes{.shard = 8},
                                   MeshSizes{.replicate = 4, .shard = 2, .tensor = 2}}) {
      CheckVolume(sizes, {.compute = compute, .accumulation = 2});
    }
  }
}

TEST(ShardedSyncVolume, DoesNotDependOnTheSizeOfThePieces) {
  for (const int64_t staging_bytes : {1, 40000}) {
    for (const MeshSizes& sizes : {MeshSizes{.replicate = 6}, MeshSizes{.replicate = 2, .shard = 4}}) {
      CheckVolume(sizes, {.accumulation = 3, .sync = {.staging_bytes = staging_bytes}});
    }
  }
}

TEST(ShardedSyncVolume, UnorderedSumsSendEachGradientOnceAndBf16Half) {
  for (const SyncOptions::Wire wire : {SyncOptions::Wire::kWide, SyncOptions::Wire::kBF16}) {
    for (const MeshSizes& sizes : {MeshSizes{.replicate = 4}, MeshSizes{.shard = 4},
                                   MeshSizes{.replicate = 2, .shard = 4, .sequence = 2}}) {
      CheckVolume(sizes, {.accumulation = 3,
                          .sync = {.reduction = SyncOptions::Reduction::kUnordered, .wire = wire}});
    }
  }
}

TEST(ShardedSyncVolume, OneRankSendsNothing) {
  const CountedRank rank({}, {.accumulation = 8});
  for (const CountingCommunicator* c :
       {rank.replicas.get(), rank.shard.get(), rank.tensor.get(), rank.world.get()}) {
    EXPECT_EQ(c->Totals().total.num_calls, 0);
  }
}

// ---- CountStepCommunication

struct CountedStore {
  CountedStore(DType compute, int64_t world) : store(compute, world, 0) {
    testing::RegisterSyncParams(store);
    Arena counting;
    store.Bind(counting, true);
    for (int group = 0; group < store.num_groups(); ++group) {
      for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
        const ParamStore::Segment& s = store.segment(group, segment);
        gradient_bytes += s.padded_size * SizeOf(store.wide());
        weight_bytes += s.weights.num_bytes();
      }
    }
  }
  ParamStore store;
  int64_t gradient_bytes = 0, weight_bytes = 0;
};

TEST(CountStepCommunication, EqualsTheVolumeOfAReduceScatterAndAnAllGather) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const int64_t P : {2, 4, 8, 64}) {
      CountedStore counted(compute, P);
      for (const int64_t staging_bytes : {int64_t{1}, kDefaultStagingBytes}) {
        const CommTotals totals = CountStepCommunication(counted.store, P, 4 * P, staging_bytes);
        EXPECT_EQ(totals.by_tag.at("gradients").wire_bytes, SentPart(counted.gradient_bytes, P));
        EXPECT_EQ(totals.by_tag.at("weights").wire_bytes, SentPart(counted.weight_bytes, P));
        EXPECT_EQ(totals.by_op.at("AllToAll").wire_bytes, totals.by_tag.at("gradients").wire_bytes);
        EXPECT_EQ(totals.by_op.at("AllGather").wire_bytes, totals.by_tag.at("weights").wire_bytes);
      }
    }
  }
}

TEST(CountStepCommunication, SendsEveryNodeThatARankIsLeftWith) {
  // Six micro-batches on two ranks: (0+1), 2 | 3, (4+5): two rounds.
  CountedStore counted(DType::kF32, 2);
  const CommTotals totals = CountStepCommunication(counted.store, 2, 6);
  EXPECT_EQ(totals.by_tag.at("gradients").wire_bytes, 2 * counted.gradient_bytes / 2);
}

TEST(CountStepCommunication, OneRankSendsNothing) {
  CountedStore counted(DType::kF32, 1);
  EXPECT_EQ(CountStepCommunication(counted.store, 1, 8).total.num_calls, 0);
}

// ---- what is counted is what is done

TEST(ShardedSyncVolume, CountsTheCallsThatARealStepMakes) {
  // In the flight recorders of real ranks, for whole shards and for pieces.
  for (const MeshSizes& sizes : {MeshSizes{.replicate = 2}, MeshSizes{.replicate = 2, .shard = 2},
                                 MeshSizes{.shard = 2, .tensor = 2}}) {
    for (const int64_t staging_bytes : {int64_t{1}, kDefaultStagingBytes}) {
      const SyncOptions sync = {.staging_bytes = staging_bytes};
      const CountedRank counted(sizes, {.compute = DType::kF32, .accumulation = 3, .sync = sync});
      RunLocalMesh(sizes, [&](const Mesh& mesh) {
        testing::SyncRank rank(mesh, {.micro_batches = 3 * sizes.replicate * sizes.shard, .sync = sync});
        rank.Step<float>(0);
        rank.Update(0);
        const auto check = [&](const Axis& axis, const CountingCommunicator& c) {
          if (axis.size == 1 || mesh.world.index != 0) return;  // counted for the first rank
          std::vector<CollectiveCall> made, planned;
          for (const FlightRecorder::Entry& e : axis.communicator->recorder().Entries()) {
            if (e.call.op != CollectiveOp::kSplit) made.push_back(e.call);
          }
          for (const RecordedCall& recorded : c.calls()) planned.push_back(recorded.call);
          ASSERT_EQ(made.size(), planned.size());
          for (size_t i = 0; i < made.size(); ++i) {
            EXPECT_TRUE(made[i].op == planned[i].op && made[i].num_elems == planned[i].num_elems &&
                        made[i].dtype == planned[i].dtype)
                << "call " << i;
          }
        };
        check(mesh.shard, *counted.shard);
        check(mesh.replicas, *counted.replicas);
        check(mesh.tensor, *counted.tensor);
      });
    }
  }
}
}  // namespace
}  // namespace carousel
