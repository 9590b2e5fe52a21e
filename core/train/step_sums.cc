#include "core/train/step_sums.h"

#include <cstring>
#include <vector>

namespace carousel {
namespace {
constexpr int64_t kNumElems = 2 * kExactSumElems + 1;
}

void StepSums::Bind(Arena& arena) { sums_ = arena.Persistent("reductions", DType::kI64, {kNumElems}); }

void StepSums::Clear(Ops& ops) const { ops.Fill({.y = sums_, .value = 0}); }

StepSums::Totals StepSums::Reduce(Device& device, const Axis& world, int64_t num_targets) const {
  struct {
    ExactSum loss, squared_norm;
    int64_t num_targets;
  } host;
  static_assert(sizeof(host) == kNumElems * sizeof(int64_t));
  device.CopyToHost(&host, sums_.data, sizeof(host));
  // Carried, so that the limbs of many ranks can be added without overflow.
  host.loss.Normalize();
  host.squared_norm.Normalize();
  host.num_targets = num_targets;
  if (world.size > 1) world.host()->AllReduceSum(Tensor(&host, DType::kI64, {kNumElems}));
  return {.loss = host.loss.ToDouble(),
          .squared_norm = host.squared_norm.ToDouble(),
          .num_targets = host.num_targets};
}
}  // namespace carousel
