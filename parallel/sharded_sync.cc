#include "parallel/sharded_sync.h"

#include <algorithm>

namespace carousel {
namespace {

void CheckAxis(const Axis& axis) {
  CAROUSEL_CHECK_MSG(axis.size == 1 || axis.communicator != nullptr,
                     "an axis of several ranks needs a communicator");
  if (axis.communicator == nullptr) return;
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(axis.communicator->size()), axis.size);
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(axis.communicator->rank()), axis.index);
}

void CheckMesh(const ParamStore& params, const Mesh& mesh) {
  CheckAxis(mesh.shard);
  CheckAxis(mesh.replicas);
  CheckAxis(mesh.tensor);
  CAROUSEL_CHECK_EQ(mesh.replicas.size, mesh.replicate.size * mesh.sequence.size);
  CAROUSEL_CHECK_EQ(mesh.replicas.index, mesh.replicate.index * mesh.sequence.size + mesh.sequence.index);
  const ParamPartition wanted = PartitionOf(mesh), &found = params.partition();
  CAROUSEL_CHECK_EQ(found.num_shards, wanted.num_shards);
  CAROUSEL_CHECK_EQ(found.shard_index, wanted.shard_index);
  CAROUSEL_CHECK_EQ(found.weight_shards, wanted.weight_shards);
  CAROUSEL_CHECK_EQ(found.tensor_size, wanted.tensor_size);
  CAROUSEL_CHECK_EQ(found.tensor_index, wanted.tensor_index);
}
}  // namespace

ShardedSync::ShardedSync(ParamStore& params, Device* device, const Mesh& mesh, int64_t micro_batches_per_step,
                         const SyncOptions& options)
    : params_(params),
      ops_(device == nullptr ? nullptr : &device->ops()),
      mesh_(mesh),
      lane_(device, mesh),
      gradients_(params, ops_, lane_, mesh, micro_batches_per_step,
                 {.ordered = options.reduction == SyncOptions::Reduction::kOrdered,
                  .bf16_wire = options.wire == SyncOptions::Wire::kBF16,
                  .staging_bytes = options.staging_bytes}) {
  CheckMesh(params, mesh);
  if (mesh.shard.size > 1) gather_.emplace(params, lane_, mesh.shard, options.prefetch_distance);
  updates_.resize(static_cast<size_t>(params.num_groups()));
  for (Update& update : updates_) update.gathered = lane_.MakeMark();
}

void ShardedSync::Bind(Arena& arena) {
  gradients_.Bind(arena);
  if (gather_) gather_->Bind(arena);
  int64_t num_elems = 0;
  for (const TensorRun& run : TensorRuns()) num_elems += run.count;
  if (num_elems > 0) packed_ = arena.Persistent("comm", params_.wide(), {num_elems});
}

void ShardedSync::Prefetch(int group) {
  if (gather_) gather_->Prefetch(group);
}

void ShardedSync::Acquire(int group) {
  if (gather_) return gather_->Acquire(group);
  if (group < 0 || group >= params_.num_groups()) return;
  Update& update = updates_[static_cast<size_t>(group)];
  if (!update.waited_for) lane_.WaitInCompute(update.gathered);
  update.waited_for = true;
}

void ShardedSync::Release(int group) {
  if (gather_) gather_->Release(group);
}

void ShardedSync::WeightsUpdated(int group) {
  if (mesh_.shard.size * mesh_.replicas.size == 1) return;
  lane_.FollowCompute();
  if (mesh_.replicas.size > 1) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      const ParamStore::Segment& segment = params_.segment(group, s);
      if (segment.padded_size == 0) continue;
      lane_.of(mesh_.replicas).AllGather(segment.weight_shard, params_.WeightShard(group, s));
    }
  }
  if (gather_) return gather_->WeightsUpdated(group);
  Update& update = updates_[static_cast<size_t>(group)];
  lane_.SetHere(update.gathered);
  update.waited_for = false;
}

bool ShardedSync::allows_recording(int64_t leaf) const {
  const bool cuts_the_model =
      mesh_.shard.size * mesh_.sequence.size * mesh_.tensor.size * mesh_.pipe.size > 1;
  return !cuts_the_model && (mesh_.replicas.size == 1 || !gradients_.is_last(leaf));
}

void ShardedSync::FinishStep() {
  gradients_.Finish();
  SumOverTensor();
}

// Where gradients lie that the ranks of the tensor axis must sum: the same places on all of them.
std::vector<ShardedSync::TensorRun> ShardedSync::TensorRuns() const {
  std::vector<TensorRun> runs;
  if (mesh_.tensor.size == 1) return runs;
  for (int group = 0; group < params_.num_groups(); ++group) {
    for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
      for (const ParamStore::ShardPiece& piece : params_.ShardPieces(group, segment)) {
        if (!params_.param(piece.param).reduces_over(MeshAxis::kTensor)) continue;
        const bool continues = !runs.empty() && runs.back().group == group &&
                               runs.back().segment == segment &&
                               runs.back().begin + runs.back().count == piece.shard_begin;
        if (!continues) runs.push_back({.group = group, .segment = segment, .begin = piece.shard_begin});
        runs.back().count += piece.count;
      }
    }
  }
  return runs;
}

void ShardedSync::SumOverTensor() {
  const std::vector<TensorRun> runs = TensorRuns();
  if (runs.empty()) return;
  const auto for_each = [&](const std::function<void(Tensor packed, Tensor grad)>& fn) {
    int64_t begin = 0;
    for (const TensorRun& run : runs) {
      const Tensor grad = params_.ShardGrad(run.group, run.segment).Rows(run.begin, run.count);
      fn(packed_.Rows(begin, run.count), grad);
      begin += run.count;
    }
    return begin;
  };
  const auto copy = [this](Tensor to, Tensor from) {
    if (to.data != nullptr) ops_->Cast({.y = to, .x = from});
  };
  const int64_t num_elems = for_each([&](Tensor packed, Tensor grad) { copy(packed, grad); });
  mesh_.tensor.communicator->AllReduceSum(packed_.Rows(0, num_elems));
  for_each([&](Tensor packed, Tensor grad) { copy(grad, packed); });
}

std::unique_ptr<ParamSync> ShardedSyncFactory::Make(ParamStore& params, Device& device, const Mesh& mesh,
                                                    int64_t micro_batches_per_step) {
  return std::make_unique<ShardedSync>(params, &device, mesh, micro_batches_per_step, options_);
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
  const Mesh mesh =
      ReplicateMesh({.size = world, .index = params.shard_index(), .communicator = &communicator});
  ShardedSync sync(params, nullptr, mesh, micro_batches, {.staging_bytes = staging_bytes});
  Arena counting;
  sync.Bind(counting);
  communicator.SetTag("gradients");
  const Leaves leaves = LeavesOf(mesh, micro_batches);
  for (int64_t j = 0; j < leaves.count; ++j) {
    sync.BeginMicroBatch(leaves.at(j));
    for (int group = params.num_groups() - 1; group >= 0; --group) {
      sync.BeginGradients(group);
      sync.GradReady(group);
    }
  }
  sync.FinishStep();
  communicator.SetTag("weights");
  for (int group = 0; group < params.num_groups(); ++group) sync.WeightsUpdated(group);
  return communicator.Totals();
}
}  // namespace carousel
