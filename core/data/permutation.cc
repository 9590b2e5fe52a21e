#include "core/data/permutation.h"

#include "core/base/check.h"
#include "core/base/random.h"

namespace carousel {
namespace {
constexpr int kRounds = 6;
}

Permutation::Permutation(int64_t size, uint64_t key) : size_(size), key_(key) {
  CAROUSEL_CHECK(size >= 1 && size <= int64_t{1} << 62);
  while ((uint64_t{1} << (2 * half_bits_)) < static_cast<uint64_t>(size)) ++half_bits_;
}

uint64_t Permutation::Encrypt(uint64_t x) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = x >> half_bits_, right = x & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t next = left ^ (RandomUint64(key_, round, right) & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

int64_t Permutation::operator()(int64_t index) const {
  CAROUSEL_CHECK(index >= 0 && index < size_);
  uint64_t x = static_cast<uint64_t>(index);
  do {
    x = Encrypt(x);
  } while (x >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(x);
}
}  // namespace carousel
