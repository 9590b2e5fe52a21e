// The causal convolution with any number of taps, for what causal_conv_taps.h has no instance for, and the
// state after the last token. One thread per element; taps are read from memory (caches). Backward keeps the
// gradient of the pre-activation in scratch memory: dp (N, C) wide.
#pragma once
#include "kernels/cuda/causal_conv_taps.h"
#include "kernels/cuda/partials.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// One sequence and one channel. Position -1 is the newest entry of the initial state.
template <class T>
struct ConvSequence {
  using W = Wide<T>;

  __device__ ConvSequence(const ConvInputs<T>& in, int64_t b, int64_t c)
      : x(in.x + b * in.T_ * in.x_stride + c),
        weight(in.weight + c * in.K),
        reset(in.reset == nullptr ? nullptr : in.reset + b * in.T_),
        initial(in.initial == nullptr ? nullptr : in.initial + b * (in.K - 1) * in.C + c),
        bias(in.bias == nullptr ? W{0} : in.bias[c]),
        x_stride(in.x_stride),
        C(in.C),
        K(in.K) {}
  __device__ bool Resets(int64_t t) const { return reset != nullptr && reset[t] != 0; }
  // Oldest position that the K taps of token t may read; at most K-1 before t.
  __device__ int64_t Start(int64_t t) const {
    int64_t s = t;
    while (s > t - (K - 1) && s > 1 - K && !(s >= 0 && Resets(s))) --s;
    return s;
  }
  __device__ W X(int64_t position) const {
    if (position >= 0) return gpu::convert<W>(x[position * x_stride]);
    return initial == nullptr ? W{0} : initial[(K - 1 + position) * C];
  }
  __device__ W Weight(int64_t age) const { return gpu::convert<W>(weight[K - 1 - age]); }
  __device__ W PreActivation(int64_t t) const {
    W p = bias;
    for (int64_t position = Start(t); position <= t; ++position) p += Weight(t - position) * X(position);
    return p;
  }

  const T* x;
  const T* weight;
  const uint8_t* reset;
  const W* initial;
  W bias;
  int64_t x_stride, C, K;
};

constexpr int kConvLoopThreads = 256;

// Element i of `rows` rows of C channels: which row and channel. False past the end.
__device__ inline bool ConvElement(int64_t rows, int64_t C, int64_t& row, int64_t& c) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kConvLoopThreads + threadIdx.x;
  row = i / C;
  c = i - row * C;
  return row < rows;
}

template <class T>
__global__ void __launch_bounds__(kConvLoopThreads) ConvForwardLoopKernel(ConvForwardRows<T> a) {
  using W = Wide<T>;
  int64_t n, c;
  if (!ConvElement(a.in.B * a.in.T_, a.in.C, n, c)) return;
  const int64_t b = n / a.in.T_;
  const W p = ConvSequence<T>(a.in, b, c).PreActivation(n - b * a.in.T_);
  a.y[n * a.y_stride + c] = gpu::convert<T>(a.in.silu ? p * Sigmoid<T>(p) : p);
}

// The state after the last token, when y is done: `last` may be `initial`. One thread per sequence and
// channel.
template <class T>
__global__ void __launch_bounds__(kConvLoopThreads) ConvLastKernel(ConvInputs<T> in, Wide<T>* last) {
  int64_t b, c;
  if (!ConvElement(in.B, in.C, b, c)) return;
  const ConvSequence<T> sequence(in, b, c);
  const int64_t start = sequence.Start(in.T_ - 1);
  // Oldest first: an entry of `initial` that still counts stands at a later place than the one it moves to.
  for (int64_t i = 0; i < in.K - 1; ++i) {
    const int64_t position = in.T_ - (in.K - 1) + i;
    last[(b * (in.K - 1) + i) * in.C + c] = position >= start ? sequence.X(position) : Wide<T>{0};
  }
}

// The gradient of the pre-activation of token t of sequence b.
template <class T>
__device__ inline Wide<T> ConvPreGradient(const ConvBackwardRows<T>& a, int64_t b, int64_t t, int64_t c) {
  using W = Wide<T>;
  W gradient = gpu::convert<W>(a.dy[(b * a.in.T_ + t) * a.dy_stride + c]);
  if (a.in.silu) {
    const W p = ConvSequence<T>(a.in, b, c).PreActivation(t);
    gradient *= SiluSlope<T>(p, Sigmoid<T>(p));
  }
  return gradient;
}
template <class T>
__global__ void __launch_bounds__(kConvLoopThreads)
    ConvGradientLoopKernel(ConvBackwardRows<T> a, Wide<T>* dp) {
  int64_t n, c;
  if (!ConvElement(a.in.B * a.in.T_, a.in.C, n, c)) return;
  const int64_t b = n / a.in.T_;
  dp[n * a.in.C + c] = ConvPreGradient(a, b, n - b * a.in.T_, c);
}

