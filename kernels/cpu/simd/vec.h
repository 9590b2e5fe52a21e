// Vectors of floats as wide as the level's registers, through the compiler's vector extensions: + - * / and
// comparisons work lane by lane, `mask ? a : b` selects. Lanes never mix except in the Sum and Max functions,
// whose order is fixed. The compiler may fuse a product and a sum, and in a b + c d it may choose which
// product: a file whose values must not depend on their position in a range is compiled with
// -ffp-contract=off. Only for files of kernels/cpu/simd/ (see simd_level.h).
#pragma once
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#ifndef CAROUSEL_SIMD_NS
#error "include this only from files of kernels/cpu/simd/, which the build compiles once per instruction set"
#endif

namespace carousel::cpu::CAROUSEL_SIMD_NS {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float VecF __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecU16 __attribute__((vector_size(2 * kLanes)));
// The same types without an alignment requirement, for loads and stores.
typedef float UnalignedVecF __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t UnalignedVecU16 __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

#define CAROUSEL_INLINE [[gnu::always_inline]] static inline

// minus zero, not plus: x - 0 is x for every x, so it costs nothing
CAROUSEL_INLINE VecF Broadcast(float x) { return x - VecF{}; }

// x, out of the compiler's sight: a product that is not fused with what is added to it, wherever it stands
CAROUSEL_INLINE VecF Opaque(VecF x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+m"(x));
#endif
  return x;
}

// bit casts and constants, for one value and for a vector, so that simd_math.h serves both
CAROUSEL_INLINE VecI AsInt(VecF x) { return reinterpret_cast<VecI>(x); }
CAROUSEL_INLINE VecF AsFloat(VecI x) { return reinterpret_cast<VecF>(x); }
CAROUSEL_INLINE int32_t AsInt(float x) { return __builtin_bit_cast(int32_t, x); }
CAROUSEL_INLINE float AsFloat(int32_t x) { return __builtin_bit_cast(float, x); }
CAROUSEL_INLINE VecF ToFloat(VecI x) { return __builtin_convertvector(x, VecF); }
CAROUSEL_INLINE float ToFloat(int32_t x) { return static_cast<float>(x); }
CAROUSEL_INLINE VecF Max(VecF a, VecF b) { return a > b ? a : b; }
CAROUSEL_INLINE VecF Min(VecF a, VecF b) { return a < b ? a : b; }
CAROUSEL_INLINE float Max(float a, float b) { return a > b ? a : b; }
CAROUSEL_INLINE float Min(float a, float b) { return a < b ? a : b; }

// 1 / x to 1.5 ulp, for finite x of magnitude 2^-120 .. 2^120: an estimate of 14 bits and one step of
// Newton's method cost a fraction of a division. One float, and machines without the estimate, divide.
CAROUSEL_INLINE float Reciprocal(float x) { return 1.0f / x; }
CAROUSEL_INLINE VecF Reciprocal(VecF x) {
#if defined(__AVX512F__)
  // the masked form is the same instruction; GCC 12 warns of the other's undefined source (GCC bug 105593)
  const VecF estimate = reinterpret_cast<VecF>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(x)));
  return estimate + estimate * (1.0f - x * estimate);
#else
  return 1.0f / x;
#endif
}
CAROUSEL_INLINE VecF Sqrt(VecF x) {
  VecF y;
  for (int i = 0; i < kLanes; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
}

// bf16 <-> f32: to f32 is exact; to bf16 rounds to nearest even, NaN stays NaN. The instruction of AVX-512
// BF16 takes values below 2^-126 for zero.
CAROUSEL_INLINE float ToF32(uint16_t bits) { return __builtin_bit_cast(float, uint32_t{bits} << 16); }
CAROUSEL_INLINE float ToF32(float x) { return x; }
CAROUSEL_INLINE VecF ToF32(VecU16 bits) {
  return reinterpret_cast<VecF>(__builtin_convertvector(bits, VecU) << 16);
}
CAROUSEL_INLINE uint16_t ToBf16(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}
CAROUSEL_INLINE VecU16 ToBf16(VecF x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<VecU16>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const VecU u = reinterpret_cast<VecU>(x);
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU nan = (u >> 16) | 0x40u;
  return __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded, VecU16);
#endif
}
CAROUSEL_INLINE void StoreOne(float* p, float x) { *p = x; }
CAROUSEL_INLINE void StoreOne(uint16_t* p, float x) { *p = ToBf16(x); }

// kLanes values from memory of any alignment.
CAROUSEL_INLINE VecF Load(const float* p) { return *reinterpret_cast<const UnalignedVecF*>(p); }
CAROUSEL_INLINE VecF Load(const uint16_t* p) {
  return ToF32(static_cast<VecU16>(*reinterpret_cast<const UnalignedVecU16*>(p)));
}
CAROUSEL_INLINE void Store(float* p, VecF x) { *reinterpret_cast<UnalignedVecF*>(p) = x; }
CAROUSEL_INLINE void Store(uint16_t* p, VecF x) { *reinterpret_cast<UnalignedVecU16*>(p) = ToBf16(x); }

// The first `count` values (0 <= count <= kLanes); missing lanes read as `fill` and are not written.
template <class T>
CAROUSEL_INLINE VecF LoadPart(const T* p, int64_t count, float fill = 0.0f) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? ToF32(p[i]) : fill;
  return Load(lanes);
}
template <class T>
CAROUSEL_INLINE void StorePart(T* p, VecF x, int64_t count) {
  float lanes[kLanes];
  Store(lanes, x);
  for (int64_t i = 0; i < count; ++i) StoreOne(p + i, lanes[i]);
}

// Lane i of the result is lane i ^ kDistance of x.
template <int kDistance>
CAROUSEL_INLINE VecF SwapLanes(VecF x) {
  VecI from{};
  for (int i = 0; i < kLanes; ++i) from[i] = i ^ kDistance;
  return __builtin_shuffle(x, from);
}
// Sum and maximum over the lanes, as a balanced tree: halves first.
template <int kDistance = kLanes / 2>
CAROUSEL_INLINE float SumLanes(VecF x) {
  x += SwapLanes<kDistance>(x);
  if constexpr (kDistance > 1) {
    return SumLanes<kDistance / 2>(x);
  } else {
    return x[0];
  }
}
template <int kDistance = kLanes / 2>
CAROUSEL_INLINE float MaxLanes(VecF x) {
  x = Max(x, SwapLanes<kDistance>(x));
  if constexpr (kDistance > 1) {
    return MaxLanes<kDistance / 2>(x);
  } else {
    return x[0];
  }
}

// The same by count: FullVec{} stands for kLanes, so that one generic body serves full vectors and the rest.
struct FullVec {};
template <class T>
CAROUSEL_INLINE VecF Load(const T* p, FullVec, float = 0.0f) {
  return Load(p);
}
template <class T>
CAROUSEL_INLINE VecF Load(const T* p, int64_t count, float fill = 0.0f) {
  return LoadPart(p, count, fill);
}
template <class T>
CAROUSEL_INLINE void Store(T* p, VecF x, FullVec) {
  Store(p, x);
}
template <class T>
CAROUSEL_INLINE void Store(T* p, VecF x, int64_t count) {
  StorePart(p, x, count);
}

// Calls body(begin, FullVec{}) for every whole vector of [0, n), then body(begin, int64_t count) for a
// shorter rest.
template <class Body>
CAROUSEL_INLINE void ForEachVec(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, FullVec{});
  if (i < n) body(i, n - i);
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
