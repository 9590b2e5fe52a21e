#include "core/model/param_store.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {

ParamStore::ParamStore(DType compute, int64_t num_shards, int64_t shard_index)
    : ParamStore(compute, {.num_shards = num_shards, .shard_index = shard_index}) {}

ParamStore::ParamStore(DType compute, const ParamPartition& partition)
    : compute_(compute), partition_(partition) {
  const ParamPartition& p = partition;
  CAROUSEL_CHECK(p.num_shards >= 1 && p.shard_index >= 0 && p.shard_index < p.num_shards);
  CAROUSEL_CHECK(p.weight_shards >= 1 && p.num_shards % p.weight_shards == 0);
  CAROUSEL_CHECK(p.tensor_size >= 1 && p.tensor_index >= 0 && p.tensor_index < p.tensor_size);
}

int ParamStore::Register(Param param) {
  CAROUSEL_CHECK_MSG(param.shape.size() == 1 || param.shape.size() == 2,
                     param.name + ": rank must be 1 or 2");
  CAROUSEL_CHECK_GE(param.group, 0);
  param.num_elems = 1;
  for (const int64_t d : param.shape) {
    CAROUSEL_CHECK_MSG(d > 0 && !__builtin_mul_overflow(param.num_elems, d, &param.num_elems),
                       param.name + ": every dim must be positive");
  }
  CAROUSEL_CHECK_MSG(
      ParamPart::CanSplit(param.shape, param.tensor, tensor_size()),
      param.name + " does not divide over " + std::to_string(tensor_size()) + " ranks of the tensor axis");
  param.part = ParamPart::Of(param.shape, param.tensor, tensor_size(), tensor_index());
  param.local_elems = param.part.local_elems();
  // Every axis that splits tokens leaves each rank a part of every gradient.
  for (const MeshAxis axis :
       {MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence, MeshAxis::kTensor}) {
    const bool tensor = axis == MeshAxis::kTensor;
    const Placement value = tensor ? param.tensor : Replicated();
    const Placement gradient = GradientPlacement(value, tensor ? param.tensor_activation : kByTokens);
    if (MustReduce(value, gradient)) param.reduce_axes |= 1u << static_cast<int>(axis);
  }
  const int index = static_cast<int>(params_.size());
  CAROUSEL_CHECK_MSG(index_of_name_.emplace(param.name, index).second, param.name + " is registered twice");

  if (param.group >= num_groups()) groups_.resize(static_cast<size_t>(param.group) + 1);
  param.segment = param.shape.size() == 2 ? kMatrix : kVector;
  Segment& segment = group_at(param.group).segments[param.segment];
  CAROUSEL_CHECK_MSG(!segment.weights.defined(), param.name + ": registered after Bind");
  param.offset = segment.size;
  segment.size += param.local_elems;
  segment.padded_size = RoundUp(segment.size, num_shards() * kSquaredNormBlock);
  // The last run goes to the end of the padding.
  std::vector<std::pair<int64_t, int64_t>>& runs = segment.unwritten;
  if (runs.empty()) runs.emplace_back(0, 0);
  if (param.written) {
    runs.back().second = param.offset;
    if (runs.back().first == runs.back().second) runs.pop_back();
    runs.emplace_back(segment.size, 0);
  }
  runs.back().second = segment.padded_size;
  params_.push_back(std::move(param));
  return index;
}

int ParamStore::Find(const std::string& name) const {
  const auto found = index_of_name_.find(name);
  return found == index_of_name_.end() ? -1 : found->second;
}

int64_t ParamStore::num_parameters() const {
  int64_t n = 0;
  for (const Param& param : params_) n += param.num_elems;
  return n;
}

void ParamStore::Bind(Arena& arena, bool train) {
  for (Group& group : groups_) {
    for (int s = 0; s < kNumSegments; ++s) {
      Segment& segment = group.segments[s];
      segment.weight_shard = arena.Persistent("weights", s == kMatrix ? compute_ : wide(),
                                              {segment.padded_size / partition_.weight_shards});
      if (partition_.weight_shards == 1) segment.weights = segment.weight_shard;
      if (!train) continue;
      const int64_t shard_size = segment.shard_size(num_shards());
      segment.master = arena.Persistent("optimizer", wide(), {shard_size});
      segment.m = arena.Persistent("optimizer", wide(), {shard_size});
      segment.v = arena.Persistent("optimizer", wide(), {shard_size});
    }
  }
}

