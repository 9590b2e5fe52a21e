// ShardedSync beside the compute stream: on a device whose two queues run as unequally as the events allow,
// numbers stay right, reductions do not hold up the backward pass and gathers are there before they are
// needed.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/sync_testing.h"
#include "tests/two_queue_device.h"

namespace carousel {
namespace {
using testing::kNumBlocks;
using testing::QueuedCommunicator;
using testing::RankOptions;
using testing::SyncRank;
using testing::TwoQueueDevice;

// One rank on a device with two queues. Its log has "forward 2", "backward 2", ... when compute uses the
// group, and its collectives, in the order in which they ran.
class QueuedRank {
 public:
  QueuedRank(const Mesh& mesh, const RankOptions& options, TwoQueueDevice::First first)
      : device(MakeCpu(), first), rank(Queued(mesh), options, &device, [this](std::function<void()> work) {
          device.compute().Put(std::move(work));
        }) {
    rank.on_use = [this](const std::string& what) { device.log.push_back(what); };
  }
  void Step(int64_t step) {
    rank.Step<float>(step);
    // As the optimizer reads it.
    device.compute().Put([this] { device.log.push_back("optimizer"); });
    rank.Update(step);
  }
  std::vector<std::string>& log() { return device.log; }

  TwoQueueDevice device;

 private:
  static std::unique_ptr<Device> MakeCpu() {
    std::string error;
    std::unique_ptr<Device> device = MakeDevice("cpu", 1, &error);
    CAROUSEL_CHECK_MSG(device != nullptr, error);
    return device;
  }
  Mesh Queued(Mesh mesh) {
    const auto queued = [this](Communicator* real, TwoQueueDevice::Queue& queue) {
      communicators_.push_back(std::make_unique<QueuedCommunicator>(*real, queue));
      return communicators_.back().get();
    };
    for (Axis* axis : {&mesh.shard, &mesh.replicas, &mesh.tensor}) {
      if (axis->size == 1) continue;
      Communicator* real = axis->communicator;
      axis->communicator = queued(real, device.compute());
      axis->background = queued(real, device.side());
    }
    mesh.side = &device.side();
    return mesh;
  }
  std::vector<std::unique_ptr<Communicator>> communicators_;

