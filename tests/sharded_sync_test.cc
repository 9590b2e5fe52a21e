#include "parallel/sharded_sync.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "kernels/make_device.h"
#include "parallel/local_communicator.h"

namespace carousel {
namespace {
constexpr int64_t kBigStaging = int64_t{1} << 30;

// Gradient of element `element` of parameter `param` of micro-batch `leaf` in step `step`: magnitudes over
// six decades, so that sums depend on their order.
double LeafGradient(int64_t step, int64_t leaf, int64_t param, int64_t element) {
  const uint64_t stream = static_cast<uint64_t>((step * 64 + leaf) * 16 + param);
  const uint64_t index = static_cast<uint64_t>(element);
  return RandomNormal(3, stream, index) * std::pow(10.0, 6.0 * RandomUniform(4, stream, index) - 3.0);
}

// The value of the tree's root by its definition.
template <class T>
T TreeSum(int64_t num_leaves, int64_t level, int64_t index, const std::vector<T>& leaves) {
  if (level == 0) return leaves[static_cast<size_t>(index)];
  const T left = TreeSum(num_leaves, level - 1, 2 * index, leaves);
  if (((2 * index + 1) << (level - 1)) >= num_leaves) return left;
  return left + TreeSum(num_leaves, level - 1, 2 * index + 1, leaves);
}
template <class T>
T ExpectedGradient(int64_t step, int64_t num_leaves, int64_t param, int64_t element) {
  std::vector<T> leaves;
  for (int64_t leaf = 0; leaf < num_leaves; ++leaf) {
    leaves.push_back(static_cast<T>(LeafGradient(step, leaf, param, element)));
  }
  int64_t level = 0;
  while ((int64_t{1} << level) < num_leaves) ++level;
  return TreeSum(num_leaves, level, 0, leaves);
}

// Three groups; the first has no vectors, the last no matrices.
void RegisterParams(ParamStore& store) {
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, int group) {
    store.Register({.name = name, .shape = std::move(shape), .group = group});
  };
  add("embedding", {70, 40}, 0);
  add("block.a", {30, 20}, 1);
  add("block.norm", {20}, 1);
  add("block.b", {50, 20}, 1);
  add("out_norm", {2100}, 2);
}

// One rank with its own device, store and memory.
struct TestRank {
  TestRank(DType compute, const Axis& data, int64_t micro_batches, int64_t staging_bytes)
      : store(compute, data.size, data.index), factory({.staging_bytes = staging_bytes}) {
    std::string error;
    device = MakeDevice("cpu", 1, &error);
    CAROUSEL_CHECK_MSG(device != nullptr, error);
    RegisterParams(store);
    sync = factory.Make(store, *device, ReplicateMesh(data), micro_batches);
    store.Bind(counting, true);
    factory.Bind(*sync, counting);
    memory = device->Allocate(counting.total_bytes());
    arena = Arena(memory, counting);
    store.Bind(arena, true);
    factory.Bind(*sync, arena);
  }

  // One micro-batch: gradients must read zero, then get the leaf's values, group by group from the last.
  template <class T>
  void MicroBatch(int64_t step, int64_t leaf) {
    sync->BeginMicroBatch(leaf);
    for (int group = store.num_groups() - 1; group >= 0; --group) {
      for (int p = 0; p < static_cast<int>(store.params().size()); ++p) {
        if (store.param(p).group != group) continue;
        const Tensor grad = store.Grad(p);
        for (int64_t i = 0; i < grad.num_elems(); ++i) {
          ASSERT_EQ(grad.as<T>()[i], T(0)) << store.param(p).name << " element " << i << " leaf " << leaf;
          grad.as<T>()[i] += static_cast<T>(LeafGradient(step, leaf, p, i));
        }
      }
      sync->GradReady(group);
    }
  }

  // This rank's shard holds the bits of the tree, and zero in the padding.
  template <class T>
  void CheckShards(int64_t step, int64_t micro_batches, const std::string& where) {
    int64_t num_checked = 0;
    for (int group = 0; group < store.num_groups(); ++group) {
      for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
        const Tensor shard = store.ShardGrad(group, segment);
        std::vector<T> expected(static_cast<size_t>(shard.num_elems()), T(0));
        for (const ParamStore::ShardPiece& piece : store.ShardPieces(group, segment)) {
          for (int64_t j = 0; j < piece.count; ++j) {
            expected[static_cast<size_t>(piece.shard_begin + j)] =
                ExpectedGradient<T>(step, micro_batches, piece.param, piece.param_begin + j);
          }
          num_checked += piece.count;
        }
        for (int64_t i = 0; i < shard.num_elems(); ++i) {
          ASSERT_EQ(shard.as<T>()[i], expected[static_cast<size_t>(i)])
              << where << " group " << group << " segment " << segment << " element " << i;
        }
      }
    }
    num_elems_checked = num_checked;
  }

