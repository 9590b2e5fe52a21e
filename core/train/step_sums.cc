#include "core/train/step_sums.h"

#include <cstring>

namespace carousel {

namespace {
uint64_t DigestOf(const ExactSum& sum) {
  uint64_t digest = DigestTerm(ExactSum::kNumLimbs, static_cast<uint64_t>(sum.num_non_finite));
  for (uint64_t j = 0; j < ExactSum::kNumLimbs; ++j) {
    digest += DigestTerm(j, static_cast<uint64_t>(sum.limbs[j]));
  }
  return digest;
}
}  // namespace

void StepSums::Bind(Arena& arena, bool digests) {
  has_digests_ = digests;
  sums_ = arena.Persistent("reductions", DType::kI64, {2 * kExactSumElems + (digests ? 1 : 0)});
}

void StepSums::Clear(Ops& ops) const { ops.Fill({.y = sums_, .value = 0}); }

StepSums::Totals StepSums::Reduce(Device& device, const Axis& world, int64_t num_targets,
                                  const std::vector<int64_t>& contribution) const {
  struct {
    ExactSum loss, squared_norm;
  } host;
  static_assert(sizeof(host) == 2 * kExactSumElems * sizeof(int64_t));
  std::vector<int64_t> copy(static_cast<size_t>(sums_.num_elems()));
  device.CopyToHost(copy.data(), sums_.data, sums_.num_bytes());
  std::memcpy(static_cast<void*>(&host), copy.data(), sizeof(host));
  // Carried, so that the limbs of many ranks can be added without overflow.
  host.loss.Normalize();
  host.squared_norm.Normalize();
  const Digests mine = {.loss = DigestOf(host.loss),
                        .gradient = has_digests_ ? static_cast<uint64_t>(copy.back()) : 0,
                        .norm = DigestOf(host.squared_norm)};
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
                   .contributed = {},
                   .mine = mine};
  for (size_t i = kSums + 1; i < all.size(); i += 2) {
    totals.contributed.push_back(
        static_cast<int64_t>(static_cast<uint64_t>(all[i]) + (static_cast<uint64_t>(all[i + 1]) << 32)));
  }
  return totals;
}
}  // namespace carousel