// Sum over the tokens that read `position` of the channel, and the gradient of the state after the last
// token. dp(t): the gradient of token t's pre-activation.
template <class T, class Dp>
__device__ inline Wide<T> ConvPositionGradient(const ConvBackwardRows<T>& a, const Dp& dp, int64_t b,
                                               int64_t position, int64_t c) {
  const ConvInputs<T>& in = a.in;
  const ConvSequence<T> sequence(in, b, c);
  Wide<T> sum = 0;
  int64_t t = position < 0 ? 0 : position;
  for (; t < in.T_ && t - position <= in.K - 1; ++t) {
    if (t != position && sequence.Resets(t)) return sum;
    sum += sequence.Weight(t - position) * dp(t);
  }
  // Here no document begins up to t; `last` holds the position if it is one of the newest K-1.
  const int64_t entry = position - (in.T_ - (in.K - 1));
  if (a.dlast != nullptr && entry >= 0) sum += a.dlast[(b * (in.K - 1) + entry) * in.C + c];
  return sum;
}
template <class T>
__global__ void __launch_bounds__(kConvLoopThreads)
    ConvInputGradientLoopKernel(ConvBackwardRows<T> a, const Wide<T>* dp) {
  using W = Wide<T>;
  int64_t n, c;
  if (!ConvElement(a.in.B * a.in.T_, a.in.C, n, c)) return;
  const int64_t b = n / a.in.T_;
  T& to = a.dx[n * a.dx_stride + c];
  const auto dp_of = [&](int64_t t) { return dp[(b * a.in.T_ + t) * a.in.C + c]; };
  const W sum = ConvPositionGradient(a, dp_of, b, n - b * a.in.T_, c);
  to = gpu::convert<T>(sum + (a.accumulate_dx ? gpu::convert<W>(to) : W{0}));
}
// Needs nothing of the other kernels: at most K - 1 tokens' pre-activations, computed again.
template <class T>
__global__ void __launch_bounds__(kConvLoopThreads) ConvInitialGradientLoopKernel(ConvBackwardRows<T> a) {
  int64_t row, c;
  const int64_t entries = a.in.K - 1;
  if (!ConvElement(a.in.B * entries, a.in.C, row, c)) return;
  const int64_t b = row / entries, position = row - b * entries - entries;
  const auto dp = [&](int64_t t) { return ConvPreGradient(a, b, t, c); };
  a.dinitial[row * a.in.C + c] = ConvPositionGradient(a, dp, b, position, c);
}

// Partial sums of dweight and dbias by channels. Grid: (channels / kPartialColumns, partial sums). Block
// (kPartialColumns, kPartialLanes): row of threads l of block p takes tokens p * kPartialLanes + l, ...
template <class T>
__global__ void __launch_bounds__(kPartialColumns* kPartialLanes)
    ConvWeightGradientLoopKernel(ConvBackwardRows<T> a, const Wide<T>* dp) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kPartialLanes][kPartialColumns]);
  const ConvInputs<T>& in = a.in;
  const int lane = static_cast<int>(threadIdx.y), column = static_cast<int>(threadIdx.x);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kPartialColumns + column, N = in.B * in.T_;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kPartialLanes + lane;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kPartialLanes;
  for (int64_t age = -1; age < in.K; ++age) {  // -1: the bias
    W sum = 0;
    for (int64_t n = first; n < N && c < in.C; n += step) {
      const int64_t b = n / in.T_, t = n - b * in.T_;
      const W gradient = dp[n * in.C + c];
      if (age < 0) {
        sum += gradient;
      } else {
        const ConvSequence<T> sequence(in, b, c);
        if (t - age >= sequence.Start(t)) sum += gradient * sequence.X(t - age);
      }
    }
    __syncthreads();  // room: the reads of the last round, then these writes
    room[lane][column] = sum;
    __syncthreads();  // room: every row's writes, then row 0's reads
    if (lane != 0 || c >= in.C) continue;
    for (int l = 1; l < kPartialLanes; ++l) sum += room[l][column];
    const int64_t partial = static_cast<int64_t>(blockIdx.y) * in.C + c;
    if (age >= 0) {
      a.dweight[partial * in.K + in.K - 1 - age] = sum;
    } else if (a.dbias != nullptr) {
      a.dbias[partial] = sum;
    }
  }
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
