// ShardedSync: the ParamSync of every mesh. Each rank computes some of the micro-batches of a step, sums
// gradients with all others, updates its shard of the optimizer's state and gathers weights.
//
// Two axes spread a group of parameters (Rajbhandari et al. 2020, arXiv:1910.02054): over the F ranks of
// `shard` its weights and the sums of its gradients lie in parts (ZeRO-3), gathered for each use and reduced
// after each micro-batch; the n ranks of `replicas` (replicate x sequence) have the same weights and share
// the optimizer's work on them (ZeRO-1). Both together are the hybrid.
//
// What one rank sends in a step: M micro-batches, of which each rank computes `a` (M / (R F)); G bytes of
// gradients of all its segments and W bytes of weights, both with the segments' padding; shard and replicas
// of F and n ranks; AllToAll, ReduceScatterSum and AllGather send (P-1)/P of the whole, in one call per
// segment that is not empty (two per block):
//   gradients over shard, F > 1: a G (F-1)/F, at every GradReady
//   gradients over replicas, n > 1: k (G/F) (n-1)/n, at the last GradReady of a group, k calls
//   gradients over tensor, t > 1: 2 (t-1)/t of the shard's gradients of parameters that need it, one
//     AllReduceSum in FinishStep
//   weights over replicas, n > 1: (W/F) (n-1)/n, at WeightsUpdated
//   weights over shard, F > 1: (F-1)/F of what weight_gather.h says, at most 2 a W
// k is the number of nodes of the summation tree that a rank may be left with: 1 if M / R is a power of two,
// and without order. bf16 on the wire halves both lines of gradients.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "core/comm/mesh.h"
#include "core/comm/param_sync.h"
#include "core/train/trainer.h"
#include "parallel/comm_lane.h"
#include "parallel/counting_communicator.h"
#include "parallel/gradient_sum.h"
#include "parallel/weight_gather.h"

namespace carousel {

constexpr int64_t kDefaultStagingBytes = int64_t{64} << 20;

struct SyncOptions {
  enum class Reduction : uint8_t {
    kOrdered,    // over the fixed tree of ordered_reduce.h: the same bits for every replicate x shard
    kUnordered,  // micro-batches add up in one buffer, then ranks in their order: the same mesh gives the
                 // same bits, with the least memory
  };
  enum class Wire : uint8_t {
    kWide,  // gradients cross ranks as they are, f32 (f64)
    kBF16,  // rounded to bf16 once per exchange, summed in f32: half the bytes. kUnordered only, not f64
  };
  Reduction reduction = Reduction::kOrdered;
  Wire wire = Wire::kWide;
  // The exchange of gradients goes in pieces, so that send and receive buffers together take about so much;
  // their size changes no bit of the result.
  int64_t staging_bytes = kDefaultStagingBytes;
  // Shard axis: how many groups of weights are gathered ahead of the one in use, >= 1.
  int prefetch_distance = 1;
};

class ShardedSync : public ParamSync {
 public:
  // params: all parameters registered, partitioned as PartitionOf(mesh). device: null if no memory is ever
  // bound (counting). mesh.data_size() divides micro_batches_per_step. All must outlive the sync.
  ShardedSync(ParamStore& params, Device* device, const Mesh& mesh, int64_t micro_batches_per_step,
              const SyncOptions& options);

  // Categories "gradients", "gathered weights" (F > 1) and "comm": what crosses ranks. The store must have
  // been bound before.
  void Bind(Arena& arena);

  void Prefetch(int group) override;
  void Acquire(int group) override;
  void Release(int group) override;
  void BeginMicroBatch(int64_t leaf) override { gradients_.BeginMicroBatch(leaf); }
  void BeginGradients(int group) override { gradients_.BeginGradients(group); }
  void GradReady(int group) override { gradients_.GradReady(group); }
  void FinishStep() override;
  void SetDigest(Tensor digest) override { gradients_.SetDigest(digest); }
  void WeightsUpdated(int group) override;
  // Only where nothing crosses ranks within the passes.
  bool allows_recording(int64_t leaf) const override;

  // Gathers that an Acquire had to begin itself (weight_gather.h).
  int64_t num_late_gathers() const { return gather_.has_value() ? gather_->num_late() : 0; }

 private:
  struct TensorRun {
    int group = 0, segment = 0;
    int64_t begin = 0, count = 0;  // of the shard
  };
  std::vector<TensorRun> TensorRuns() const;
  void SumOverTensor();

  ParamStore& params_;
  Ops* ops_;
  const Mesh mesh_;
  CommLane lane_;
  GradientSum gradients_;
  std::optional<WeightGather> gather_;  // F > 1
  // F == 1: groups whose weights are on their way from the replicas.
  struct Update {
    CommLane::Mark gathered;
    bool waited_for = true;
  };
  std::vector<Update> updates_;
  Tensor packed_;  // wide: gradients that are summed over the tensor axis, side by side
};

class ShardedSyncFactory : public ParamSyncFactory {
 public:
  explicit ShardedSyncFactory(const SyncOptions& options = {}) : options_(options) {}
  std::unique_ptr<ParamSync> Make(ParamStore& params, Device& device, const Mesh& mesh,
                                  int64_t micro_batches_per_step) override;
  void Bind(ParamSync& sync, Arena& arena) override;

 private:
  SyncOptions options_;
};

// What one rank of `world` ranks that only replicate the model sends in one step, tags "gradients" and
// "weights"; no memory is touched. (The trainer's own reductions of the loss and the norm, a few hundred
// bytes, come on top.) The gradient buffers of `params` are set to tensors without data: give it a store of
// its own. REQUIRES: params.num_shards() == world; bound to a counting arena; world divides micro_batches.
CommTotals CountStepCommunication(ParamStore& params, int64_t world, int64_t micro_batches,
                                  int64_t staging_bytes = kDefaultStagingBytes);
}  // namespace carousel
