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

std::vector<std::string> MeshViolations(const MeshSpec& spec) {
  std::vector<std::string> violations;
  if (spec.world < 1) {
    violations.push_back(absl::StrCat("world=", spec.world, ": at least one rank is needed"));
  }
  if (spec.data < 0) {
    violations.push_back(
        absl::StrCat("parallel.data=", spec.data, " is negative; set 0 (all ranks) or ", spec.world));
  } else if (spec.data != 0 && spec.world >= 1 && spec.data != spec.world) {
    violations.push_back(absl::StrCat("parallel.data=", spec.data, " but ", spec.world,
                                      spec.world == 1 ? " rank was" : " ranks were", " started; start ",
                                      spec.data, " (mpirun -np ", spec.data, ") or set parallel.data to ",
                                      spec.world, " or 0 (all ranks)"));
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

absl::StatusOr<Mesh> BuildMesh(const MeshSpec& spec, Communicator& world) {
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(world.size()), spec.world);
  if (absl::Status status = ValidateMesh(spec); !status.ok()) return status;
  Mesh mesh;
  mesh.data = {.size = spec.world, .index = world.rank(), .communicator = spec.world > 1 ? &world : nullptr};
  return mesh;
}
}  // namespace carousel
