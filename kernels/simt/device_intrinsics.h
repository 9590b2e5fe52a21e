// CUDA's intrinsics that need no emulator, for device code compiled by the host compiler: same names, same
// results except that the fast forms (__expf, ...) are exact here. Part of kernels/cuda/device.h.
#pragma once
#include <algorithm>
#include <atomic>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// ---- floating point
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
// Rounded once, never fused with a neighbour: volatile keeps the host compiler from contracting.
inline float __fmul_rn(float x, float y) {
  volatile float r = x * y;
  return r;
}
inline float __fadd_rn(float x, float y) {
  volatile float r = x + y;
  return r;
}
inline float __fsub_rn(float x, float y) {
  volatile float r = x - y;
  return r;
}
inline float __fdiv_rn(float x, float y) {
  volatile float r = x / y;
  return r;
}
inline double __dmul_rn(double x, double y) {
  volatile double r = x * y;
  return r;
}
inline double __dadd_rn(double x, double y) {
  volatile double r = x + y;
  return r;
}
inline double __dsub_rn(double x, double y) {
  volatile double r = x - y;
  return r;
}
inline double __ddiv_rn(double x, double y) {
  volatile double r = x / y;
  return r;
}
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline float __frcp_rn(float x) { return __fdiv_rn(1.0f, x); }
inline double __drcp_rn(double x) { return __ddiv_rn(1.0, x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
// Round to nearest even of CUDA's conversions, which saturate where C++ leaves the result undefined.
inline int __float2int_rn(float x) {
  return x != x ? 0
                : static_cast<int>(
                      std::clamp(std::nearbyint(static_cast<double>(x)), -2147483648.0, 2147483647.0));
}
// NaN: 0 from float and INT_MIN from double, as the hardware's conversions.
inline int __double2int_rn(double x) {
  return x != x ? INT_MIN : static_cast<int>(std::clamp(std::nearbyint(x), -2147483648.0, 2147483647.0));
}

// ---- bits
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<uint64_t>(x) * static_cast<uint64_t>(y) >> 32);
}
inline int __mulhi(int x, int y) {
  return static_cast<int>(static_cast<int64_t>(x) * static_cast<int64_t>(y) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  __extension__ typedef unsigned __int128 Wide;
  return static_cast<unsigned long long>(static_cast<Wide>(x) * static_cast<Wide>(y) >> 64);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i) & 7u;  // nvcc masks the bit that would replicate a sign
    r |= static_cast<unsigned>(both >> (8 * s) & 255u) << (8 * i);
  }
  return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) << (shift & 31u) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) >> (shift & 31u));
}

// ---- min and max, which CUDA declares outside std
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}

// ---- memory: cache hints say nothing here
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <class T>
void __stwt(T* p, std::type_identity_t<T> v) {
  *p = v;
}
inline void __nanosleep(unsigned) {}

// ---- atomics: relaxed, of integers (floating-point atomics would make results depend on the order of
// threads)
namespace carousel::emulator {
template <class T, class F>
T AtomicUpdate(T* p, F f) {  // returns the old value
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA has atomics of 4 and 8 byte integers");
  std::atomic_ref<T> a(*p);
  T old = a.load(std::memory_order_relaxed);
  while (!a.compare_exchange_weak(old, f(old), std::memory_order_relaxed)) {
  }
  return old;
}
}  // namespace carousel::emulator
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  using U = std::make_unsigned_t<T>;
  return carousel::emulator::AtomicUpdate(
      p, [v](T old) { return static_cast<T>(static_cast<U>(old) + static_cast<U>(v)); });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> v) {
  using U = std::make_unsigned_t<T>;
  return carousel::emulator::AtomicUpdate(
      p, [v](T old) { return static_cast<T>(static_cast<U>(old) - static_cast<U>(v)); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return carousel::emulator::AtomicUpdate(p, [v](T old) { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return carousel::emulator::AtomicUpdate(p, [v](T old) { return old < v ? old : v; });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return carousel::emulator::AtomicUpdate(p, [v](T old) { return static_cast<T>(old & v); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return carousel::emulator::AtomicUpdate(p, [v](T old) { return static_cast<T>(old | v); });
}
template <class T>
T atomicXor(T* p, std::type_identity_t<T> v) {
  return carousel::emulator::AtomicUpdate(p, [v](T old) { return static_cast<T>(old ^ v); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return carousel::emulator::AtomicUpdate(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  std::atomic_ref<T>(*p).compare_exchange_strong(expected, v);
  return expected;
}
