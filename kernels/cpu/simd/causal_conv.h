// The causal depthwise convolution on ranges of rows, vectors running over channels. Formulas: core/ops.h.
// T is the compute type: float, or uint16_t holding bf16. A row n = b * num_tokens + t; tasks may cut the
// rows anywhere, results do not depend on where (but for the order of the sums of dweight and dbias).
#pragma once
#include <cstdint>

#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

template <class T>
struct CausalConvRows {
  const T* x;
  const float* weight;   // (K, C): transposed from the op's (C, K)
  const float* bias;     // (C), may be null
  const uint8_t* reset;  // (N), may be null
  const float* initial;  // (B, K-1, C), may be null
  int64_t num_tokens, C, K;
  int64_t x_stride;
  bool silu;
};
template <class T>
struct CausalConvForwardRows {
  CausalConvRows<T> in;
  T* y;
  int64_t y_stride;
};
template <class T>
struct CausalConvBackwardRows {
  CausalConvRows<T> in;
  T* dx;
  float* dinitial;  // (B, K-1, C), may be null
  const T* dy;
  const float* dlast;  // (B, K-1, C), may be null
  int64_t dx_stride, dy_stride;
  int64_t ring_rows;  // a power of two, at least K-1
  bool accumulate_dx;
};

template <class T>
struct CausalConvKernels {  // causal_conv.cc. Rows [begin, end).
  // to (K, C) = the transpose of weight (C, K).
  void (*transpose)(float* to, const T* weight, int64_t C, int64_t K);
  void (*forward)(const CausalConvForwardRows<T>&, int64_t begin, int64_t end);
  // dx of these rows, and dinitial of sequences that begin in them. Writes this range's sums over rows:
  // dweight (K, C), dbias (C). ring: ring_rows * C floats of
  // scratch.
  void (*backward)(const CausalConvBackwardRows<T>&, int64_t begin, int64_t end, float* dweight, float* dbias,
                   float* ring);
  // dinitial of sequence b, and nothing else. dx is not used.
  void (*initial_gradient)(const CausalConvBackwardRows<T>&, int64_t b, float* ring);
};
}  // namespace carousel::cpu

CAROUSEL_DECLARE_SIMD(CausalConvKernels<float>, GetCausalConvKernelsF32)
CAROUSEL_DECLARE_SIMD(CausalConvKernels<uint16_t>, GetCausalConvKernelsBf16)
#if defined(__x86_64__)
namespace carousel::cpu::simd_tiles {
const CausalConvKernels<uint16_t>& GetCausalConvKernelsBf16();
}
#endif
