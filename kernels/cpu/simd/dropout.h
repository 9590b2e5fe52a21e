// Dropout on a range of elements. The draws are those of core/base/random.h: element e has word e % 4 of
// Philox4x32-10 (Salmon et al. 2011) with counter e / 4. T is float, or uint16_t holding bf16.
#pragma once
#include <cstdint>

#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

struct DropoutDraw {
  uint64_t key;
  uint32_t threshold;  // an element with a smaller word is dropped
  float scale;         // of the others
};
struct DropoutKernels {  // dropout.cc
  // y[i] = draw(first + i) ? x[i] * scale : 0 for i in [0, n). y may be x.
  void (*drop_f32)(float* y, const float* x, int64_t n, uint64_t first, const DropoutDraw& draw);
  void (*drop_bf16)(uint16_t* y, const uint16_t* x, int64_t n, uint64_t first, const DropoutDraw& draw);
};
}  // namespace carousel::cpu

CAROUSEL_DECLARE_SIMD(DropoutKernels, GetDropoutKernels)
