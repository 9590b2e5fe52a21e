#include "parallel/sharded_sync.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {
namespace {
// Pieces of the exchange are not made smaller than this, however many ranks share the staging memory.
constexpr int64_t kMinPieceElems = 1024;
constexpr int64_t kPieceAlignElems = 64;

bool HasMemory(Tensor x) { return x.data != nullptr; }
}  // namespace

ShardedSync::ShardedSync(ParamStore& params, Ops* ops, const Axis& data, int64_t micro_batches_per_step,
                         int64_t staging_bytes)
    : params_(params),
      ops_(ops),
      data_(data),
      num_leaves_(micro_batches_per_step),
      staging_bytes_(staging_bytes),
      plan_(PlanRank(micro_batches_per_step, data.size, data.index)),
      owner_plan_(PlanOwner(micro_batches_per_step, data.size)),
      stack_(num_leaves_, plan_.first_leaf) {
  CAROUSEL_CHECK_EQ(params.num_shards(), data.size);
  CAROUSEL_CHECK_EQ(params.shard_index(), data.index);
  CAROUSEL_CHECK_MSG(data.size == 1 || data.communicator != nullptr,
                     "an axis of several ranks needs a communicator");
  if (data.communicator != nullptr) {
    CAROUSEL_CHECK_EQ(data.communicator->size(), data.size);
    CAROUSEL_CHECK_EQ(data.communicator->rank(), data.index);
  }
}

void ShardedSync::Bind(Arena& arena) {
  const DType wide = params_.wide();
  segments_.clear();
  int64_t largest_shard = 0;
  for (int group = 0; group < params_.num_groups(); ++group) {
    for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
      const int64_t padded_size = params_.segment(group, segment).padded_size;
      if (padded_size == 0) {
        params_.SetGradBuffer(group, segment, Tensor(nullptr, wide, {0}));
        params_.SetShardGrad(group, segment, Tensor(nullptr, wide, {0}));
        continue;
      }
      SegmentBuffers s{.group = group, .segment = segment, .buffers = {}};
      for (int64_t j = 0; j < plan_.num_buffers; ++j) {
        s.buffers.push_back(arena.Persistent("gradients", wide, {padded_size}));
      }
      params_.SetGradBuffer(group, segment, s.buffers[0]);
      largest_shard = std::max(largest_shard, DivExact(padded_size, data_.size));
      segments_.push_back(std::move(s));
    }
  }
  if (data_.size > 1) {
    // Whole shards if they fit. Otherwise pieces of them, which also need to be packed before they are sent.
    const int64_t round_elems =
        staging_bytes_ / (data_.size * SizeOf(wide));  // one buffer, if it had all the memory
    const bool whole = largest_shard <= round_elems / owner_plan_.num_rounds;
    const int64_t piece = round_elems / (owner_plan_.num_rounds + 1) / kPieceAlignElems * kPieceAlignElems;
    piece_elems_ = whole ? largest_shard : std::min(largest_shard, std::max(piece, kMinPieceElems));
    send_ = whole ? Tensor() : arena.Persistent("comm", wide, {data_.size * piece_elems_});
    receive_ = arena.Persistent("comm", wide, {owner_plan_.num_rounds * data_.size * piece_elems_});
  }
  stack_ = TreeStack(num_leaves_, plan_.first_leaf);
  group_ready_.assign(static_cast<size_t>(params_.num_groups()), true);
}

void ShardedSync::BeginMicroBatch(int64_t leaf) {
  CAROUSEL_CHECK_MSG(!segments_.empty(), "BeginMicroBatch before Bind");
  CAROUSEL_CHECK_MSG(leaf == stack_.next_leaf() && leaf < plan_.first_leaf + plan_.num_leaves,
                     "micro-batch " + std::to_string(leaf) + " out of order; this rank's are " +
                         std::to_string(plan_.first_leaf) + " to " +
                         std::to_string(plan_.first_leaf + plan_.num_leaves - 1));
  CheckGroupsReady();
  leaf_buffer_ = static_cast<size_t>(stack_.depth());
  num_merges_ = static_cast<size_t>(stack_.PushLeaf());
  for (const SegmentBuffers& s : segments_) {
    const Tensor buffer = s.buffers[leaf_buffer_];
    params_.SetGradBuffer(s.group, s.segment, buffer);
    if (HasMemory(buffer)) ops_->Fill({.y = buffer, .value = 0});
    group_ready_[static_cast<size_t>(s.group)] = false;
  }
}

void ShardedSync::GradReady(int group) {
  CAROUSEL_CHECK(group >= 0 && group < params_.num_groups());
  for (const SegmentBuffers& s : segments_) {
    if (s.group != group) continue;
    CAROUSEL_CHECK_MSG(!group_ready_[static_cast<size_t>(group)],
                       "GradReady twice for group " + std::to_string(group) + " in one micro-batch");
    for (size_t merge = 0; merge < num_merges_; ++merge) {
      const size_t right = leaf_buffer_ - merge;
      Add(s.buffers[right - 1], s.buffers[right - 1], s.buffers[right]);
    }
  }
  group_ready_[static_cast<size_t>(group)] = true;
}

