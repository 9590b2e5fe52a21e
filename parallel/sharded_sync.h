// Data parallelism with replicated weights and a sharded optimizer (ZeRO-1, Rajbhandari et al. 2020,
// arXiv:1910.02054): each rank computes some of the micro-batches of a step, sums gradients with all others,
// updates its shard and gathers the weights.
//
// The sum over micro-batches follows the fixed tree of ordered_reduce.h, so gradients have the same bits for
// every number of ranks that divides micro_batches_per_step. Wire volume per rank and step, P ranks: (P-1)/P
// of the gradients (times the number of nodes a rank is left with: 1 if M/P is a power of two) plus (P-1)/P
// of the weights, the same as a reduce-scatter and an all-gather.
#pragma once
#include <memory>
#include <vector>

#include "core/comm/mesh.h"
#include "core/comm/param_sync.h"
#include "core/train/trainer.h"
#include "parallel/counting_communicator.h"
#include "parallel/ordered_reduce.h"

namespace carousel {

constexpr int64_t kDefaultStagingBytes = int64_t{64} << 20;

struct SyncOptions {
  enum class Reduction : uint8_t {
    kOrdered,    // over the fixed tree: the same bits for every number of ranks that see different
                 // micro-batches
    kUnordered,  // micro-batches add up in one buffer, then ranks in their order: the same mesh gives the
                 // same bits, with the least memory
  };
  enum class Wire : uint8_t {
    kWide,  // gradients cross ranks as they are, f32 (f64)
    kBF16,  // rounded to bf16, summed in f32: half the bytes. kUnordered only
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
  // params: all parameters registered, num_shards == data.size, shard_index == data.index. ops may be null if
  // no memory is ever bound (counting). staging_bytes: the exchange goes in pieces, so that send and receive
  // buffers together take about so much; their size changes no bit of the result.
  ShardedSync(ParamStore& params, Ops* ops, const Axis& data, int64_t micro_batches_per_step,
              int64_t staging_bytes);

  // Gradient buffers: category "gradients", num_buffers per segment (1 + about log2 of the micro-batches of
  // this rank). Staging: category "comm", none for one rank. The store must have been bound before.
  void Bind(Arena& arena);

  void BeginMicroBatch(int64_t leaf) override;
  void Prefetch(int) override {}  // weights are always readable
  void Acquire(int) override {}
  void Release(int) override {}
  void BeginGradients(int) override {}
  void GradReady(int group) override;
  void FinishStep() override;
  void WeightsUpdated(int group) override;
  bool allows_recording(int64_t) const override { return true; }

  int64_t num_buffers() const { return plan_.num_buffers; }
  int64_t piece_elems() const { return piece_elems_; }  // per block of one peer

 private:
  struct SegmentBuffers {
    int group = 0, segment = 0;
    std::vector<Tensor>
        buffers;  // num_buffers x (padded_size) wide; entry j of the tree's stack is in buffer j
  };
  void ReduceAcrossRanks(const SegmentBuffers& s);
  void Add(Tensor sum, Tensor left, Tensor right);
  void CheckGroupsReady() const;

  ParamStore& params_;
  Ops* ops_;
  Axis data_;
  int64_t num_leaves_, staging_bytes_;
  RankReducePlan plan_;
  OwnerReducePlan owner_plan_;
  int64_t piece_elems_ = 0;
  std::vector<SegmentBuffers> segments_;  // those that are not empty
  Tensor send_;                           // (P * piece) wide; undefined if whole shards are sent
  Tensor receive_;                        // (num_rounds * P * piece) wide
  // The micro-batch in progress: its leaf's buffer, and how many merges follow it.
  TreeStack stack_;
  size_t leaf_buffer_ = 0, num_merges_ = 0;
  std::vector<char> group_ready_;
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

// What one rank of `world` sends in one step, tags "gradients" and "weights"; no memory is touched. (The
// trainer's own reductions of the loss and the norm, a few hundred bytes, come on top.)
// The gradient buffers of `params` are set to tensors without data: give it a store of its own.
// REQUIRES: params.num_shards() == world; bound to a counting arena; world divides micro_batches.
CommTotals CountStepCommunication(ParamStore& params, int64_t world, int64_t micro_batches,
                                  int64_t staging_bytes = kDefaultStagingBytes);
}  // namespace carousel
