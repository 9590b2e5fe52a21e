#include "core/base/exact_sum.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace carousel {

void ExactSum::Add(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, 8);
  const int exponent = static_cast<int>((bits >> 52) & 0x7ff);
  if (exponent == 0x7ff) {
    ++num_non_finite;
    return;
  }
  uint64_t mantissa = bits & ((uint64_t{1} << 52) - 1);
  if (exponent != 0) mantissa |= uint64_t{1} << 52;
  // value = +-mantissa * 2^(max(exponent,1) - 1075); position counts from the lowest limb's unit 2^-1088.
  const int position = (exponent == 0 ? 1 : exponent) - 1075 + 1088;
  const int limb = position / 32, shift = position % 32;
  const int64_t sign = (bits >> 63) ? -1 : 1;
  const unsigned __int128 wide = static_cast<unsigned __int128>(mantissa) << shift;  // < 2^85: three limbs
  limbs[limb] += sign * static_cast<int64_t>(static_cast<uint64_t>(wide) & 0xffffffffu);
  limbs[limb + 1] += sign * static_cast<int64_t>(static_cast<uint64_t>(wide >> 32) & 0xffffffffu);
  limbs[limb + 2] += sign * static_cast<int64_t>(static_cast<uint64_t>(wide >> 64));
}

void ExactSum::Add(const ExactSum& other) {
  for (int j = 0; j < kNumLimbs; ++j) limbs[j] += other.limbs[j];
  num_non_finite += other.num_non_finite;
}

void ExactSum::Normalize() {
  for (int j = 0; j + 1 < kNumLimbs; ++j) {
    const int64_t carry = limbs[j] >> 32;  // arithmetic shift: floor
    limbs[j] -= carry * (int64_t{1} << 32);
    limbs[j + 1] += carry;
  }
}

double ExactSum::ToDouble() const {
  if (num_non_finite > 0) return std::numeric_limits<double>::quiet_NaN();
  ExactSum s = *this;
  s.Normalize();
  const bool negative = s.limbs[kNumLimbs - 1] < 0;
  if (negative) {  // work on the magnitude, so that the leading limbs are small and nothing cancels
    for (int64_t& limb : s.limbs) limb = -limb;
    s.Normalize();
  }
  double result = 0;
  for (int j = kNumLimbs - 1; j >= 0; --j) {
    if (s.limbs[j] != 0) result += std::ldexp(static_cast<double>(s.limbs[j]), 32 * j - 1088);
  }
  return negative ? -result : result;
}
}  // namespace carousel