 public:
  SyncRank rank;
};

constexpr TwoQueueDevice::First kBoth[] = {TwoQueueDevice::First::kCompute, TwoQueueDevice::First::kSide};

int64_t IndexOf(const std::vector<std::string>& log, const std::string& text, int64_t from = 0) {
  const auto found = std::find(log.begin() + from, log.end(), text);
  return found == log.end() ? -1 : found - log.begin();
}
int64_t Count(const std::vector<std::string>& log, const std::string& name, int64_t begin, int64_t end) {
  return std::count_if(log.begin() + begin, log.begin() + end,
                       [&](const std::string& entry) { return entry.rfind(name, 0) == 0; });
}

TEST(ShardedSyncOverlap, NumbersAreRightWhicheverQueueRunsFirst) {
  for (const MeshSizes& sizes :
       {MeshSizes{.replicate = 2}, MeshSizes{.shard = 2}, MeshSizes{.replicate = 2, .shard = 2},
        MeshSizes{.replicate = 2, .sequence = 2}, MeshSizes{.shard = 2, .tensor = 2}}) {
    for (const TwoQueueDevice::First first : kBoth) {
      for (const SyncOptions& sync :
           {SyncOptions{}, SyncOptions{.staging_bytes = 1}, SyncOptions{.prefetch_distance = 3}}) {
        for (const bool tied : {false, true}) {
          if (tied && sync.staging_bytes == 1) continue;
          RunLocalMesh(sizes, [&](const Mesh& mesh) {
            QueuedRank queued(
                mesh, {.micro_batches = 3 * sizes.replicate * sizes.shard, .sync = sync, .tied = tied},
                first);
            // Two whole steps wait in the queues before anything runs.
            queued.Step(0);
            queued.Step(1);
            queued.rank.Step<float>(2);
            queued.rank.CheckShards<float>(2, "two queues");
            EXPECT_GT(queued.rank.num_weights_checked(), 0);
            EXPECT_EQ(queued.rank.sync().num_late_gathers(), 0);
          });
        }
      }
    }
  }
}

TEST(ShardedSyncOverlap, UnorderedSumsAreSafeWhicheverQueueRunsFirst) {
  for (const MeshSizes& sizes :
       {MeshSizes{.replicate = 2}, MeshSizes{.shard = 2}, MeshSizes{.replicate = 2, .shard = 2}}) {
    for (const SyncOptions::Wire wire : {SyncOptions::Wire::kWide, SyncOptions::Wire::kBF16}) {
      std::vector<float> sums[2];
      for (const TwoQueueDevice::First first : kBoth) {
        std::vector<float>& mine = sums[first == TwoQueueDevice::First::kCompute];
        RunLocalMesh(sizes, [&](const Mesh& mesh) {
          QueuedRank queued(
              mesh,
              {.micro_batches = 12, .sync = {.reduction = SyncOptions::Reduction::kUnordered, .wire = wire}},
              first);
          queued.Step(0);
          queued.rank.Step<float>(1);
          queued.rank.ForEachShardElement([&](int param, int64_t element, int64_t at, Tensor shard) {
            if (mesh.world.index == 0) mine.push_back(shard.as<float>()[at]);
            const double expected = queued.rank.Expected<double>(1, param, element, SyncRank::All);
            // Twelve values of magnitudes up to 1024, rounded to 8 bits twice at worst.
            EXPECT_NEAR(shard.as<float>()[at], expected, 12 * 1024 * std::ldexp(1, -8));
          });
        });
      }
      EXPECT_EQ(sums[0], sums[1]);
    }
  }
}

TEST(ShardedSyncOverlap, TheLastBackwardPassDoesNotWaitForSumsOverReplicas) {
  RunLocalMesh({.replicate = 2}, [](const Mesh& mesh) {
    QueuedRank queued(mesh, {.micro_batches = 4}, TwoQueueDevice::First::kCompute);
    queued.Step(0);
    queued.device.Synchronize();
    const std::vector<std::string>& log = queued.log();
    // Compute went first: the whole backward pass ran before the first exchange; the optimizer waited for
    // all.
    const int64_t optimizer = IndexOf(log, "optimizer");
    ASSERT_GT(optimizer, 0);
    int64_t last_backward = -1;
    for (int64_t i = 0; i < optimizer; ++i) {
      if (log[static_cast<size_t>(i)] == "backward 1") last_backward = i;
    }
    EXPECT_EQ(Count(log, "AllToAll", 0, last_backward), 0);
    EXPECT_EQ(Count(log, "AllToAll", last_backward, optimizer), 8);  // every segment's
    EXPECT_EQ(Count(log, "AllToAll", optimizer, static_cast<int64_t>(log.size())), 0);
  });
}

TEST(ShardedSyncOverlap, AGroupIsReducedBeforeTheNextBackwardBegins) {
  // The side queue goes first: what could run beside the backward pass of block l - 1 has run before it. One
  // micro-batch per rank: every pass is the last one.
  for (const MeshSizes& sizes : {MeshSizes{.replicate = 2}, MeshSizes{.shard = 2}, MeshSizes{.sequence = 2},
                                 MeshSizes{.replicate = 2, .shard = 2}}) {
    RunLocalMesh(sizes, [&](const Mesh& mesh) {
      QueuedRank queued(mesh, {.micro_batches = sizes.replicate * sizes.shard}, TwoQueueDevice::First::kSide);
      queued.Step(0);
      queued.device.Synchronize();
      const std::vector<std::string>& log = queued.log();
      const int num_stages = (sizes.shard > 1) + (sizes.replicate * sizes.sequence > 1);
      int64_t begin = IndexOf(log, "head");
      ASSERT_GE(begin, 0);
      for (int l = kNumBlocks; l >= 1; --l) {
        const int64_t end = IndexOf(log, "backward " + std::to_string(l), begin);
        ASSERT_GT(end, begin);
        // Of the group above: the head has one segment, a block two.
        EXPECT_EQ(Count(log, "AllToAll", begin, end), num_stages * (l == kNumBlocks ? 1 : 2)) << l;
        begin = end;
      }
    });
  }
}

TEST(ShardedSyncOverlap, GathersAreDoneBeforeTheyAreNeededAndOneBlockAhead) {
  RunLocalMesh({.shard = 2}, [](const Mesh& mesh) {
    QueuedRank queued(mesh, {.micro_batches = 4}, TwoQueueDevice::First::kSide);
    queued.Step(0);
    queued.device.Synchronize();
    const std::vector<std::string>& log = queued.log();
    const auto gather_of = [&](int group) {
      return "AllGather " + std::to_string(queued.rank.store.segment(group, 0).padded_size);
    };
    // While block l computes, block l + 1 (the blocks differ in size) is there already.
    for (int l = 1; l < kNumBlocks; ++l) {
      const int64_t gathered = IndexOf(log, gather_of(l + 1)),
                    used = IndexOf(log, "forward " + std::to_string(l));
      EXPECT_TRUE(gathered >= 0 && gathered < used) << l;
    }
    // Backwards: block l - 1 while block l computes; the last block is still there from the forward pass.
    const int64_t head = IndexOf(log, "head"), second = IndexOf(log, "embedding", head);
    for (int l = kNumBlocks; l > 1; --l) {
      const int64_t gathered = IndexOf(log, gather_of(l - 1), head);
      const int64_t used = IndexOf(log, "backward " + std::to_string(l));
      EXPECT_TRUE(gathered >= 0 && gathered < used) << l;
    }
    EXPECT_EQ(Count(log, gather_of(kNumBlocks), head, second), 0);
  });
}

TEST(ShardedSyncOverlap, WeightsComeBackBesideThePassesBeforeTheirFirstUse) {
  RunLocalMesh({.replicate = 2}, [](const Mesh& mesh) {
    QueuedRank queued(mesh, {.micro_batches = 2}, TwoQueueDevice::First::kCompute);
    queued.Step(0);
    queued.Step(1);
    queued.device.Synchronize();
    const std::vector<std::string>& log = queued.log();
    const int64_t optimizer = IndexOf(log, "optimizer"), next = IndexOf(log, "embedding", optimizer);
    // The first group is waited for; compute runs ahead of the gathers of the others.
    EXPECT_EQ(Count(log, "AllGather", optimizer, next), 1);
    const int64_t last = IndexOf(log, "head", next);
    EXPECT_EQ(Count(log, "AllGather", next, last), 7);
  });
}

TEST(ShardedSyncOverlap, WithoutBackgroundCommunicatorsEverythingIsInOrder) {
  RunLocalMesh({.shard = 2}, [](const Mesh& plain) {
    TwoQueueDevice device(
        [] {
          std::string error;
          return MakeDevice("cpu", 1, &error);
        }(),
        TwoQueueDevice::First::kCompute);
    QueuedCommunicator queued(*plain.shard.communicator, device.compute());
    Mesh mesh = plain;
    mesh.shard.communicator = mesh.world.communicator = &queued;
    mesh.side = &device.side();
    SyncRank rank(mesh, {.micro_batches = 4}, &device,
                  [&](std::function<void()> work) { device.compute().Put(std::move(work)); });
    rank.Step<float>(0);
    EXPECT_TRUE(device.side().empty());
    rank.CheckShards<float>(0, "in order");
  });
}
}  // namespace
}  // namespace carousel
