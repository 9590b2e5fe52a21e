#include "parallel/gradient_sum.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {
namespace {
bool HasMemory(Tensor x) { return x.data != nullptr; }
}  // namespace

GradientSum::GradientSum(ParamStore& params, Ops* ops, CommLane& lane, const Mesh& mesh, int64_t num_leaves,
                         const GradientSumOptions& options)
    : params_(params),
      ops_(ops),
      lane_(lane),
      mesh_(mesh),
      num_leaves_(num_leaves),
      leaves_(LeavesOf(mesh, num_leaves)),
      options_(options),
      rank_plan_(PlanRank(num_leaves, mesh.replicate.size, mesh.replicate.index)),
      owner_plan_(PlanOwner(num_leaves, mesh.replicate.size, mesh.sequence.size)) {
  const DType wide = params.wide();
  CAROUSEL_CHECK_MSG(!options.bf16_wire || (!options.ordered && wide == DType::kF32),
                     "gradients cross ranks in bf16 only if they are f32 and summed unordered");
  const DType wire = options.bf16_wire ? DType::kBF16 : wide;
  if (F() > 1) turn_plan_ = PlanTurns(num_leaves, mesh.replicate.size, mesh.replicate.index, F());
  num_buffers_ = !options.ordered ? 1 : F() > 1 ? turn_plan_.num_buffers : rank_plan_.num_buffers;
  num_nodes_ = options.ordered ? static_cast<int64_t>(rank_plan_.nodes.size()) : 1;
  // A plain sum in the gradients' own dtype is a reduce-scatter, which needs no staging.
  if (options.ordered || options.bf16_wire) {
    if (F() > 1) over_shard_.emplace(lane, mesh.shard, 1, wide, wire);
    if (mesh.replicas.size > 1) {
      over_replicas_.emplace(lane, mesh.replicas, options.ordered ? owner_plan_.num_rounds : 1, wide, wire);
    }
  }
  summed_ = lane.MakeMark();
}

void GradientSum::Bind(Arena& arena) {
  const DType wide = params_.wide();
  segments_.clear();
  for (int group = 0; group < params_.num_groups(); ++group) {
    for (int segment = 0; segment < ParamStore::kNumSegments; ++segment) {
      const int64_t padded_size = params_.segment(group, segment).padded_size;
      if (padded_size == 0) {
        params_.SetGradBuffer(group, segment, Tensor(nullptr, wide, {0}));
        params_.SetShardGrad(group, segment, Tensor(nullptr, wide, {0}));
        continue;
      }
      Segment s;
      s.group = group;
      s.segment = segment;
      s.padded_size = padded_size;
      for (int64_t j = 0; j < num_buffers_; ++j) {
        s.buffers.push_back(arena.Persistent("gradients", wide, {DivExact(padded_size, F())}));
      }
      if (F() == 1) params_.SetGradBuffer(group, segment, s.buffers[0]);
      segments_.push_back(std::move(s));
    }
  }
  if (F() > 1) BindPlaces(arena);
  BindExchanges(arena);
  states_.assign(static_cast<size_t>(params_.num_groups()), State::kReady);
  turn_ = -1;
}

void GradientSum::BindPlaces(Arena& arena) {
  // While one group's gradients are exchanged the next group's are computed.
  constexpr size_t kNumPlaces = 3;
  if (places_.empty()) {
    places_.resize(kNumPlaces);
    for (Place& place : places_) place.exchanged = lane_.MakeMark();
  }
  int64_t largest[2][ParamStore::kNumSegments] = {};  // [group 0 or not][segment]
  for (const Segment& s : segments_) {
    int64_t& size = largest[s.group == 0 ? 0 : 1][s.segment];
    size = std::max(size, s.padded_size);
  }
  for (size_t i = 0; i < places_.size(); ++i) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      places_[i].segments[s] = arena.Persistent("gradients", params_.wide(), {largest[i == 0 ? 0 : 1][s]});
    }
    places_[i].group = -1;
  }
}

