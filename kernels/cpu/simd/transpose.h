// Transposes of f32 matrices in registers, and the row sums made from them.
#pragma once
#include "kernels/cpu/simd/vec.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

// At distance d, rows r and r + d exchange the lanes that differ in bit d; after all distances kLanes x
// kLanes lanes are transposed.
template <int kDistance>
CAROUSEL_INLINE void ExchangeLanes(VecF* row) {
  VecI low{}, high{};
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = (lane & kDistance) ? kLanes + (lane ^ kDistance) : lane;
    high[lane] = (lane & kDistance) ? kLanes + lane : (lane ^ kDistance);
  }
  for (int r = 0; r < kLanes; ++r) {
    if (r & kDistance) continue;
    const VecF a = row[r], b = row[r + kDistance];
    row[r] = __builtin_shuffle(a, b, low);
    row[r + kDistance] = __builtin_shuffle(a, b, high);
  }
  if constexpr (kDistance > 1) ExchangeLanes<kDistance / 2>(row);
}
CAROUSEL_INLINE void TransposeLanes(VecF* row) { ExchangeLanes<kLanes / 2>(row); }

// to (cols, rows) = the transpose of X (rows, cols) in f32 or bf16, both contiguous. rows and cols are
// multiples of kLanes.
template <class E>
static void Transpose(float* to, const E* X, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    for (int64_t j = 0; j < cols; j += kLanes) {
      VecF row[kLanes];
      for (int r = 0; r < kLanes; ++r) row[r] = Load(X + (i + r) * cols + j);
      TransposeLanes(row);
      for (int r = 0; r < kLanes; ++r) Store(to + (j + r) * rows + i, row[r]);
    }
  }
}

// sums[i] = sum of the kLanes values of row i of `partial` (n, kLanes), as a balanced tree. n is a multiple
// of kLanes.
static inline void SumRows(float* sums, const float* partial, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    VecF row[kLanes];
    for (int r = 0; r < kLanes; ++r) row[r] = Load(partial + (i + r) * kLanes);
    TransposeLanes(row);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int r = 0; r < width; ++r) row[r] += row[r + width];
    }
    Store(sums + i, row[0]);
  }
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
