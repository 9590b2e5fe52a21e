// Which instruction set the hot loops use. The files of kernels/cpu/simd/ are compiled once per level, each
// time into its own namespace, and one of the copies is chosen at run time, so that one binary is fast on
// every machine:
//
//   namespace carousel::cpu::CAROUSEL_SIMD_NS {   // in simd/foo.cc; the build defines the macro: simd_base,
//   ... const FooKernels& GetFooKernels() { static constexpr FooKernels kernels = {...}; return kernels; }
//   }
//   CAROUSEL_DECLARE_SIMD(FooKernels, GetFooKernels)                   // in simd/foo.h: declares every copy
//   const FooKernels& foo = CAROUSEL_PICK_SIMD(level, GetFooKernels);  // outside of simd/, inside
//   carousel::cpu
//
// Rules for files in simd/ (a function compiled with AVX-512 must never serve a caller without it): they
// include nothing but headers of simd/ and <cstdint>, <cstddef>; every function is in the per-level
// namespace; no standard library templates, no inline functions of other folders. bf16 travels as uint16_t,
// tensors as pointers and strides.
#pragma once

namespace carousel::cpu {

enum class SimdLevel {
  kBase,  // x86-64 (SSE2), or the compiler's default on other machines
  kV3,    // x86-64-v3: AVX2, FMA
  kV4,    // x86-64-v4: AVX-512 F, BW, CD, DQ, VL
};
// The highest level that this machine and this build support.
SimdLevel DetectSimdLevel();
const char* NameOf(SimdLevel level);
}  // namespace carousel::cpu

#if defined(__x86_64__)
#define CAROUSEL_DECLARE_SIMD(Type, Getter) \
  namespace carousel::cpu {                 \
  namespace simd_base {                     \
  const Type& Getter();                     \
  }                                         \
  namespace simd_v3 {                       \
  const Type& Getter();                     \
  }                                         \
  namespace simd_v4 {                       \
  const Type& Getter();                     \
  }                                         \
  }
#define CAROUSEL_PICK_SIMD(level, Getter)                                                 \
  ((level) == ::carousel::cpu::SimdLevel::kV4                                             \
       ? ::carousel::cpu::simd_v4::Getter()                                               \
       : ((level) == ::carousel::cpu::SimdLevel::kV3 ? ::carousel::cpu::simd_v3::Getter() \
                                                     : ::carousel::cpu::simd_base::Getter()))
#else
#define CAROUSEL_DECLARE_SIMD(Type, Getter) \
  namespace carousel::cpu::simd_base {      \
  const Type& Getter();                     \
  }
#define CAROUSEL_PICK_SIMD(level, Getter) (static_cast<void>(level), ::carousel::cpu::simd_base::Getter())
#endif
