#include "core/model/param_store.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {

ParamStore::ParamStore(DType compute, int64_t num_shards, int64_t shard_index)
    : compute_(compute), num_shards_(num_shards), shard_index_(shard_index) {
  CAROUSEL_CHECK(num_shards >= 1 && shard_index >= 0 && shard_index < num_shards);
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
  const int index = static_cast<int>(params_.size());
  CAROUSEL_CHECK_MSG(index_of_name_.emplace(param.name, index).second, param.name + " is registered twice");

  if (param.group >= num_groups()) groups_.resize(static_cast<size_t>(param.group) + 1);
  param.segment = param.shape.size() == 2 ? kMatrix : kVector;
  Segment& segment = group_at(param.group).segments[param.segment];
  CAROUSEL_CHECK_MSG(!segment.weights.defined(), param.name + ": registered after Bind");
  param.offset = segment.size;
  segment.size += param.num_elems;
  segment.padded_size = RoundUp(segment.size, num_shards_ * kSquaredNormBlock);
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
      segment.weights = arena.Persistent("weights", s == kMatrix ? compute_ : wide(), {segment.padded_size});
      if (!train) continue;
      const int64_t shard_size = segment.shard_size(num_shards_);
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
    CAROUSEL_CHECK_MSG(adjacent && (head.segment == kVector || p.shape[1] == head.shape[1]),
                       p.name + " does not continue " + head.name + " in memory");
    rows += p.shape[0];
    num_elems += p.num_elems;
  }
  const Segment& segment = group_at(head.group).segments[head.segment];
  const Tensor flat = gradient ? segment.grads : segment.weights;
  CAROUSEL_CHECK_MSG(flat.defined(),
                     head.name + (gradient ? ": no gradient buffer is set" : " is not bound"));
  const Tensor piece = flat.Rows(head.offset, num_elems);
  return head.segment == kMatrix ? piece.Reshape({rows, head.shape[1]}) : piece;
}

Tensor ParamStore::Weight(int index) const { return View(index, 1, false); }
Tensor ParamStore::Grad(int index) const { return View(index, 1, true); }
Tensor ParamStore::FusedWeight(int first, int count) const { return View(first, count, false); }
Tensor ParamStore::FusedGrad(int first, int count) const { return View(first, count, true); }

void ParamStore::BindGradients(Arena& arena) {
  CAROUSEL_CHECK_EQ(num_shards_, int64_t{1});
  for (int g = 0; g < num_groups(); ++g) {
    for (int s = 0; s < kNumSegments; ++s) {
      const Tensor grads = arena.Persistent("gradients", wide(), {segment(g, s).padded_size});
      SetGradBuffer(g, s, grads);
      SetShardGrad(g, s, grads);
    }
  }
}

void ParamStore::ZeroGradients(Ops& ops) {
  for (const Group& group : groups_) {
    for (const Segment& segment : group.segments) ops.Fill({.y = segment.grads, .value = 0});
  }
}

void ParamStore::SetGradBuffer(int group, int segment, Tensor grads) {
  Segment& s = group_at(group).segments[segment];
  CAROUSEL_CHECK_SHAPE(grads, {s.padded_size});
  CAROUSEL_CHECK(grads.dtype == wide());
  s.grads = grads;
}

void ParamStore::SetShardGrad(int group, int segment, Tensor grad) {
  CAROUSEL_CHECK_SHAPE(grad, {this->segment(group, segment).shard_size(num_shards_)});
  CAROUSEL_CHECK(grad.dtype == wide());
  group_at(group).shard_grads[segment] = grad;
}

Tensor ParamStore::ShardGrad(int group, int segment) const {
  const Tensor grad = group_at(group).shard_grads[segment];
  CAROUSEL_CHECK_MSG(grad.defined(), "no shard gradient is set");
  return grad;
}

std::vector<ParamStore::ShardPiece> ParamStore::ShardPieces(int group, int segment) const {
  const int64_t shard_size = this->segment(group, segment).shard_size(num_shards_);
  const int64_t shard_begin = shard_index_ * shard_size, shard_end = shard_begin + shard_size;
  std::vector<ShardPiece> pieces;
  for (int i = 0; i < static_cast<int>(params_.size()); ++i) {
    const Param& p = param(i);
    if (p.group != group || p.segment != segment) continue;
    const int64_t begin = std::max(p.offset, shard_begin);
    const int64_t end = std::min(p.offset + p.num_elems, shard_end);
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
  const int64_t shard_size = s.shard_size(num_shards_);
  return s.weights.Rows(shard_index_ * shard_size, shard_size);
}

namespace {

// `count` values rounded to `wide` and from there to `dtype`.
std::vector<std::byte> Converted(const std::vector<double>& values, int64_t count, DType wide, DType dtype) {
  std::vector<std::byte> bytes(static_cast<size_t>(count * SizeOf(dtype)));
  DispatchFloat(wide, [&]<class W>() {
    DispatchFloat(dtype, [&]<class T>() {
      T* out = reinterpret_cast<T*>(bytes.data());
      for (int64_t j = 0; j < count; ++j) {
        // The compute dtype is rounded from the wide master, as every later update does.
        const Wide<W> master = static_cast<Wide<W>>(values[static_cast<size_t>(j)]);
        out[j] = static_cast<T>(static_cast<Wide<T>>(master));
      }
    });
  });
  return bytes;
}

Tensor Host(std::vector<std::byte>& bytes, DType dtype) {
  return Tensor(bytes.data(), dtype, {static_cast<int64_t>(bytes.size()) / SizeOf(dtype)});
}
}  // namespace

void ParamStore::Initialize(Device& device, uint64_t seed) {
  constexpr int64_t kChunk = 1 << 18;  // elements in flight on the host
  for (int g = 0; g < num_groups(); ++g) {
    for (int s = 0; s < kNumSegments; ++s) {
      const Segment& segment = this->segment(g, s);
      CAROUSEL_CHECK_MSG(segment.weights.defined(), "Initialize before Bind");
      // Padding stays zero.
      for (const Tensor& t : {segment.weights, segment.master, segment.m, segment.v}) {
        if (t.defined()) device.ops().Fill({.y = t, .value = 0});
      }
    }
  }
  device.Synchronize();
  std::vector<double> values(static_cast<size_t>(kChunk));
  for (const Param& p : params_) {
    const Segment& segment = this->segment(p.group, p.segment);
    const int64_t shard_size = segment.shard_size(num_shards_), shard_begin = shard_index_ * shard_size;
    for (int64_t begin = 0; begin < p.num_elems; begin += kChunk) {
      const int64_t count = std::min(kChunk, p.num_elems - begin);
      InitialValues(p, seed, begin, count, values.data());
      std::vector<std::byte> weights = Converted(values, count, wide(), segment.weights.dtype);
      const Tensor target = segment.weights.Rows(p.offset + begin, count);
      device.CopyToDevice(target.data, weights.data(), target.num_bytes());
      if (!segment.master.defined()) continue;
      // The part of [begin, begin + count) that this rank's shard holds.
      const int64_t flat = p.offset + begin;
      const int64_t from = std::max(flat, shard_begin);
      const int64_t to = std::min(flat + count, shard_begin + shard_size);
      if (from >= to) continue;
      std::vector<std::byte> master = Converted(values, count, wide(), wide());
      const Tensor part = Host(master, wide()).Rows(from - flat, to - from);
      device.CopyToDevice(segment.master.Rows(from - shard_begin, to - from).data, part.data,
                          part.num_bytes());
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