void GradientSum::BindExchanges(Arena& arena) {
  int64_t largest = 0;
  for (const Segment& s : segments_) largest = std::max(largest, s.padded_size);
  int64_t staging = 0;
  if (over_shard_) {
    over_shard_->Plan(DivExact(largest, F()), options_.staging_bytes);
    staging = over_shard_->staging_elems();
  }
  if (over_replicas_) {
    over_replicas_->Plan(DivExact(largest, F() * mesh_.replicas.size), options_.staging_bytes);
    staging = std::max(staging, over_replicas_->staging_elems());
  }
  if (staging == 0) return;
  // The lane's work is in order: both exchanges use the same memory.
  const Tensor memory =
      arena.Persistent("comm", options_.bf16_wire ? DType::kBF16 : params_.wide(), {staging});
  if (over_shard_) over_shard_->SetStaging(memory);
  if (over_replicas_) over_replicas_->SetStaging(memory);
}

void GradientSum::FindOwnRuns() {
  for (Segment& s : segments_) {
    s.own_of_shard.clear();
    s.own_of_replicate.clear();
    s.own_of_sequence.clear();
  }
  for (const Param& param : params_.params()) {
    const auto found = std::find_if(segments_.begin(), segments_.end(), [&](const Segment& s) {
      return s.group == param.group && s.segment == param.segment;
    });
    const Run run = {.begin = param.offset, .count = param.local_elems};
    if (!param.reduces_over(MeshAxis::kShard)) found->own_of_shard.push_back(run);
    if (!param.reduces_over(MeshAxis::kReplicate)) found->own_of_replicate.push_back(run);
    if (!param.reduces_over(MeshAxis::kSequence)) found->own_of_sequence.push_back(run);
  }
}

void GradientSum::BeginMicroBatch(int64_t leaf) {
  CAROUSEL_CHECK_MSG(!segments_.empty(), "BeginMicroBatch before Bind");
  const bool more = turn_ + 1 < leaves_.count;
  CAROUSEL_CHECK_MSG(more && leaf == leaves_.at(turn_ + 1),
                     "micro-batch " + std::to_string(leaf) + " out of order; " +
                         (more ? "this rank's next is " + std::to_string(leaves_.at(turn_ + 1))
                               : std::string("this rank has had its last one of the step")));
  CheckGroupsReady();
  ++turn_;
  if (turn_ == 0) {
    FindOwnRuns();
    if (F() == 1) stack_.emplace(num_leaves_, leaves_.first);
  }
  if (F() == 1 && options_.ordered) {
    leaf_buffer_ = static_cast<size_t>(stack_->depth());
    num_merges_ = static_cast<size_t>(stack_->PushLeaf());
  }
  for (const Segment& s : segments_) states_[static_cast<size_t>(s.group)] = State::kWaited;
}

void GradientSum::BeginGradients(int group) {
  if (group < 0 || group >= params_.num_groups()) return;
  State& state = states_[static_cast<size_t>(group)];
  Place* place = nullptr;
  for (const Segment& s : segments_) {
    if (s.group != group) continue;
    CAROUSEL_CHECK_MSG(state == State::kWaited, "BeginGradients for group " + std::to_string(group) +
                                                    " twice in one micro-batch, or outside of one");
    if (F() > 1 && place == nullptr) place = &PlaceFor(group);
    const Tensor buffer = F() > 1 ? Leaf(*place, s) : s.buffers[options_.ordered ? leaf_buffer_ : 0];
    params_.SetGradBuffer(group, s.segment, buffer);
    const bool adds_to_others = F() == 1 && !options_.ordered && turn_ > 0;
    if (HasMemory(buffer) && !adds_to_others) params_.BeginGradients(*ops_, group, s.segment);
  }
  if (state == State::kWaited) state = State::kBegun;
}

// The free place used longest ago, once what it had is exchanged.
GradientSum::Place& GradientSum::PlaceFor(int group) {
  Place* found = nullptr;
  for (size_t i = 0; i < places_.size(); ++i) {
    Place& place = places_[i];
    if ((group == 0) != (i == 0) || place.group >= 0) continue;
    if (found == nullptr || place.used < found->used) found = &place;
  }
  CAROUSEL_CHECK_MSG(found != nullptr, "the gradients of group " + std::to_string(group) +
                                           " begin while those of two others are not ready");
  lane_.WaitInCompute(found->exchanged);
  found->group = group;
  found->used = ++clock_;
  return *found;
}

