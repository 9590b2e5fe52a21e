// Sigmoid, SiLU and the exact GELU in the wide type of a compute type T: for bf16 with the fast exponential
// and division (a few units in the last place of f32, far below the rounding of the result), otherwise with
// the accurate ones. Finite for every finite argument.
#pragma once
#include "core/base/dtype.h"
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

template <class T>
__device__ inline Wide<T> Exp(Wide<T> x) {
  if constexpr (sizeof(T) == 2) {
    return gpu::exp_fast(x);
  } else {
    return std::exp(x);
  }
}
// a / b for b in [1, 2^64]
template <class T>
__device__ inline Wide<T> Divide(Wide<T> a, Wide<T> b) {
  if constexpr (sizeof(T) == 2) {
    return __fdividef(a, b);
  } else {
    return a / b;
  }
}

template <class T>
__device__ inline Wide<T> Sigmoid(Wide<T> x) {
  const Wide<T> e = Exp<T>(-std::abs(x));  // at most 1
  return Divide<T>(x < 0 ? e : 1, 1 + e);
}
// silu(x) = x sigmoid(x), silu'(x) = s (1 + x (1 - s)), s = sigmoid(x)
template <class T>
__device__ inline Wide<T> SiluSlope(Wide<T> x, Wide<T> s) {
  return s * (1 + x * (1 - s));
}

// Distribution P(x) and density p(x) of the standard normal: gelu(x) = x P(x), gelu'(x) = P(x) + x p(x)
// (Hendrycks & Gimpel 2016, arXiv:1606.08415).
template <class W>
struct Normal {
  W distribution, density;
};
__device__ inline Normal<double> NormalOf(double x) {
  return {std::erfc(x * -0.70710678118654752440) / 2, std::exp(-x * x / 2) * 0.39894228040143267794};
}
// In float, exp and erfc would multiply the rounding of their argument by x^2. The part that the rounding
// took away is known (fma) and goes back to first order: exp(-(h + l) / 2) = exp(-h / 2) (1 - l / 2), and
// erfc(t + e) = erfc(t) - e 2 / sqrt(pi) exp(-t^2). All is constant in float beyond +-16.
__device__ inline Normal<float> NormalOf(float unbounded) {
  const float x = fminf(fmaxf(unbounded, -16.0f), 16.0f);
  constexpr float kScale = 0.70710678118654752440f, kScaleRest = 1.21016175e-8f;  // 1 / sqrt(2)
  const float h = x * x, l = fmaf(x, x, -h);
  const float density = std::exp(-0.5f * h) * fmaf(-0.5f, l, 1.0f) * 0.39894228040143267794f;
  const float t = -x * kScale;
  const float e = fmaf(-x, kScale, -t) - x * kScaleRest;
  // half of 2 / sqrt(pi) exp(-x^2 / 2) = sqrt(2) density
  return {fmaf(-1.41421356237309504880f * e, density, 0.5f * std::erfc(t)), density};
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
