// A pseudo-random permutation of [0, size) that is computed, not stored: a Feistel network of 6 rounds on the
// smallest even number of bits that holds size, with cycle-walking (Black and Rogaway 2002: an image outside
// [0, size) is encrypted again until it falls inside; fewer than 4 times on average).
#pragma once
#include <cstdint>

namespace carousel {

class Permutation {
 public:
  // REQUIRES: 1 <= size <= 2^62. The same (size, key) gives the same permutation everywhere.
  Permutation(int64_t size, uint64_t key);
  // REQUIRES: 0 <= index < size.
  int64_t operator()(int64_t index) const;
  int64_t size() const { return size_; }

 private:
  uint64_t Encrypt(uint64_t x) const;
  int64_t size_;
  uint64_t key_;
  int half_bits_ = 0;
};
}  // namespace carousel
