// Sums over the rows of an accumulator tile, for the dot products of the mLSTM scans.
#pragma once
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Adds v[i] over the 8 lanes that differ in lane / 4, in a fixed order. A lane is left with the sum of index
// lane / 4 * kCount / 8.
template <int kCount>
__device__ __forceinline__ float SumOverRows(float (&v)[kCount], int lane) {
  static_assert(kCount == 8 || kCount == 4);
#pragma unroll
  for (int step = 0; step < (kCount == 8 ? 3 : 2); ++step) {
    const int half = kCount >> (step + 1), mask = 16 >> step;
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(~0u, give, mask);
    }
  }
  if (kCount == 4) v[0] += __shfl_xor_sync(~0u, v[0], 4);
  return v[0];
}

}  // namespace carousel::CAROUSEL_DEVICE_NS
