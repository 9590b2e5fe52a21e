// exp, log, log1p, tanh, sigmoid and the normal distribution for one float or a VecF: T is float or VecF. No
// branches, so loops over floats vectorise too. Reductions and polynomials: S. L. Moshier, Cephes library,
// single precision (expf, logf, tanhf). Largest errors seen over all floats of the stated range:
// tests/simd_math_test.cc. NaN gives NaN.
#pragma once
#include "kernels/cpu/simd/vec.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by a polynomial. Adding 1.5 * 2^23 rounds x / ln 2 to n, which stands
// in the low bits of the sum.
template <class T>
struct ReducedExp {
  [[gnu::always_inline]] explicit ReducedExp(T x) {
    const T nearest = Nearest(x);
    Expand((x - nearest * 0.693359375f) - nearest * -2.12194440e-4f);
  }
  // e^(x + low) for a low much smaller than x, to more bits than x + low has.
  [[gnu::always_inline]] ReducedExp(T x, T low) {
    const T nearest = Nearest(x + low);
    Expand(((x - nearest * 0.693359375f) - nearest * -2.12194440e-4f) + low);
  }
  // e^r 2^n, in two steps, because 2^n alone may be outside of the exponent range
  [[gnu::always_inline]] T Scaled() const {
    const auto half = n >> 1;
    return exp_r * AsFloat((half + 127) << 23) * AsFloat((n - half + 127) << 23);
  }
  T exp_r;
  decltype(AsInt(T{})) n;

 private:
  [[gnu::always_inline]] T Nearest(T x) {
    const T shifted = x * 1.44269504088896341f + 12582912.0f;
    n = AsInt(shifted) - 0x4b400000;
    return shifted - 12582912.0f;
  }
  [[gnu::always_inline]] void Expand(T r) {
    T p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    exp_r = p * (r * r) + r + 1.0f;
  }
};

// e^x for every x: 0 below -104, infinity above 88.73; subnormal results are right.
template <class T>
CAROUSEL_INLINE T Exp(T x) {
  // Max and Min return their second argument if one is NaN
  x = Max(T{} - 104.0f, x);
  x = Min(T{} + 89.0f, x);
  return ReducedExp<T>(x).Scaled();
}
// e^x for -87 <= x <= 88 or NaN.
template <class T>
CAROUSEL_INLINE T ExpInRange(T x) {
  const ReducedExp<T> e(x);
  return e.exp_r * AsFloat((e.n + 127) << 23);
}

// ln x. -infinity at 0, NaN below.
template <class T>
CAROUSEL_INLINE T Log(T x) {
  const T scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
  const T scale_exponent = x < 1.17549435e-38f ? T{} - 23.0f : T{};
  // scaled = m 2^e with m in [sqrt(1/2), sqrt(2))
  const auto bits = AsInt(scaled);
  const auto exponent = (bits - 0x3f3504f3) >> 23;
  const T f = AsFloat(bits - (exponent << 23)) - 1.0f;
  const T e = ToFloat(exponent) + scale_exponent;
  T p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  // f - f^2 / 2 + f^3 p + e ln 2, the small part of ln 2 first. No sum of two products: a compiler with fused
  // multiply-adds has one way to compute it.
  T y = e * -2.12194440e-4f + f;
  y = f * f * (f * p - 0.5f) + y;
  y = e * 0.693359375f + y;
  const T infinity = T{} + __builtin_inff();
  y = x < infinity ? y : x;  // infinity and NaN
  y = x == 0.0f ? -infinity : y;
  return x < 0.0f ? T{} + __builtin_nanf("") : y;
}

// ln(1 + x) for x >= 0, also where 1 + x rounds.
template <class T>
CAROUSEL_INLINE T Log1p(T x) {
  const T u = x + 1.0f;
  const T infinity = T{} + __builtin_inff();
  const T lost = x < infinity ? (x - (u - 1.0f)) / u : T{};
  return Log(u) + lost;
}

// 1 / (1 + e^-x). Below -80, where it is less than 2e-35, it stays at that value.
template <class T>
CAROUSEL_INLINE T Sigmoid(T x) {
  x = Max(T{} - 80.0f, x);
  x = Min(T{} + 80.0f, x);
  return Reciprocal(ExpInRange(-x) + 1.0f);
}

// ln sigmoid(x) = min(x, 0) - ln(1 + e^-|x|)
template <class T>
CAROUSEL_INLINE T LogSigmoid(T x) {
  const T magnitude = x < 0.0f ? -x : x;
  return (x < 0.0f ? x : x * 0.0f) - Log1p(Exp(-magnitude));
}

template <class T>
CAROUSEL_INLINE T Tanh(T x) {
  const T magnitude = x < 0.0f ? -x : x;
  const T z = x * x;
  T p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const T small = p * z * x + x;
  const T bounded = Min(T{} + 10.0f, magnitude);  // tanh(10) rounds to 1
  const T large = 1.0f - Reciprocal(ExpInRange(bounded + bounded) + 1.0f) * 2.0f;
  return magnitude < 0.625f ? small : (x < 0.0f ? -large : large);
}

// The distribution P(x) = (1 + erf(x / sqrt 2)) / 2 and the density p(x) = e^(-x^2 / 2) / sqrt(2 pi) of the
// standard normal. Below zero P keeps its relative precision until it underflows; it is 0 below -14.5.
//   P(-t) = e^(-t^2 / 2) R(t) for t >= 0;  P(t) = 1 - P(-t)
//   R(t) = s q(w), s = 2 / (t + 2), w = 1 - s; the polynomial q by Remez exchange, relative error 2.5e-8 up
//   to t = 14.5, exactly 1/2 at 0. R is flat in such a variable: Shepherd & Laframboise, Math. Comp. 36
//   (1981).
template <class T>
struct StandardNormal {
  [[gnu::always_inline]] explicit StandardNormal(T x) {
    const T t = Min(T{} + 14.5f, x < 0.0f ? -x : x);  // NaN stays
    // -t^2 / 2 as the exact square of t's upper 12 bits and the rest
    const T upper = AsFloat(AsInt(t) & ~0xfff);
    const T e = ReducedExp<T>(upper * upper * -0.5f, (t - upper) * (t + upper) * -0.5f).Scaled();
    const T s = Reciprocal(t * 0.5f + 1.0f);
    const T w = t * 0.5f * s;
    T p = w * -3.75375189e-02f + 1.95984080e-01f;
    p = p * w - 3.67586017e-01f;
    p = p * w + 3.26006979e-01f;
    p = p * w - 1.93475932e-01f;
    p = p * w + 8.62145275e-02f;
    p = p * w + 3.95173319e-02f;
    p = p * w + 4.41023856e-02f;
    p = p * w - 9.58624408e-02f;
    p = p * w - 2.97882676e-01f;
    p = p * w + 0.5f;
    const T below = p * s * e;
    distribution = x < 0.0f ? below : 1.0f - below;
    density = e * 3.98942280e-1f;
  }
  T distribution;
  T density;
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
