// conformance.h - the cases of the conformance program: every function of device.h on random operands.
//
// The emulation was written by the same hand as the PTX wrappers, so tests of kernels under the emulation
// cannot find a common misunderstanding. Running the same operands through both worlds can: one writes
// operands and results to a file, the other computes its own results from the stored operands and compares
// (conformance.cu).
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"

namespace carousel::conformance {

using Random = std::mt19937;

// How results may differ between the emulation and a GPU.
struct Tolerance {
  enum Kind { kExact, kFloat } kind = kExact;
  double relative = 0, absolute = 0;  // |a - b| <= absolute + relative * |a|; NaN equals NaN
};

struct Case {
  std::string name;
  int64_t operand_bytes, result_bytes;
  void (*fill)(Random& random, void* operands);
  // Enqueues the kernels. Both are device memory; results start as 0xff.
  cudaError_t (*run)(void* results, const void* operands);
  Tolerance tolerance = {};
  bool needs_hopper = false;  // compute capability 9.0 or later
  bool needs_wgmma = false;   // 9.x alone
  bool RunsOn(int capability) const {
    return (!needs_hopper || capability >= 9) && (!needs_wgmma || capability == 9);
  }
};

void AppendArithmeticCases(std::vector<Case>& cases);  // conformance_arithmetic.cu
void AppendWarpCases(std::vector<Case>& cases);        // conformance_warp.cu
void AppendHopperCases(std::vector<Case>& cases);      // conformance_hopper.cu
void AppendWgmmaCases(std::vector<Case>& cases);       // conformance_wgmma.cu

// ---- operands
template <int kNum>
void FillBits(Random& random, void* operands) {  // kNum 32-bit words
  for (int i = 0; i < kNum; ++i) static_cast<uint32_t*>(operands)[i] = static_cast<uint32_t>(random());
}
// Multiples of 2^-22 in [low, high).
inline float Uniform(Random& random, float low, float high) {
  return low + (high - low) * static_cast<float>(random() >> 10) * 0x1p-22f;
}
template <int kNum>
void FillUnit(Random& random, void* operands) {  // floats in [-1, 1)
  for (int i = 0; i < kNum; ++i) static_cast<float*>(operands)[i] = Uniform(random, -1, 1);
}
template <int kNum>
void FillUnitBf16(Random& random, void* operands) {
  for (int i = 0; i < kNum; ++i) static_cast<bfloat16*>(operands)[i] = bfloat16(Uniform(random, -1, 1));
}
}  // namespace carousel::conformance