void ShardedSync::FinishStep() {
  CAROUSEL_CHECK_MSG(stack_.next_leaf() == plan_.first_leaf + plan_.num_leaves,
                     "FinishStep before the last micro-batch of this rank");
  CheckGroupsReady();
  for (const SegmentBuffers& s : segments_) {
    if (data_.size > 1) ReduceAcrossRanks(s);
    const int64_t shard = DivExact(s.buffers[0].num_elems(), data_.size);
    params_.SetShardGrad(s.group, s.segment, s.buffers[0].Rows(data_.index * shard, shard));
  }
  stack_ = TreeStack(num_leaves_, plan_.first_leaf);
}

// The sum of this rank's shard replaces the shard's place in buffer 0, whose value has been sent by then.
void ShardedSync::ReduceAcrossRanks(const SegmentBuffers& s) {
  const int64_t P = data_.size, shard = DivExact(s.buffers[0].num_elems(), P);
  for (int64_t begin = 0; begin < shard; begin += piece_elems_) {
    const int64_t count = std::min(piece_elems_, shard - begin);
    // Received: node `round` of rank r at [round][r].
    const auto received = [&](OwnerReducePlan::Source source) {
      return receive_.Rows((source.round * P + source.rank) * count, count);
    };
    for (int64_t round = 0; round < owner_plan_.num_rounds; ++round) {
      // A rank that has no node left sends its last one again; the plan does not read it.
      const size_t node = std::min(static_cast<size_t>(round), plan_.nodes.size() - 1);
      Tensor in = s.buffers[node];
      if (count < shard) {
        in = send_.Rows(0, P * count);
        if (HasMemory(in)) {
          ops_->Cast(
              {.y = in.Reshape({P, count}), .x = s.buffers[node].Reshape({P, shard}).Columns(begin, count)});
        }
      }
      data_.communicator->AllToAll(receive_.Rows(round * P * count, P * count), in);
    }
    const Tensor result = s.buffers[0].Rows(data_.index * shard + begin, count);
    for (size_t j = 0; j < owner_plan_.additions.size(); ++j) {
      const OwnerReducePlan::Addition& addition = owner_plan_.additions[j];
      const bool last = j + 1 == owner_plan_.additions.size();
      const Tensor into = received(addition.into);
      Add(last ? result : into, into, received(addition.from));
    }
  }
}

void ShardedSync::WeightsUpdated(int group) {
  if (data_.size == 1) return;
  for (const SegmentBuffers& s : segments_) {
    if (s.group != group) continue;
    data_.communicator->AllGather(params_.segment(s.group, s.segment).weights,
                                  params_.WeightShard(s.group, s.segment));
  }
}

void ShardedSync::Add(Tensor sum, Tensor left, Tensor right) {
  if (HasMemory(sum)) ops_->Add({.y = sum, .a = left, .b = right});
}

void ShardedSync::CheckGroupsReady() const {
  for (size_t group = 0; group < group_ready_.size(); ++group) {
    CAROUSEL_CHECK_MSG(group_ready_[group], "no GradReady for group " + std::to_string(group));
  }
}

std::unique_ptr<ParamSync> ShardedSyncFactory::Make(ParamStore& params, Device& device, const Mesh& mesh,
                                                    int64_t micro_batches_per_step) {
  return std::make_unique<ShardedSync>(params, &device.ops(), mesh.replicas, micro_batches_per_step,
                                       options_.staging_bytes);
}

void ShardedSyncFactory::Bind(ParamSync& sync, Arena& arena) {
  auto* made_here = dynamic_cast<ShardedSync*>(&sync);
  CAROUSEL_CHECK_MSG(made_here != nullptr, "Bind of a ParamSync that another factory made");
  made_here->Bind(arena);
}

CommTotals CountStepCommunication(ParamStore& params, int64_t world, int64_t micro_batches,
                                  int64_t staging_bytes) {
  CAROUSEL_CHECK_EQ(params.num_shards(), world);
  CountingCommunicator communicator(static_cast<int>(params.shard_index()), static_cast<int>(world));
  const Axis axis = {.size = world, .index = params.shard_index(), .communicator = &communicator};
  ShardedSync sync(params, nullptr, axis, micro_batches, staging_bytes);
  Arena counting;
  sync.Bind(counting);
  const RankReducePlan plan = PlanRank(micro_batches, world, params.shard_index());
  communicator.SetTag("gradients");
  for (int64_t leaf = plan.first_leaf; leaf < plan.first_leaf + plan.num_leaves; ++leaf) {
    sync.BeginMicroBatch(leaf);
    for (int group = params.num_groups() - 1; group >= 0; --group) sync.GradReady(group);
  }
  sync.FinishStep();
  communicator.SetTag("weights");
  for (int group = 0; group < params.num_groups(); ++group) sync.WeightsUpdated(group);
  return communicator.Totals();
}
}  // namespace carousel
