#include "parallel/mesh_builder.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/int_math.h"

namespace carousel {
namespace {
// The multiple of `unit` that is nearest to value, at least one unit.
int64_t NearestMultiple(int64_t value, int64_t unit) {
  const int64_t below = value / unit * unit;
  const int64_t nearest = value - below <= unit - (value - below) ? below : below + unit;
  return std::max(nearest, unit);
}

// The divisor of n that is nearest to value (the smaller of two).
int64_t NearestDivisor(int64_t n, int64_t value) {
  int64_t best = 1;
  for (const int64_t d : WorldSizesThatFit(n)) {
    if (std::abs(d - value) < std::abs(best - value)) best = d;
  }
  return best;
}
}  // namespace

std::vector<int64_t> WorldSizesThatFit(int64_t micro_batches) {
  std::vector<int64_t> small, large;
  for (int64_t d = 1; d * d <= micro_batches; ++d) {
    if (micro_batches % d != 0) continue;
    small.push_back(d);
    if (d * d != micro_batches) large.push_back(micro_batches / d);
  }
  small.insert(small.end(), large.rbegin(), large.rend());
  return small;
}

int64_t MeshSizes::of(MeshAxis axis) const {
  switch (axis) {
    case MeshAxis::kPipe:
      return pipe;
    case MeshAxis::kReplicate:
      return replicate;
    case MeshAxis::kShard:
      return shard;
    case MeshAxis::kSequence:
      return sequence;
    case MeshAxis::kTensor:
      return tensor;
  }
  return 0;
}

int64_t MeshPlace::of(MeshAxis axis) const {
  return MeshSizes{
      .pipe = pipe, .replicate = replicate, .shard = shard, .sequence = sequence, .tensor = tensor}
      .of(axis);
}

MeshPlace PlaceOf(const MeshSizes& sizes, int64_t rank) {
  CAROUSEL_CHECK(rank >= 0 && rank < sizes.world());
  MeshPlace place;
  const auto take = [&rank](int64_t size) {
    const int64_t index = rank % size;
    rank /= size;
    return index;
  };
  place.tensor = take(sizes.tensor);
  place.sequence = take(sizes.sequence);
  place.shard = take(sizes.shard);
  place.replicate = take(sizes.replicate);
  place.pipe = take(sizes.pipe);
  return place;
}

int64_t RankOf(const MeshSizes& s, const MeshPlace& p) {
  return (((p.pipe * s.replicate + p.replicate) * s.shard + p.shard) * s.sequence + p.sequence) * s.tensor +
         p.tensor;
}

MeshSizes ResolveSizes(const MeshSpec& spec) {
  MeshSizes sizes = spec.sizes;
  if (sizes.replicate == 0) {
    sizes.replicate = DivExact(spec.world, sizes.pipe * sizes.shard * sizes.sequence * sizes.tensor);
  }
  CAROUSEL_CHECK_EQ(sizes.world(), spec.world);
  return sizes;
}

std::unique_ptr<BuiltMesh> BuildMesh(const MeshSizes& sizes, Communicator& world) {
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(world.size()), sizes.world());
  auto built = std::make_unique<BuiltMesh>();
  Mesh& mesh = built->mesh_;
  const MeshPlace place = PlaceOf(sizes, world.rank());
  mesh.world = {
      .size = world.size(), .index = world.rank(), .communicator = world.size() > 1 ? &world : nullptr};
  // The ranks of an axis are those whose places differ in nothing else: equal numbers of the first of them.
  const auto make = [&](Axis* axis, const char* name, int64_t size, int64_t index, const MeshPlace& first) {
    *axis = {.size = size, .index = index};
    if (size == 1) return;
    if (size == sizes.world()) {
      axis->communicator = &world;
      return;
    }
    built->communicators_.push_back(world.Split(static_cast<int>(RankOf(sizes, first))));
    axis->communicator = built->communicators_.back().get();
    axis->communicator->set_name(name);
    CAROUSEL_CHECK_EQ(static_cast<int64_t>(axis->communicator->size()), size);
    CAROUSEL_CHECK_EQ(static_cast<int64_t>(axis->communicator->rank()), index);
  };
  const auto without = [&place](std::initializer_list<int64_t MeshPlace::*> members) {
    MeshPlace first = place;
    for (const auto member : members) first.*member = 0;
    return first;
  };
  make(&mesh.pipe, "pipe", sizes.pipe, place.pipe, without({&MeshPlace::pipe}));
  make(&mesh.replicas, "replicas", sizes.replicate * sizes.sequence,
       place.replicate * sizes.sequence + place.sequence,
       without({&MeshPlace::replicate, &MeshPlace::sequence}));
  make(&mesh.replicate, "replicate", sizes.replicate, place.replicate, without({&MeshPlace::replicate}));
  make(&mesh.shard, "shard", sizes.shard, place.shard, without({&MeshPlace::shard}));
  make(&mesh.sequence, "sequence", sizes.sequence, place.sequence, without({&MeshPlace::sequence}));
  make(&mesh.tensor, "tensor", sizes.tensor, place.tensor, without({&MeshPlace::tensor}));
  return built;
}