Tensor GradientSum::Leaf(const Place& place, const Segment& s) const {
  return place.segments[s.segment].Rows(0, s.padded_size);
}

void GradientSum::GradReady(int group) {
  if (group < 0 || group >= params_.num_groups()) return;
  State& state = states_[static_cast<size_t>(group)];
  const bool last = turn_ + 1 == leaves_.count;
  bool has_parameters = false;
  for (const Segment& s : segments_) has_parameters |= s.group == group;
  if (!has_parameters) return;
  CAROUSEL_CHECK_MSG(state != State::kReady,
                     "GradReady twice for group " + std::to_string(group) + " in one micro-batch");
  CAROUSEL_CHECK_MSG(state == State::kBegun,
                     "GradReady without BeginGradients for group " + std::to_string(group));
  state = State::kReady;
  if (F() > 1) {
    const auto place =
        std::find_if(places_.begin(), places_.end(), [group](const Place& p) { return p.group == group; });
    for (const Segment& s : segments_) {
      if (s.group == group) AddToDigest(s, Leaf(*place, s), turn_);
    }
    lane_.FollowCompute();
    for (const Segment& s : segments_) {
      if (s.group == group) SumTurn(s, Leaf(*place, s));
    }
    lane_.SetHere(place->exchanged);
    place->group = -1;
  } else {
    for (const Segment& s : segments_) {
      if (s.group != group) continue;
      for (size_t merge = 0; merge < num_merges_; ++merge) {
        const size_t right = leaf_buffer_ - merge;
        Add(ops_, s.buffers[right - 1], s.buffers[right - 1], s.buffers[right]);
      }
    }
    for (const Segment& s : segments_) {
      for (int64_t node = 0; last && s.group == group && node < num_nodes_; ++node) {
        AddToDigest(s, s.buffers[static_cast<size_t>(node)], node);
      }
    }
    if (last && mesh_.replicas.size > 1) lane_.FollowCompute();
  }
  if (!last || mesh_.replicas.size == 1) return;
  for (const Segment& s : segments_) {
    if (s.group == group) SumOverReplicas(s);
  }
}

// `part`: which of several tensors of this segment.
void GradientSum::AddToDigest(const Segment& s, Tensor gradients, int64_t part) {
  if (!digest_.defined() || !HasMemory(gradients)) return;
  const auto place =
      static_cast<uint64_t>((s.group * ParamStore::kNumSegments + s.segment) * (num_leaves_ + 1) + part);
  ops_->Digest({.digest = digest_, .x = gradients, .salt = place << 40});
}

// Adds this rank's part of a turn's micro-batches. `gradients` may be overwritten.
void GradientSum::SumTurn(const Segment& s, Tensor gradients) {
  const int64_t mine = mesh_.shard.index;
  ClearOthers(gradients, 0, F(), s.own_of_shard, [mine](int64_t rank) { return rank != mine; });
  const bool fresh = turn_ == 0;
  if (options_.bf16_wire) {
    over_shard_->Run({gradients}, [&](const GradientExchange::Piece& piece) {
      SumInRankOrder(s.buffers[0].Rows(piece.begin, piece.count), fresh, piece);
    });
    return;
  }
  if (!options_.ordered) {
    const Tensor part = gradients.Rows(mine * (s.padded_size / F()), s.padded_size / F());
    lane_.of(mesh_.shard).ReduceScatterSum(part, gradients);
    if (!fresh) {
      Add(lane_.ops(), s.buffers[0], s.buffers[0], part);
    } else if (HasMemory(part)) {
      lane_.ops()->Cast({.y = s.buffers[0], .x = part});
    }
    return;
  }
  over_shard_->Run({gradients}, [&](const GradientExchange::Piece& piece) {
    const auto value = [&](TurnReducePlan::Operand operand) {
      return operand.received ? piece.From(operand.index)
                              : s.buffers[static_cast<size_t>(operand.index)].Rows(piece.begin, piece.count);
    };
    for (const TurnReducePlan::Step& step : turn_plan_.turns[static_cast<size_t>(turn_)]) {
      const Tensor into = value(step.into), left = value(step.left);
      if (!step.copy) {
        Add(lane_.ops(), into, left, value(step.right));
      } else if (HasMemory(into)) {
        lane_.ops()->Cast({.y = into, .x = left});
      }
    }
  });
}

