// Philox4x32-10 (Salmon et al. 2011), the counter-based generator of core/base/random.h, on the device.
#pragma once
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// The 128 bits that RandomBits(key, 0, counter) gives.
__device__ inline void Philox(uint32_t (&words)[4], uint64_t counter, uint64_t key) {
  words[0] = static_cast<uint32_t>(counter);
  words[1] = static_cast<uint32_t>(counter >> 32);
  words[2] = words[3] = 0;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xd2511f53u} * words[0];
    const uint64_t product1 = uint64_t{0xcd9e8d57u} * words[2];
    words[0] = static_cast<uint32_t>(product1 >> 32) ^ words[1] ^ key0;
    words[1] = static_cast<uint32_t>(product1);
    words[2] = static_cast<uint32_t>(product0 >> 32) ^ words[3] ^ key1;
    words[3] = static_cast<uint32_t>(product0);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
