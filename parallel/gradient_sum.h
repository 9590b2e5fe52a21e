// GradientSum: from every micro-batch's gradients of whole segments to the sum, over all micro-batches and
// all ranks, of this rank's shard.
//
// Two stages. The shard axis (F ranks, if F > 1): the F micro-batches of a turn are exchanged as soon as a
// group's gradients are ready, so that each rank adds up one weight shard of them. The replicas (replicate x
// sequence, n ranks, if n > 1): what a rank has summed by the end of the step is exchanged when the group's
// last gradients are ready, so that each rank owns 1/n of its weight shard. With both stages one after the
// other each rank ends up with its shard of the optimizer.
//
// Which axes a parameter's gradient is summed over is Param::reduce_axes. Elements of a parameter that is not
// summed over an axis are set to zero before they are sent to ranks with another index on it.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "core/comm/mesh.h"
#include "core/model/param_store.h"
#include "parallel/comm_lane.h"
#include "parallel/gradient_exchange.h"
#include "parallel/ordered_reduce.h"

namespace carousel {

struct GradientSumOptions {
  bool ordered = true;     // by the fixed tree; otherwise micro-batches, then ranks, in their order
  bool bf16_wire = false;  // REQUIRES: !ordered, wide gradients in f32
  int64_t staging_bytes = 0;
};

class GradientSum {
 public:
  // ops: the compute stream's; null if no memory is ever bound. All must outlive this.
  GradientSum(ParamStore& params, Ops* ops, CommLane& lane, const Mesh& mesh, int64_t num_leaves,
              const GradientSumOptions& options);

  // Buffers: category "gradients". F == 1: whole segments, as many as the tree needs (unordered: one). F > 1:
  // weight shards, as many; and whole segments of group 0 and of the two largest that others take turns in.
  // Staging: category "comm".
  void Bind(Arena& arena);

  // As ParamSync.
  void BeginMicroBatch(int64_t leaf);
  void BeginGradients(int group);
  void GradReady(int group);
  // The compute stream waits for all sums; sets every ShardGrad.
  void Finish();
  void SetDigest(Tensor digest) { digest_ = digest; }

  bool is_last(int64_t leaf) const { return leaf == leaves_.at(leaves_.count - 1); }

 private:
  struct Run {
    int64_t begin = 0, count = 0;
  };
  struct Segment {
    int group = 0, segment = 0;
    int64_t padded_size = 0;
    std::vector<Tensor> buffers;  // num_buffers x (padded_size / F) wide; entry j of the tree's stack
    // Elements that are not summed over the shard, replicate, sequence axis.
    std::vector<Run> own_of_shard, own_of_replicate, own_of_sequence;
  };
  // F > 1: where a micro-batch's gradients of a group are until they are exchanged.
  struct Place {
    Tensor segments[ParamStore::kNumSegments];  // (largest padded size) wide
    int group = -1;                             // -1: free
    int64_t used = 0;
    CommLane::Mark exchanged;
  };
  enum class State : uint8_t { kReady, kBegun, kWaited };  // of a group in this micro-batch

  void BindPlaces(Arena& arena);
  void BindExchanges(Arena& arena);
  void FindOwnRuns();
  Place& PlaceFor(int group);
  Tensor Leaf(const Place& place, const Segment& s) const;
  void SumTurn(const Segment& s, Tensor gradients);
  void SumOverReplicas(const Segment& s);
  void AddToDigest(const Segment& s, Tensor gradients, int64_t part);
  void SumInRankOrder(Tensor sum, bool fresh, const GradientExchange::Piece& piece);
  // buffer: elements [first, first + n) of the segment, of which rank q of the axis owns block q.
  void ClearOthers(Tensor buffer, int64_t first, int64_t num_ranks, const std::vector<Run>& runs,
                   const std::function<bool(int64_t rank)>& is_other);
  void Add(Ops* ops, Tensor sum, Tensor left, Tensor right);
  void CheckGroupsReady() const;
  int64_t F() const { return mesh_.shard.size; }

  ParamStore& params_;
  Ops* ops_;
  CommLane& lane_;
  const Mesh mesh_;
  const int64_t num_leaves_;
  const Leaves leaves_;
  const GradientSumOptions options_;
  RankReducePlan rank_plan_;  // F == 1
  TurnReducePlan turn_plan_;  // F > 1
  OwnerReducePlan owner_plan_;
  int64_t num_buffers_ = 0, num_nodes_ = 0;  // nodes: what remains in the first buffers
  std::optional<GradientExchange> over_shard_, over_replicas_;

  std::vector<Segment> segments_;  // those that are not empty
  std::vector<State> states_;      // of the groups
  std::vector<Place> places_;      // the first is group 0's
  int64_t clock_ = 0;
  CommLane::Mark summed_;
  Tensor digest_;
  int64_t turn_ = -1;  // micro-batches of this rank begun in this step, less one
  // F == 1: the buffer of the micro-batch in progress, and how many merges follow it.
  std::optional<TreeStack> stack_;
  size_t leaf_buffer_ = 0, num_merges_ = 0;
};
}  // namespace carousel
