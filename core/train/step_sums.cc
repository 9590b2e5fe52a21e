#include "core/train/step_sums.h"

#include <cstring>

namespace carousel {

void StepSums::Bind(Arena& arena) {
  sums_ = arena.Persistent("reductions", DType::kI64, {2 * kExactSumElems});
}

void StepSums::Clear(Ops& ops) const { ops.Fill({.y = sums_, .value = 0}); }

StepSums::Totals StepSums::Reduce(Device& device, const Axis& world, int64_t num_targets,
                                  const std::vector<int64_t>& contribution) const {
  struct {
    ExactSum loss, squared_norm;
  } host;
  static_assert(sizeof(host) == 2 * kExactSumElems * sizeof(int64_t));
  device.CopyToHost(&host, sums_.data, sizeof(host));
  // Carried, so that the limbs of many ranks can be added without overflow.
  host.loss.Normalize();
  host.squared_norm.Normalize();
  // The contribution goes in halves, whose sums do not overflow.
  constexpr size_t kSums = kNumTargetsElem;
  std::vector<int64_t> all(kSums + 1);
  std::memcpy(all.data(), &host, sizeof(host));
  all[kSums] = num_targets;
  for (const int64_t value : contribution) {
    all.push_back(value & 0xffffffff);
    all.push_back(static_cast<int64_t>(static_cast<uint64_t>(value) >> 32));
  }
  if (world.size > 1) {
    world.host()->AllReduceSum(Tensor(all.data(), DType::kI64, {static_cast<int64_t>(all.size())}));
  }
  std::memcpy(static_cast<void*>(&host), all.data(), sizeof(host));
  Totals totals = {.loss = host.loss.ToDouble(),
                   .squared_norm = host.squared_norm.ToDouble(),
                   .num_non_finite = host.loss.num_non_finite + host.squared_norm.num_non_finite,
                   .num_targets = all[kSums],
                   .contributed = {}};
  for (size_t i = kSums + 1; i < all.size(); i += 2) {
    totals.contributed.push_back(
        static_cast<int64_t>(static_cast<uint64_t>(all[i]) + (static_cast<uint64_t>(all[i + 1]) << 32)));
  }
  return totals;
}
}  // namespace carousel
