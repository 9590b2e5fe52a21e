#include "launcher/plan/step_walk.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/base/status_macros.h"
#include "core/train/step_sums.h"
#include "launcher/plan/dry_device.h"
#include "launcher/train/train_setup.h"
#include "parallel/counting_communicator.h"

namespace carousel {
namespace {

// Any tokens: what is sent does not depend on them.
class AnyTokens final : public BatchSource {
 public:
  AnyTokens(int64_t B, int64_t T) : B_(B), T_(T) {}
  void Get(int64_t, int64_t, Batch* batch) override {
    const size_t n = static_cast<size_t>(B_ * T_);
    *batch = {.B = B_, .T = T_, .inputs = {}, .targets = {}, .resets = {}, .lengths = {}};
    batch->inputs.assign(n, 0);
    batch->targets.assign(n, 0);
  }

 private:
  int64_t B_, T_;
};

// All ranks. Whatever this rank's part of the scalars, the others have targets: no step is skipped.
class CountingWorld final : public CountingCommunicator {
 public:
  using CountingCommunicator::CountingCommunicator;
  void DoAllReduceSum(Tensor x) override {
    CountingCommunicator::DoAllReduceSum(x);
    const bool scalars = x.dtype == DType::kI64 && x.num_elems() > StepSums::kNumTargetsElem;
    if (scalars) x.as<int64_t>()[StepSums::kNumTargetsElem] += 1;
  }
};

// A mesh of communicators that count, as the rank at `place` has it.
class CountingMesh {
 public:
  CountingMesh(const MeshSizes& sizes, const MeshPlace& place) {
    Add("replicas", &mesh_.replicas, sizes.replicate * sizes.sequence,
        place.replicate * sizes.sequence + place.sequence);
    Add("shard", &mesh_.shard, sizes.shard, place.shard);
    Add("sequence", &mesh_.sequence, sizes.sequence, place.sequence);
    Add("tensor", &mesh_.tensor, sizes.tensor, place.tensor);
    Add("pipe", &mesh_.pipe, sizes.pipe, place.pipe);
    Add("world", &mesh_.world, sizes.world(), RankOf(sizes, place));
    Add("replicate", &mesh_.replicate, sizes.replicate, place.replicate);
  }
  const Mesh& mesh() const { return mesh_; }
  void Clear() {
    for (auto& [name, communicator] : communicators_) communicator->Clear();
  }
  std::vector<AxisTraffic> Traffic() const {
    std::vector<AxisTraffic> traffic;
    for (const auto& [name, communicator] : communicators_) {
      for (const auto& [op, row] : communicator->Totals().by_op) {
        traffic.push_back({.axis = name, .op = op, .num_calls = row.num_calls, .wire_bytes = row.wire_bytes});
      }
    }
    return traffic;
  }

 private:
  void Add(const std::string& name, Axis* axis, int64_t size, int64_t index) {
    *axis = {.size = size, .index = index};
    if (size == 1) return;
    const int rank = static_cast<int>(index), ranks = static_cast<int>(size);
    if (name == "world") {
      communicators_.emplace_back(name, std::make_unique<CountingWorld>(rank, ranks));
    } else {
      communicators_.emplace_back(name, std::make_unique<CountingCommunicator>(rank, ranks));
    }
    axis->communicator = axis->control = communicators_.back().second.get();
  }
  Mesh mesh_;
  std::vector<std::pair<std::string, std::unique_ptr<CountingCommunicator>>> communicators_;
};
}  // namespace

int64_t StepWalk::AxisBytes(const std::string& axis) const {
  int64_t bytes = 0;
  for (const AxisTraffic& row : traffic) bytes += row.axis == axis ? row.wire_bytes : 0;
  return bytes;
}

int64_t StepWalk::AxisCalls(const std::string& axis) const {
  int64_t calls = 0;
  for (const AxisTraffic& row : traffic) calls += row.axis == axis ? row.num_calls : 0;
  return calls;
}

absl::StatusOr<StepWalk> WalkStep(const RunSpec& run, const MeshSizes& sizes, const MeshPlace& place,
                                  Device& like) {
  DryDevice device(like);
  CountingMesh counting(sizes, place);
  ShardedSyncFactory sync(MakeSyncOptions(run));
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer,
                            Trainer::Create(MakeTrainSpec(run), device, counting.mesh(), sync));
  AnyTokens tokens(run.micro_batch, run.sequence_length);
  // The first step begins where no weights are under way; the second is like all others.
  trainer->Step(0, tokens);
  counting.Clear();
  trainer->Step(1, tokens);

  StepWalk walk;
  walk.place = place;
  walk.traffic = counting.Traffic();
  const Arena& arena = trainer->arena();
  walk.memory_bytes = arena.bytes_by_category();
  walk.scratch_bytes = arena.peak_scratch_bytes();
  walk.total_bytes = arena.total_bytes();
  const ParamStore& params = trainer->params();
  for (const Param& param : params.params()) walk.num_parameters += param.local_elems;
  for (int g = 0; g < params.num_groups(); ++g) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      walk.updated_elems += params.segment(g, s).shard_size(params.num_shards());
    }
  }
  return walk;
}
}  // namespace carousel
