// When the model and the trainer let ShardedSync exchange: the order in which a real training step issues
// passes and collectives.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "core/train/trainer.h"
#include "launcher/plan/forwarding_ops.h"
#include "parallel/sharded_sync.h"
#include "tests/mesh_testing.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::TinySpec;
using Log = std::vector<std::string>;

// The CPU, which logs the ranges of its ops as they are issued.
class LoggingDevice final : public Device {
 public:
  explicit LoggingDevice(Log* log) : device_(testing::CpuDevice(1)), ops_(device_->ops(), log) {}
  std::string name() const override { return "logging"; }
  bool host_accessible() const override { return true; }
  void* Allocate(int64_t bytes) override { return device_->Allocate(bytes); }
  void Free(void* memory) override { device_->Free(memory); }
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    device_->CopyToDevice(to, from, bytes);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    device_->CopyToHost(to, from, bytes);
  }
  void Synchronize() override {}
  Ops& ops() override { return ops_; }

 private:
  class LoggingOps final : public ForwardingOps {
   public:
    LoggingOps(Ops& ops, Log* log) : ForwardingOps(ops), log_(*log) {}
    void BeginRange(const char* name) override { log_.push_back(name); }
    void EndRange() override {}

   private:
    Log& log_;
  };
  std::unique_ptr<Device> device_;
  LoggingOps ops_;
};

class LoggingCommunicator final : public Communicator {
 public:
  LoggingCommunicator(Communicator& real, const std::string& axis, Log* log)
      : real_(real), axis_(axis), log_(*log) {}
  int rank() const override { return real_.rank(); }
  int size() const override { return real_.size(); }
  [[noreturn]] void Abort(int exit_code) override {
    real_.Abort(exit_code);
    std::abort();  // not reached
  }

 protected:
  void DoAllReduceSum(Tensor x) override { Note("AllReduceSum"), real_.AllReduceSum(x); }
  void DoAllGather(Tensor all, Tensor mine) override { Note("AllGather"), real_.AllGather(all, mine); }
  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    Note("ReduceScatterSum"), real_.ReduceScatterSum(mine, all);
  }
  void DoAllToAll(Tensor out, Tensor in) override { Note("AllToAll"), real_.AllToAll(out, in); }
  void DoBroadcast(Tensor x, int root) override { Note("Broadcast"), real_.Broadcast(x, root); }
  void DoSend(Tensor x, int to) override { Note("Send"), real_.Send(x, to); }
  void DoRecv(Tensor x, int from) override { Note("Recv"), real_.Recv(x, from); }
  void DoBarrier() override { Note("Barrier"), real_.Barrier(); }

 private:
  void Note(const std::string& call) { log_.push_back(axis_ + " " + call); }
  Communicator& real_;
  const std::string axis_;
  Log& log_;
};

class RandomSource final : public BatchSource {
 public:
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    *batch = testing::RandomBatch(2, 6, TinySpec().vocab_size, static_cast<uint64_t>(100 * step + micro),
                                  /*resets=*/true);
  }
};

class NotedFactory final : public ShardedSyncFactory {
 public:
  std::unique_ptr<ParamSync> Make(ParamStore& params, Device& device, const Mesh& mesh,
                                  int64_t micro_batches_per_step) override {
    auto sync = ShardedSyncFactory::Make(params, device, mesh, micro_batches_per_step);
    made = static_cast<ShardedSync*>(sync.get());
    return sync;
  }
  ShardedSync* made = nullptr;
};

constexpr int64_t kNumBlocks = 4, kNumMicroBatches = 4;

// The log of the second of two steps on rank 0.
Log StepOn(const MeshSizes& sizes, bool tied) {
  Log result;
  RunLocalMesh(sizes, [&](Mesh mesh) {
    Log log;
    std::vector<std::unique_ptr<LoggingCommunicator>> communicators;
    const auto watch = [&](Axis* axis, const char* name) {
      if (axis->size == 1) return;
      communicators.push_back(std::make_unique<LoggingCommunicator>(*axis->communicator, name, &log));
      axis->communicator = communicators.back().get();
    };
    watch(&mesh.shard, "shard");
    watch(&mesh.replicas, "replicas");
    TrainSpec spec;
    spec.model = TinySpec();
    spec.model.num_blocks = kNumBlocks;
    spec.model.tie_embeddings = tied;
    spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
    spec.T = 6;
    spec.micro_batch = 2;
    spec.micro_batches_per_step = kNumMicroBatches;
    LoggingDevice device(&log);
    NotedFactory factory;
    Trainer trainer(spec, device, mesh, factory);
    trainer.Initialize(1);
    RandomSource source;
    trainer.Step(0, source);
    log.clear();
    EXPECT_FALSE(trainer.Step(1, source).skipped);
    EXPECT_EQ(factory.made->num_late_gathers(), 0);
    if (mesh.world.index == 0) result = log;
  });
  return result;
}