  ParamStore store;
  ShardedSyncFactory factory;
  std::unique_ptr<Device> device;
  std::unique_ptr<ParamSync> sync;
  Arena counting, arena;
  void* memory = nullptr;
  int64_t num_elems_checked = 0;
};

// Two steps of M micro-batches on P ranks.
template <class T>
void CheckSteps(DType compute, int64_t M, int64_t P, int64_t staging_bytes) {
  const std::string where =
      "M " + std::to_string(M) + " P " + std::to_string(P) + " staging " + std::to_string(staging_bytes);
  RunLocalRanks(static_cast<int>(P), [&](Communicator& c) {
    const Axis axis = {.size = P, .index = c.rank(), .communicator = P > 1 ? &c : nullptr};
    TestRank rank(compute, axis, M, staging_bytes);
    for (int64_t step = 0; step < 2; ++step) {
      for (int64_t leaf = c.rank() * M / P; leaf < (c.rank() + 1) * M / P; ++leaf) {
        rank.MicroBatch<T>(step, leaf);
      }
      rank.sync->FinishStep();
      rank.CheckShards<T>(step, M, where + " step " + std::to_string(step));
    }
    int64_t total = rank.num_elems_checked;
    c.AllReduceSum(Tensor(&total, DType::kI64, {1}));
    EXPECT_EQ(total, rank.store.num_parameters()) << where;
  });
}

TEST(ShardedSync, EveryNumberOfRanksGivesTheBitsOfTheTree) {
  for (const int64_t M : {1, 2, 3, 4, 6, 8}) {
    for (int64_t P = 1; P <= M; ++P) {
      if (M % P == 0) CheckSteps<float>(DType::kF32, M, P, kBigStaging);
    }
  }
}

TEST(ShardedSync, TheSizeOfThePiecesChangesNoBit) {
  // 1 byte: the smallest piece, 1024 elements of each shard at a time.
  for (const int64_t P : {2, 3}) CheckSteps<float>(DType::kF32, 6, P, 1);
}

TEST(ShardedSync, GradientsOfBf16AreF32AndOfF64AreF64) {
  CheckSteps<float>(DType::kBF16, 4, 2, kBigStaging);
  CheckSteps<double>(DType::kF64, 4, 2, kBigStaging);
}

TEST(ShardedSync, GathersTheWeightsOfAllShards) {
  RunLocalRanks(3, [](Communicator& c) {
    TestRank rank(DType::kF32, {.size = 3, .index = c.rank(), .communicator = &c}, 3, kBigStaging);
    const auto value = [](int group, int segment, int64_t shard, int64_t i) {
      return static_cast<float>(group * 1000003 + segment * 10007 + shard * 101 + i % 97);
    };
    for (int group = 0; group < rank.store.num_groups(); ++group) {
      for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
        const Tensor shard = rank.store.WeightShard(group, segment);
        for (int64_t i = 0; i < shard.num_elems(); ++i) {
          shard.as<float>()[i] = value(group, segment, c.rank(), i);
        }
      }
    }
    for (int g = 0; g < rank.store.num_groups(); ++g) rank.sync->WeightsUpdated(g);
    for (int group = 0; group < rank.store.num_groups(); ++group) {
      for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
        const Tensor weights = rank.store.segment(group, segment).weights;
        const int64_t shard_size = weights.num_elems() / 3;
        for (int64_t i = 0; i < weights.num_elems(); ++i) {
          ASSERT_EQ(weights.as<float>()[i], value(group, segment, i / shard_size, i % shard_size));
        }
      }
    }
  });
}

TEST(ShardedSync, OneRankWithOneMicroBatchKeepsOneGradientAndNoStaging) {
  TestRank rank(DType::kF32, {}, 1, kBigStaging);
  int64_t padded_bytes = 0;
  for (int group = 0; group < rank.store.num_groups(); ++group) {
    for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
      padded_bytes += rank.store.segment(group, segment).padded_size * SizeOf(DType::kF32);
    }
  }
  EXPECT_EQ(rank.counting.bytes_by_category().at("gradients"), padded_bytes);
  EXPECT_EQ(rank.counting.bytes_by_category().count("comm"), 0u);
  rank.MicroBatch<float>(0, 0);
  rank.sync->FinishStep();
  // In place: the shard is the buffer that the micro-batch wrote.
  EXPECT_EQ(rank.store.ShardGrad(0, 0).data, rank.store.segment(0, 0).grads.data);
}

TEST(ShardedSync, StagingMemoryStaysWithinItsBudget) {
  CountingCommunicator c(0, 4);
  for (const int64_t staging_bytes : {40000, 100000, 1 << 30}) {
    ParamStore store(DType::kF32, 4, 0);
    RegisterParams(store);
    Arena counting;
    store.Bind(counting, true);
    ShardedSync sync(store, nullptr, {.size = 4, .index = 0, .communicator = &c}, 4, staging_bytes);
    sync.Bind(counting);
    EXPECT_LE(counting.bytes_by_category().at("comm"), staging_bytes);
    EXPECT_GT(counting.bytes_by_category().at("comm"), 0);
  }
}