Tensor ParamStore::View(int first, int count, bool gradient) const {
  CAROUSEL_CHECK(first >= 0 && count >= 1 && first + count <= static_cast<int>(params_.size()));
  const Param& head = param(first);
  int64_t rows = 0, num_elems = 0;
  for (int i = first; i < first + count; ++i) {
    const Param& p = param(i);
    const bool adjacent =
        p.group == head.group && p.segment == head.segment && p.offset == head.offset + num_elems;
    const std::vector<int64_t>&shape = p.part.local_shape, &first_shape = head.part.local_shape;
    CAROUSEL_CHECK_MSG(adjacent && (head.segment == kVector || shape[1] == first_shape[1]),
                       p.name + " does not continue " + head.name + " in memory");
    rows += shape[0];
    num_elems += p.local_elems;
  }
  const Segment& segment = group_at(head.group).segments[head.segment];
  const Tensor flat = gradient ? segment.grads : segment.weights;
  CAROUSEL_CHECK_MSG(flat.defined(),
                     head.name + (gradient ? ": no gradient buffer is set" : " is not bound"));
  const Tensor piece = flat.Rows(head.offset, num_elems);
  return head.segment == kMatrix ? piece.Reshape({rows, head.part.local_shape[1]}) : piece;
}

Tensor ParamStore::Weight(int index) const { return View(index, 1, false); }
Tensor ParamStore::Grad(int index) const { return View(index, 1, true); }
Tensor ParamStore::FusedWeight(int first, int count) const { return View(first, count, false); }
Tensor ParamStore::FusedGrad(int first, int count) const { return View(first, count, true); }

void ParamStore::BindGradients(Arena& arena) {
  CAROUSEL_CHECK_EQ(num_shards(), int64_t{1});
  for (int g = 0; g < num_groups(); ++g) {
    for (int s = 0; s < kNumSegments; ++s) {
      const Tensor grads = arena.Persistent("gradients", wide(), {segment(g, s).padded_size});
      SetGradBuffer(g, s, grads);
      SetShardGrad(g, s, grads);
    }
  }
}

void ParamStore::ZeroGradients(Ops& ops) {
  KeepGradients();
  for (const Group& group : groups_) {
    for (const Segment& segment : group.segments) ops.Fill({.y = segment.grads, .value = 0});
  }
}

void ParamStore::BeginGradients(Ops& ops, int group, int segment) {
  Segment& s = group_at(group).segments[segment];
  CAROUSEL_CHECK_MSG(s.grads.defined(), "no gradient buffer is set");
  s.begun = true;
  for (const auto& [begin, end] : s.unwritten) {
    if (begin < end) ops.Fill({.y = s.grads.Rows(begin, end - begin), .value = 0});
  }
}

void ParamStore::KeepGradients() {
  for (Group& group : groups_) {
    for (Segment& segment : group.segments) segment.begun = false;
  }
}

bool ParamStore::AddsToGradient(int index) const {
  const Param& p = param(index);
  CAROUSEL_CHECK_MSG(p.written, p.name + ": its gradient is added to");
  return !segment(p.group, p.segment).begun;
}

void ParamStore::SetWeightBuffer(int group, int segment, Tensor weights) {
  CAROUSEL_CHECK_GT(partition_.weight_shards, int64_t{1});
  Segment& s = group_at(group).segments[segment];
  if (weights.defined()) {
    CAROUSEL_CHECK_SHAPE(weights, {s.padded_size});
    CAROUSEL_CHECK(weights.dtype == s.weight_shard.dtype);
  }
  s.weights = weights;
}

void ParamStore::SetGradBuffer(int group, int segment, Tensor grads) {
  Segment& s = group_at(group).segments[segment];
  CAROUSEL_CHECK_SHAPE(grads, {s.padded_size});
  CAROUSEL_CHECK(grads.dtype == wide());
  s.grads = grads;
  s.begun = false;
}

void ParamStore::SetShardGrad(int group, int segment, Tensor grad) {
  CAROUSEL_CHECK_SHAPE(grad, {this->segment(group, segment).shard_size(num_shards())});
  CAROUSEL_CHECK(grad.dtype == wide());
  group_at(group).shard_grads[segment] = grad;
}

Tensor ParamStore::ShardGrad(int group, int segment) const {
  const Tensor grad = group_at(group).shard_grads[segment];
  CAROUSEL_CHECK_MSG(grad.defined(), "no shard gradient is set");
  return grad;
}

