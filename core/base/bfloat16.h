// bfloat16 as a storage type: the upper half of an IEEE float. Arithmetic is done in float. Works on host and
// device.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define CAROUSEL_HOST_DEVICE __host__ __device__
#else
#define CAROUSEL_HOST_DEVICE
#endif

namespace carousel {

struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  // Round to nearest, ties to even; NaN stays NaN (quiet).
  CAROUSEL_HOST_DEVICE explicit bfloat16(float value) {
    uint32_t u;
    memcpy(&u, &value, 4);
    const uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);
    bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded >> 16);
  }
  CAROUSEL_HOST_DEVICE explicit operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &u, 4);
    return value;
  }
};
static_assert(sizeof(bfloat16) == 2);
}  // namespace carousel