std::string Block(int64_t l, bool backward) {
  return "block " + std::to_string(l) + " mLSTM" + (backward ? " backward" : "");
}
// Where the last pass of that name begins.
int64_t LastOf(const Log& log, const std::string& name) {
  const auto found = std::find(log.rbegin(), log.rend(), name);
  return found == log.rend() ? -1 : log.rend() - found - 1;
}
int64_t Count(const Log& log, const std::string& name, int64_t begin, int64_t end) {
  return std::count(log.begin() + begin, log.begin() + end, name);
}

TEST(TrainingStep, IssuesTheReductionOfABlockBeforeTheBackwardOfTheNext) {
  for (const MeshSizes& sizes :
       {MeshSizes{.replicate = 4}, MeshSizes{.shard = 2}, MeshSizes{.replicate = 2, .shard = 2}}) {
    for (const bool tied : {false, true}) {
      const Log log = StepOn(sizes, tied);
      for (int64_t l = kNumBlocks - 1; l > 0; --l) {
        // In the last micro-batch; a block has two segments.
        const int64_t begin = LastOf(log, Block(l, true)), end = LastOf(log, Block(l - 1, true));
        ASSERT_TRUE(0 <= begin && begin < end) << l;
        EXPECT_EQ(Count(log, "shard AllToAll", begin, end), sizes.shard > 1 ? 2 : 0) << l;
        EXPECT_EQ(Count(log, "replicas AllToAll", begin, end), sizes.replicate > 1 ? 2 : 0) << l;
      }
    }
  }
}

TEST(TrainingStep, IssuesGathersOneBlockAhead) {
  for (const bool tied : {false, true}) {
    const Log log = StepOn({.replicate = 2, .shard = 2}, tied);
    // In the first pass forward: when block l begins, its weights and those of what comes next have been
    // asked for, and no others. The embedding has one segment, a block two, the head two, or one if it is
    // tied.
    for (int64_t l = 0; l < kNumBlocks; ++l) {
      const int64_t begin = std::find(log.begin(), log.end(), Block(l, false)) - log.begin();
      ASSERT_LT(begin, static_cast<int64_t>(log.size()));
      const int64_t next = l + 1 == kNumBlocks && tied ? 1 : 2;
      EXPECT_EQ(Count(log, "shard AllGather", 0, begin), 1 + 2 * (l + 1) + next) << l;
    }
    // Backwards: the last block is there; l - 1 is gathered when l begins.
    const int64_t last = std::find(log.begin(), log.end(), Block(kNumBlocks - 1, true)) - log.begin();
    const int64_t so_far = Count(log, "shard AllGather", 0, last);
    for (int64_t l = kNumBlocks - 2; l >= 0; --l) {
      const int64_t begin = std::find(log.begin(), log.end(), Block(l, true)) - log.begin();
      ASSERT_LT(begin, static_cast<int64_t>(log.size()));
      EXPECT_EQ(Count(log, "shard AllGather", 0, begin) - so_far, 2 * (kNumBlocks - 1 - l)) << l;
    }
  }
}

TEST(TrainingStep, GathersUpdatedWeightsOfEverySegmentOnceAfterTheSums) {
  const Log log = StepOn({.replicate = 4}, false);
  // One call per segment: the embedding's, the blocks' two each, the norm's and the head's.
  EXPECT_EQ(Count(log, "replicas AllGather", 0, static_cast<int64_t>(log.size())), 1 + 2 * kNumBlocks + 2);
  EXPECT_EQ(Count(log, "replicas AllGather", 0, LastOf(log, "AdamW")), 0);
}
}  // namespace
}  // namespace carousel