std::vector<ParamStore::ShardPiece> ParamStore::ShardPieces(int group, int segment) const {
  const int64_t shard_size = this->segment(group, segment).shard_size(num_shards());
  const int64_t shard_begin = shard_index() * shard_size, shard_end = shard_begin + shard_size;
  std::vector<ShardPiece> pieces;
  for (int i = 0; i < static_cast<int>(params_.size()); ++i) {
    const Param& p = param(i);
    if (p.group != group || p.segment != segment) continue;
    const int64_t begin = std::max(p.offset, shard_begin);
    const int64_t end = std::min(p.offset + p.local_elems, shard_end);
    if (begin >= end) continue;
    pieces.push_back({.param = i,
                      .param_begin = begin - p.offset,
                      .shard_begin = begin - shard_begin,
                      .count = end - begin});
  }
  return pieces;
}

Tensor ParamStore::WeightShard(int group, int segment) const {
  const Segment& s = this->segment(group, segment);
  const int64_t shard_size = s.shard_size(num_shards());
  return s.weight_shard.Rows(shard_index() % partition_.shards_per_weight_shard() * shard_size, shard_size);
}

namespace {

// to = values from `begin` on, rounded to `wide` and from there to its dtype: the compute dtype is rounded
// from the wide master, as every later update does.
void CopyConverted(Device& device, Tensor to, const std::vector<double>& values, int64_t begin, DType wide) {
  std::vector<std::byte> bytes(static_cast<size_t>(to.num_bytes()));
  DispatchFloat(wide, [&]<class W>() {
    DispatchFloat(to.dtype, [&]<class T>() {
      T* out = reinterpret_cast<T*>(bytes.data());
      for (int64_t j = 0; j < to.num_elems(); ++j) {
        const Wide<W> master = static_cast<Wide<W>>(values[static_cast<size_t>(begin + j)]);
        out[j] = static_cast<T>(static_cast<Wide<T>>(master));
      }
    });
  });
  device.CopyToDevice(to.data, bytes.data(), to.num_bytes());
}
}  // namespace

void ParamStore::Initialize(Device& device, uint64_t seed) {
  constexpr int64_t kChunk = 1 << 18;  // elements in flight on the host
  ++weights_version_;
  for (int g = 0; g < num_groups(); ++g) {
    for (int s = 0; s < kNumSegments; ++s) {
      const Segment& segment = this->segment(g, s);
      CAROUSEL_CHECK_MSG(segment.weight_shard.defined(), "Initialize before Bind");
      // Padding stays zero.
      for (const Tensor& t : {segment.weight_shard, segment.master, segment.m, segment.v}) {
        if (t.defined()) device.ops().Fill({.y = t, .value = 0});
      }
    }
  }
  device.Synchronize();
  std::vector<double> values(static_cast<size_t>(kChunk));
  for (const Param& p : params_) {
    const Segment& segment = this->segment(p.group, p.segment);
    // The parts of the flat segment that this rank keeps weights and optimizer state for.
    const int64_t shard_size = segment.shard_size(num_shards()), shard_begin = shard_index() * shard_size;
    const int64_t kept = segment.weight_shard.num_elems();
    const int64_t kept_begin = partition_.weight_shard_index() * kept;
    const int64_t from = std::max(p.offset, kept_begin);
    const int64_t to = std::min(p.offset + p.local_elems, kept_begin + kept);
    for (int64_t begin = from; begin < to; begin += kChunk) {
      const int64_t count = std::min(kChunk, to - begin);
      ForEachLocalRun(p.part, begin - p.offset, count, [&](int64_t elem, int64_t local, int64_t n) {
        InitialValues(p, seed, elem, n, values.data() + (local + p.offset - begin));
      });
      CopyConverted(device, segment.weight_shard.Rows(begin - kept_begin, count), values, 0, wide());
      if (!segment.master.defined()) continue;
      const int64_t first = std::max(begin, shard_begin);
      const int64_t last = std::min(begin + count, shard_begin + shard_size);
      if (first >= last) continue;
      CopyConverted(device, segment.master.Rows(first - shard_begin, last - first), values, first - begin,
                    wide());
    }
  }
}

void ParamStore::CastMasterToWeights(Ops& ops) {
  for (int g = 0; g < num_groups(); ++g) {
    for (int s = 0; s < kNumSegments; ++s) {
      if (segment(g, s).size == 0) continue;
      ops.Cast({.y = WeightShard(g, s), .x = segment(g, s).master});
    }
  }
}
}  // namespace carousel