// The sum of this rank's shard replaces the shard's place in buffer 0, whose value has been sent by then.
void GradientSum::SumOverReplicas(const Segment& s) {
  const Axis& replicas = mesh_.replicas;
  const int64_t S = mesh_.sequence.size, part = DivExact(s.padded_size, F());
  const int64_t shard = DivExact(part, replicas.size);
  std::vector<Tensor> nodes(s.buffers.begin(), s.buffers.begin() + num_nodes_);
  for (const Tensor& node : nodes) {
    const int64_t first = mesh_.shard.index * part;
    ClearOthers(node, first, replicas.size, s.own_of_replicate,
                [&](int64_t rank) { return rank / S != mesh_.replicate.index; });
    ClearOthers(node, first, replicas.size, s.own_of_sequence,
                [&](int64_t rank) { return rank % S != mesh_.sequence.index; });
  }
  const Tensor sum = s.buffers[0].Rows(replicas.index * shard, shard);
  if (options_.bf16_wire) {
    over_replicas_->Run(nodes, [&](const GradientExchange::Piece& piece) {
      SumInRankOrder(sum.Rows(piece.begin, piece.count), /*fresh=*/true, piece);
    });
  } else if (!options_.ordered) {
    lane_.of(replicas).ReduceScatterSum(sum, s.buffers[0]);
  } else {
    over_replicas_->Run(nodes, [&](const GradientExchange::Piece& piece) {
      for (size_t j = 0; j < owner_plan_.additions.size(); ++j) {
        const OwnerReducePlan::Addition& addition = owner_plan_.additions[j];
        const bool last = j + 1 == owner_plan_.additions.size();
        const Tensor into = piece.From(addition.into.rank, addition.into.round);
        Add(lane_.ops(), last ? sum.Rows(piece.begin, piece.count) : into, into,
            piece.From(addition.from.rank, addition.from.round));
      }
    });
  }
}

// sum += what every rank sent, in rank order; `fresh`: = .
void GradientSum::SumInRankOrder(Tensor sum, bool fresh, const GradientExchange::Piece& piece) {
  if (fresh) Add(lane_.ops(), sum, piece.From(0), piece.From(1));
  for (int64_t rank = fresh ? 2 : 0; rank < piece.num_ranks; ++rank) {
    Add(lane_.ops(), sum, sum, piece.From(rank));
  }
}

void GradientSum::ClearOthers(Tensor buffer, int64_t first, int64_t num_ranks, const std::vector<Run>& runs,
                              const std::function<bool(int64_t rank)>& is_other) {
  if (!HasMemory(buffer)) return;
  const int64_t block = buffer.num_elems() / num_ranks;
  for (const Run& run : runs) {
    for (int64_t rank = 0; rank < num_ranks; ++rank) {
      if (!is_other(rank)) continue;
      const int64_t begin = std::max(run.begin - first, rank * block);
      const int64_t end = std::min(run.begin + run.count - first, (rank + 1) * block);
      if (begin < end) lane_.ops()->Fill({.y = buffer.Rows(begin, end - begin), .value = 0});
    }
  }
}

void GradientSum::Finish() {
  CAROUSEL_CHECK_MSG(turn_ + 1 == leaves_.count, "FinishStep before the last micro-batch of this rank");
  CheckGroupsReady();
  lane_.SetHere(summed_);
  lane_.WaitInCompute(summed_);
  const int64_t n = mesh_.replicas.size;
  for (const Segment& s : segments_) {
    const int64_t shard = DivExact(s.padded_size, F() * n);
    params_.SetShardGrad(s.group, s.segment, s.buffers[0].Rows(mesh_.replicas.index * shard, shard));
  }
  turn_ = -1;
}

void GradientSum::Add(Ops* ops, Tensor sum, Tensor left, Tensor right) {
  if (HasMemory(sum)) ops->Add({.y = sum, .a = left, .b = right});
}

void GradientSum::CheckGroupsReady() const {
  for (size_t group = 0; group < states_.size(); ++group) {
    CAROUSEL_CHECK_MSG(states_[group] == State::kReady, "no GradReady for group " + std::to_string(group));
  }
}
}  // namespace carousel
