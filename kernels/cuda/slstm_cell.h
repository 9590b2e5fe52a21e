// slstm_cell.h - the elementwise part of the sLSTM cell: gates, states and their gradients, for one element
// of a head at one token. Formulas: core/ops.h (xLSTM, arXiv:2405.04517, section 2.2).
//
// Of the two stabilised gates i and f one is 1 and the other e^-|d|, d = raw^i - lambda; a fresh element has
// i = 1 and f = min(1, e^-d). Between the passes `gates` holds d, sigmoid(-raw^f), z and o in the places of
// wx. NaN comes through every function.
#pragma once
#include "core/ops.h"
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kSlstmGates = 4;

// What a token takes from its pre-activations without the state.
template <class W>
struct SlstmGates {
  W log_f, one_minus_f, z, o;  // log sigmoid(raw^f), sigmoid(-raw^f), tanh(raw^z), sigmoid(raw^o)
};

// The arithmetic of the generic kernels: each function to the last digits of W.
template <class W>
struct SlstmAccurateMath {
  __device__ static W Exp(W x) { return std::exp(x); }
  __device__ static W Reciprocal(W x) { return W(1) / x; }
  __device__ static SlstmGates<W> Gates(W f, W z, W o) {
    const W small_f = std::exp(-std::fabs(f)), small_o = std::exp(-std::fabs(o));
    return {(f < W(0) ? f : f * W(0)) - std::log1p(small_f), (f < W(0) ? W(1) : small_f) / (W(1) + small_f),
            std::tanh(z), (o < W(0) ? small_o : W(1)) / (W(1) + small_o)};
  }
};

// The arithmetic of the bf16 kernels: three exponentials and one reciprocal for all gates. Relative errors:
// (2 + |x|) 2^-23 in e^x, 2^-23 in 1/x; z to 2e-7 absolute, the logarithm to an ulp or two. Results below
// 2^-126 are 0.
struct SlstmFastMath {
  __device__ static float Exp(float x) { return gpu::exp2_fast(1.4426950408889634f * x); }
  __device__ static float Reciprocal(float x) { return gpu::rcp_fast(x); }
  // ln(1 + x) for 0 <= x <= 1; inverse = 1 / (1 + x). Polynomial: Cephes, logf.
  __device__ static float Log1pOfFraction(float x, float inverse) {
    const float u = 1.0f + x;
    const float lost = (x - (u - 1.0f)) * inverse;
    const bool halve = u > 1.41421356f;
    const float f = (halve ? 0.5f * u : u) - 1.0f, e = halve ? 1.0f : 0.0f;
    float p = 7.0376836292e-2f * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const float y = f * f * (f * p - 0.5f) + (e * -2.12194440e-4f + f);
    return (e * 0.693359375f + y) + lost;
  }
  __device__ static SlstmGates<float> Gates(float f, float z, float o) {
    const float small_f = Exp(-fabsf(f)), small_z = Exp(-2.0f * fabsf(z)), small_o = Exp(-fabsf(o));
    // the three denominators lie in [1, 2]
    const float sum_f = 1.0f + small_f, sum_z = 1.0f + small_z, sum_o = 1.0f + small_o;
    const float sum_fz = sum_f * sum_z, inverse = Reciprocal(sum_fz * sum_o);
    const float inverse_o = inverse * sum_fz, inverse_fz = inverse * sum_o;
    const float inverse_f = inverse_fz * sum_z, inverse_z = inverse_fz * sum_f;
    return {(f < 0.0f ? f : 0.0f) - Log1pOfFraction(small_f, inverse_f),
            f < 0.0f ? inverse_f : small_f * inverse_f, copysignf((1.0f - small_z) * inverse_z, z),
            o < 0.0f ? small_o * inverse_o : inverse_o};
  }
};

template <class W>
struct SlstmInputForget {
  W i, f;
};
template <class W, class Math>
__device__ inline SlstmInputForget<W> SlstmInputForgetOf(W d, bool fresh) {
  const W smaller = Math::Exp(-std::fabs(d));
  return {fresh || d >= W(0) ? W(1) : smaller, d < W(0) ? W(1) : smaller};
}

// One token of one element. raw: pre-activations i, f, z, o. State: c, n and m before the token, after it on
// return. kept: what the backward pass needs. Returns y.
template <class W, class Math>
__device__ inline W SlstmCellForward(const W (&raw)[kSlstmGates], W& c, W& n, W& m, W (&kept)[kSlstmGates]) {
  const SlstmGates<W> gates = Math::Gates(raw[1], raw[2], raw[3]);
  const W lambda = m + gates.log_f, d = raw[0] - lambda;
  const bool fresh = n == W(0);
  const auto [i, f] = SlstmInputForgetOf<W, Math>(d, fresh);
  c = f * c + i * gates.z;
  n = f * n + i;
  m = fresh || d >= W(0) ? raw[0] : lambda;
  kept[0] = d;
  kept[1] = gates.one_minus_f;
  kept[2] = gates.z;
  kept[3] = gates.o;
  return gates.o * c * Math::Reciprocal(n);
}

// The gradient of that token. c0, n0: before the token; c, n: after it. dy: of y, the recurrence's part
// included. dc, dn: gradients of c and n after the token, before it on return. draw: of the pre-activations.
template <class W, class Math>
__device__ inline void SlstmCellBackward(const W (&kept)[kSlstmGates], W c0, W n0, W c, W n, W dy, W& dc,
                                         W& dn, W (&draw)[kSlstmGates]) {
  const auto [i, f] = SlstmInputForgetOf<W, Math>(kept[0], n0 == W(0));
  const W one_minus_f = kept[1], z = kept[2], o = kept[3];
  const W inverse_n = Math::Reciprocal(n), y = o * c * inverse_n;
  dc += dy * o * inverse_n;
  dn -= dy * y * inverse_n;
  draw[0] = i * (z * dc + dn);
  draw[1] = f * (c0 * dc + n0 * dn) * one_minus_f;
  draw[2] = i * (W(1) - z * z) * dc;
  draw[3] = dy * (W(1) - o) * y;
  dc *= f;
  dn *= f;
}

// Clamps to [-limit, limit]; NaN stays.
template <class W>
__device__ inline W SlstmClip(W x, W limit) {
  return x > limit ? limit : x < -limit ? -limit : x;
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
