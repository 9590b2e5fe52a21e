// Block-diagonal maps with blocks of at most kMaxSmallBlock rows and columns, vectors running over columns.
// Formulas: core/ops.h. T is the compute type: float, or uint16_t holding bf16.
//
// A block is taken to be square and of `padded` columns, a power of two; num_blocks * padded columns, rounded
// up to a multiple of 16, are `columns`. Term s of the sum for column c reads column c ^ s, which is in the
// same block, so that one vector of x, its lanes swapped, serves a vector of y. A packed matrix holds for
// every 16 columns c, for every s in [0, padded), the coefficients of column c ^ s in column c; 0 beside the
// blocks.
#pragma once
#include <cstdint>

#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

constexpr int64_t kMaxSmallBlock = 16;
constexpr int64_t kBlockLinearTileRows = 4;
struct BlockLinearShape {
  int64_t num_blocks, in, out;
  int64_t padded;   // 1, 2, 4, 8 or 16; at least in and out
  int64_t columns;  // num_blocks * padded, rounded up to a multiple of 16
};
template <class T>
struct BlockLinearForwardRows {
  T* y;  // one of y and y_wide is given, the other is null
  float* y_wide;
  const T* x;
  const float* packed;  // of W: padded * columns floats
  const float* bias;    // (columns), may be null
  BlockLinearShape shape;
  int64_t y_stride, x_stride;
};
template <class T>
struct BlockLinearBackwardRows {
  T* dx;
  const T* dy;
  const T* x;
  const float* packed;  // of the blocks of W transposed
  BlockLinearShape shape;
  int64_t dx_stride, dy_stride, x_stride;
  bool accumulate_dx;
};

template <class T>
struct BlockLinearKernels {  // block_linear.cc. Rows [begin, end). scratch: 3 * kBlockLinearTileRows *
                             // columns floats.
  void (*forward)(const BlockLinearForwardRows<T>&, int64_t begin, int64_t end, float* scratch);
  // dx, and this range's sums over rows: dweight, packed as W is, and dbias (columns).
  void (*backward)(const BlockLinearBackwardRows<T>&, int64_t begin, int64_t end, float* dweight,
                   float* dbias, float* scratch);
};
}  // namespace carousel::cpu

CAROUSEL_DECLARE_SIMD(BlockLinearKernels<float>, GetBlockLinearKernelsF32)
CAROUSEL_DECLARE_SIMD(BlockLinearKernels<uint16_t>, GetBlockLinearKernelsBf16)
#if defined(__x86_64__)
namespace carousel::cpu::simd_tiles {
const BlockLinearKernels<uint16_t>& GetBlockLinearKernelsBf16();
}
#endif