std::vector<std::string> MeshViolations(const MeshSpec& spec) {
  std::vector<std::string> violations;
  if (spec.world < 1) {
    violations.push_back(absl::StrCat("world=", spec.world, ": at least one rank is needed"));
  }
  const int64_t data = spec.sizes.replicate;
  if (data < 0) {
    violations.push_back(
        absl::StrCat("parallel.data=", data, " is negative; set 0 (all ranks) or ", spec.world));
  } else if (data != 0 && spec.world >= 1 && data != spec.world) {
    violations.push_back(absl::StrCat("parallel.data=", data, " but ", spec.world,
                                      spec.world == 1 ? " rank was" : " ranks were", " started; start ", data,
                                      " (mpirun -np ", data, ") or set parallel.data to ", spec.world,
                                      " or 0 (all ranks)"));
  }
  if (spec.global_batch < 1) {
    violations.push_back(absl::StrCat("train.global_batch=", spec.global_batch, " must be at least 1"));
  }
  if (spec.micro_batch < 1) {
    violations.push_back(absl::StrCat("train.micro_batch=", spec.micro_batch, " must be at least 1"));
  }
  if (spec.global_batch < 1 || spec.micro_batch < 1) return violations;
  if (spec.global_batch % spec.micro_batch != 0) {
    violations.push_back(absl::StrCat(
        "train.micro_batch=", spec.micro_batch, " does not divide train.global_batch=", spec.global_batch,
        "; set train.micro_batch to ", NearestDivisor(spec.global_batch, spec.micro_batch),
        " or train.global_batch to ", NearestMultiple(spec.global_batch, spec.micro_batch)));
    return violations;
  }
  const int64_t micro_batches = spec.global_batch / spec.micro_batch;
  if (spec.world >= 1 && micro_batches % spec.world != 0) {
    std::string fix = absl::StrCat(
        "the numbers of ranks that fit are ", absl::StrJoin(WorldSizesThatFit(micro_batches), ", "),
        "; or set train.global_batch to ", NearestMultiple(spec.global_batch, spec.micro_batch * spec.world));
    // A smaller micro-batch also makes more of them.
    if (spec.global_batch % spec.world == 0) {
      const int64_t per_rank = spec.global_batch / spec.world;
      int64_t micro_batch = std::min(spec.micro_batch, per_rank);
      while (per_rank % micro_batch != 0) --micro_batch;
      absl::StrAppend(&fix, "; or set train.micro_batch to ", micro_batch,
                      " (which changes how sums are rounded)");
    }
    violations.push_back(absl::StrCat(spec.world, " ranks cannot share the ", micro_batches,
                                      " micro-batches of a step (train.global_batch=", spec.global_batch,
                                      " / train.micro_batch=", spec.micro_batch, ") evenly; ", fix));
  }
  return violations;
}

absl::Status ValidateMesh(const MeshSpec& spec) {
  const std::vector<std::string> violations = MeshViolations(spec);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
}

absl::StatusOr<std::unique_ptr<BuiltMesh>> BuildMesh(const MeshSpec& spec, Communicator& world) {
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(world.size()), spec.world);
  if (absl::Status status = ValidateMesh(spec); !status.ok()) return status;
  return BuildMesh(ResolveSizes(spec), world);
}
}  // namespace carousel