// ---- what a step sends

struct CountedStore {
  CountedStore(DType compute, int64_t world) : store(compute, world, 0) {
    RegisterParams(store);
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
      for (const int64_t staging_bytes : {int64_t{1}, kBigStaging}) {
        const CommTotals totals = CountStepCommunication(counted.store, P, 4 * P, staging_bytes);
        EXPECT_EQ(totals.by_tag.at("gradients").wire_bytes, counted.gradient_bytes / P * (P - 1));
        EXPECT_EQ(totals.by_tag.at("weights").wire_bytes, counted.weight_bytes / P * (P - 1));
        EXPECT_EQ(totals.by_op.at("AllToAll").wire_bytes, totals.by_tag.at("gradients").wire_bytes);
        EXPECT_EQ(totals.by_op.at("AllGather").wire_bytes, totals.by_tag.at("weights").wire_bytes);
        EXPECT_EQ(totals.by_op.at("AllGather").num_calls, 4);  // segments that are not empty
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

TEST(CountStepCommunication, CountsTheCallsThatARealStepMakes) {
  // The same list of calls, recorded around real ranks, for whole shards and for pieces.
  class Recorder final : public Communicator {
   public:
    Recorder(Communicator& real) : real_(real), counting_(real.rank(), real.size()) {}
    int rank() const override { return real_.rank(); }
    int size() const override { return real_.size(); }
    void DoAllReduceSum(Tensor x) override { counting_.AllReduceSum(x), real_.AllReduceSum(x); }
    void DoAllGather(Tensor all, Tensor mine) override {
      counting_.AllGather(all, mine), real_.AllGather(all, mine);
    }
    void DoReduceScatterSum(Tensor mine, Tensor all) override {
      counting_.ReduceScatterSum(mine, all), real_.ReduceScatterSum(mine, all);
    }
    void DoAllToAll(Tensor out, Tensor in) override { counting_.AllToAll(out, in), real_.AllToAll(out, in); }
    void DoBroadcast(Tensor x, int root) override { counting_.Broadcast(x, root), real_.Broadcast(x, root); }
    void DoSend(Tensor x, int to) override { counting_.Send(x, to), real_.Send(x, to); }
    void DoRecv(Tensor x, int from) override { counting_.Recv(x, from), real_.Recv(x, from); }
    void DoBarrier() override { counting_.Barrier(), real_.Barrier(); }
    [[noreturn]] void Abort(int) override { std::abort(); }
    CommTotals Totals() const { return counting_.Totals(); }

   private:
    Communicator& real_;
    CountingCommunicator counting_;
  };
  for (const int64_t staging_bytes : {int64_t{1}, kBigStaging}) {
    CountedStore counted(DType::kF32, 2);
    const CommTotals planned = CountStepCommunication(counted.store, 2, 6, staging_bytes);
    RunLocalRanks(2, [&](Communicator& c) {
      Recorder recorder(c);
      TestRank rank(DType::kF32, {.size = 2, .index = c.rank(), .communicator = &recorder}, 6, staging_bytes);
      for (int64_t leaf = 3 * c.rank(); leaf < 3 * c.rank() + 3; ++leaf) rank.MicroBatch<float>(0, leaf);
      rank.sync->FinishStep();
      for (int g = 0; g < rank.store.num_groups(); ++g) rank.sync->WeightsUpdated(g);
      const CommTotals real = recorder.Totals();
      for (const char* op : {"AllToAll", "AllGather"}) {
        EXPECT_EQ(real.by_op.at(op).num_calls, planned.by_op.at(op).num_calls) << op;
        EXPECT_EQ(real.by_op.at(op).wire_bytes, planned.by_op.at(op).wire_bytes) << op;
      }
      EXPECT_EQ(real.total.num_calls, planned.total.num_calls);
    });
  }
}

// ---- misuse

class ShardedSyncDeathTest : public ::testing::Test {
 protected:
  ShardedSyncDeathTest() : rank(DType::kF32, {}, 2, kBigStaging) {}
  TestRank rank;
};

TEST_F(ShardedSyncDeathTest, MicroBatchesOutOfOrderAreRefused) {
  EXPECT_DEATH(rank.sync->BeginMicroBatch(1), "micro-batch 1 out of order");
  rank.MicroBatch<float>(0, 0);
  EXPECT_DEATH(rank.sync->BeginMicroBatch(0), "micro-batch 0 out of order");
  EXPECT_DEATH(rank.sync->FinishStep(), "before the last micro-batch");
}

TEST_F(ShardedSyncDeathTest, AGroupIsReadyOnceInEachMicroBatch) {
  rank.sync->BeginMicroBatch(0);
  rank.sync->GradReady(2);
  EXPECT_DEATH(rank.sync->GradReady(2), "GradReady twice for group 2");
  rank.sync->GradReady(0);
  EXPECT_DEATH(rank.sync->BeginMicroBatch(1), "no GradReady for group 1");
}
}  // namespace
}  // namespace carousel
