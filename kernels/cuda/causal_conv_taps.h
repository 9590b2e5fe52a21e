// The causal convolution with kK taps in registers: a thread walks through a run of tokens of V channels with
// the last kK - 1 inputs in a window. A document's start empties the window, so what lies before it (the
// initial state, too) is read but never used.
//
// Forward: grid (groups of runs, blocks of channels), block (vectors of channels, runs). Reads x once, and
// the kK - 1 tokens before each run again (from L2); writes y once. Backward: a fixed number of blocks that
// take groups of runs in turn, each with one row of partial sums of dweight and dbias; reads x and dy once,
// and kK - 1 tokens before and after each run again; writes dx once. Four tokens' accesses are in flight per
// thread. Shared: V * kConvBackwardThreads elements in backward, to add the threads' sums in order. Sums in
// the wide type.
#pragma once
#include "core/base/dtype.h"
#include "kernels/cuda/activation.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Threads of a block: two blocks per multiprocessor forward, three backward (by registers).
constexpr int kConvForwardThreads = 256, kConvBackwardThreads = 128;
constexpr int kConvChunk = 4;  // tokens loaded together

// What forward and backward read.
template <class T>
struct ConvInputs {
  using W = Wide<T>;
  const T* x;
  const T* weight;       // (C, K)
  const W* bias;         // may be null
  const uint8_t* reset;  // may be null
  const W* initial;      // may be null
  int64_t x_stride;
  int64_t B, T_, C, K;
  bool silu;
};
template <class T>
struct ConvForwardRows {
  ConvInputs<T> in;
  T* y;
  int64_t y_stride;
  int64_t run;  // tokens per thread
};
template <class T>
struct ConvBackwardRows {
  using W = Wide<T>;
  ConvInputs<T> in;
  T* dx;
  W* dinitial;  // may be null
  const T* dy;
  const W* dlast;  // may be null
  int64_t dx_stride, dy_stride;
  bool accumulate_dx;
  int64_t run;  // tokens per thread and turn
  W* dweight;   // (blocks, C, K) partial sums
  W* dbias;     // (blocks, C), may be null
};

// V channels of one sequence.
template <class T, int V, int kK>
struct ConvWindow {
  using W = Wide<T>;

  __device__ ConvWindow(const ConvInputs<T>& in, int64_t channel) {
    if constexpr (V == 1) {
#pragma unroll
      for (int j = 0; j < kK; ++j) weight[j][0] = gpu::convert<W>(in.weight[channel * kK + j]);
    } else {
      W taps[V * kK];
      Load(taps, in.weight + channel * kK);
#pragma unroll
      for (int j = 0; j < kK; ++j) {
#pragma unroll
        for (int e = 0; e < V; ++e) weight[j][e] = taps[e * kK + j];
      }
    }
    LoadOr(bias, in.bias, channel, W{0});
  }
  // Forgets all inputs: a document begins, or nothing is known.
  __device__ void Clear() {
#pragma unroll
    for (int j = 0; j < kK - 1; ++j) {
#pragma unroll
      for (int e = 0; e < V; ++e) inputs[j][e] = 0;
    }
    depth = 0;
  }
  __device__ void Push(const W (&x)[V]) {
#pragma unroll
    for (int j = 0; j + 1 < kK - 1; ++j) {
#pragma unroll
      for (int e = 0; e < V; ++e) inputs[j][e] = inputs[j + 1][e];
    }
#pragma unroll
    for (int e = 0; e < V; ++e) inputs[kK - 2][e] = x[e];
    depth = depth < kK - 1 ? depth + 1 : kK - 1;
  }
  // Takes in the kK - 1 tokens before token `first` of sequence b.
  __device__ void Begin(const ConvInputs<T>& in, int64_t b, int64_t first, int64_t channel) {
    Clear();
    W x[kK - 1][V];
#pragma unroll
    for (int i = 0; i < kK - 1; ++i) {
      const int64_t position = first - (kK - 1) + i;
      if (position >= 0) {
        Load(x[i], in.x + (b * in.T_ + position) * in.x_stride + channel);
      } else {
        LoadOr(x[i], in.initial, (b * (kK - 1) + kK - 1 + position) * in.C + channel, W{0});
      }
    }
#pragma unroll
    for (int i = 0; i < kK - 1; ++i) {
      const int64_t position = first - (kK - 1) + i;
      if (position >= 0 && in.reset != nullptr && in.reset[b * in.T_ + position] != 0) Clear();
      Push(x[i]);
    }
  }
  // The pre-activation of the token whose input is x.
  __device__ void PreActivation(W (&p)[V], const W (&x)[V]) const {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      p[e] = bias[e];
#pragma unroll
      for (int j = 0; j < kK - 1; ++j) p[e] += weight[j][e] * inputs[j][e];
      p[e] += weight[kK - 1][e] * x[e];
    }
  }

  W weight[kK][V], bias[V];
  W inputs[kK - 1][V];  // oldest first
  int depth;            // how many of them the next token may reach: positions of its document
};

template <class T, int V, int kK>
__global__ void __launch_bounds__(kConvForwardThreads, 2) ConvForwardKernel(ConvForwardRows<T> a) {
  using W = Wide<T>;
  const ConvInputs<T>& in = a.in;
  const int64_t channel = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  const int64_t runs = (in.T_ + a.run - 1) / a.run;  // per sequence
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t b = index / runs, begin = (index - b * runs) * a.run;
  if (channel >= in.C || b >= in.B) return;
  const int64_t end = begin + a.run < in.T_ ? begin + a.run : in.T_;
  ConvWindow<T, V, kK> window(in, channel);
  window.Begin(in, b, begin, channel);
  for (int64_t t = begin; t < end; t += kConvChunk) {
    const int64_t n = b * in.T_ + t;
    Packed<T, V> ahead[kConvChunk];
#pragma unroll
    for (int i = 0; i < kConvChunk; ++i) {
      if (t + i < end) ahead[i].Read(in.x + (n + i) * in.x_stride + channel);
    }
#pragma unroll
    for (int i = 0; i < kConvChunk; ++i) {
      if (t + i >= end) break;
      if (in.reset != nullptr && in.reset[n + i] != 0) window.Clear();
      W x[V], y[V];
      ahead[i].Unpack(x);
      window.PreActivation(y, x);
      window.Push(x);
      if (in.silu) {
#pragma unroll
        for (int e = 0; e < V; ++e) y[e] *= Sigmoid<T>(y[e]);
      }
      Store(a.y + (n + i) * a.y_stride + channel, y);
    }
  }
}

// The gradients of the inputs that the next tokens may still reach, and where they go when they are complete.
template <class T, int V, int kK>
struct ConvGradients {
  using W = Wide<T>;

  __device__ ConvGradients(const ConvBackwardRows<T>& a, int64_t b, int64_t begin, int64_t end,
                           int64_t channel)
      : a(a), b(b), begin(begin), end(end), channel(channel) {
#pragma unroll
    for (int d = 0; d < kK; ++d) {
#pragma unroll
      for (int e = 0; e < V; ++e) sums[d][e] = 0;
    }
  }
  // Writes the gradient of this position if it is the run's.
  __device__ void Emit(int64_t position, const W (&sum)[V]) const {
    if (position >= begin && position < end) {
      T* const to = a.dx + (b * a.in.T_ + position) * a.dx_stride + channel;
      W dx[V];
      if (a.accumulate_dx) {
        Load(dx, to);
#pragma unroll
        for (int e = 0; e < V; ++e) dx[e] += sum[e];
        Store(to, dx);
      } else {
        Store(to, sum);
      }
    } else if (position < 0 && begin == 0 && a.dinitial != nullptr) {
      Store(a.dinitial + (b * (kK - 1) + kK - 1 + position) * a.in.C + channel, sum);
    }
  }
  // Token t with gradient dp of its pre-activation: its taps reach `depth` positions back.
  __device__ void Add(int64_t t, const W (&dp)[V], const W (&weight)[kK][V], int depth) {
#pragma unroll
    for (int d = kK - 1; d > 0; --d) {
#pragma unroll
      for (int e = 0; e < V; ++e)
        sums[d][e] = sums[d - 1][e] + (d <= depth ? weight[kK - 1 - d][e] * dp[e] : W{0});
    }
#pragma unroll
    for (int e = 0; e < V; ++e) sums[0][e] = weight[kK - 1][e] * dp[e];
    Emit(t - (kK - 1), sums[kK - 1]);
  }
  // After the sequence's last token, whose taps reach `depth` positions back: the state that follows it.
  __device__ void Finish(int depth) {
#pragma unroll
    for (int d = kK - 2; d >= 0; --d) {
      if (a.dlast != nullptr && d <= depth) {
        W dlast[V];
        Load(dlast, a.dlast + (b * (kK - 1) + kK - 2 - d) * a.in.C + channel);
#pragma unroll
        for (int e = 0; e < V; ++e) sums[d][e] += dlast[e];
      }
      Emit(a.in.T_ - 1 - d, sums[d]);
    }
  }

  const ConvBackwardRows<T>& a;
  int64_t b, begin, end, channel;
  W sums[kK][V];  // sums[d]: of position t - d after Add(t)
};

template <class T, int V, int kK>
__global__ void __launch_bounds__(kConvBackwardThreads, 3) ConvBackwardKernel(ConvBackwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, exchange, [kConvBackwardThreads * V]);
  const ConvInputs<T>& in = a.in;
  const int64_t channel = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  const bool present = channel < in.C;
  const int64_t runs = (in.T_ + a.run - 1) / a.run;  // per sequence
  W dweight[kK + 1][V] = {};                         // the last one: dbias
  if (present) {
    ConvWindow<T, V, kK> window(in, channel);
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; index < in.B * runs;
         index += step) {
      const int64_t b = index / runs, begin = (index - b * runs) * a.run;
      const int64_t end = begin + a.run < in.T_ ? begin + a.run : in.T_;
      // tokens after the run read its inputs, too
      const int64_t stop = end + kK - 1 < in.T_ ? end + kK - 1 : in.T_;
      ConvGradients<T, V, kK> gradients(a, b, begin, end, channel);
      window.Begin(in, b, begin, channel);
      for (int64_t t = begin; t < stop; t += kConvChunk) {
        const int64_t n = b * in.T_ + t;
        Packed<T, V> x_ahead[kConvChunk], dy_ahead[kConvChunk];
#pragma unroll
        for (int i = 0; i < kConvChunk; ++i) {
          if (t + i >= stop) continue;
          x_ahead[i].Read(in.x + (n + i) * in.x_stride + channel);
          dy_ahead[i].Read(a.dy + (n + i) * a.dy_stride + channel);
        }
#pragma unroll
        for (int i = 0; i < kConvChunk; ++i) {
          if (t + i >= stop) break;
          if (in.reset != nullptr && in.reset[n + i] != 0) window.Clear();
          W x[V], dp[V];
          x_ahead[i].Unpack(x);
          dy_ahead[i].Unpack(dp);
          if (in.silu) {
            W p[V];
            window.PreActivation(p, x);
#pragma unroll
            for (int e = 0; e < V; ++e) dp[e] *= SiluSlope<T>(p[e], Sigmoid<T>(p[e]));
          }
          if (t + i < end) {
#pragma unroll
            for (int e = 0; e < V; ++e) {
#pragma unroll
              for (int j = 0; j < kK - 1; ++j) dweight[j][e] += dp[e] * window.inputs[j][e];
              dweight[kK - 1][e] += dp[e] * x[e];
              dweight[kK][e] += dp[e];
            }
          }
          gradients.Add(t + i, dp, window.weight, window.depth);
          if (t + i + 1 == in.T_) gradients.Finish(window.depth);
          window.Push(x);
        }
      }
    }
  }
  // The sums of the block's rows of threads, in their order.
  const int per_row = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int j = 0; j < kK + 1; ++j) {
    __syncthreads();  // exchange: the reads of the last round, then these writes
    Store(exchange + (static_cast<int>(threadIdx.y) * per_row + thread) * V, dweight[j]);
    __syncthreads();  // exchange: every row's writes, then row 0's reads
    for (int y = 1; y < static_cast<int>(blockDim.y) && threadIdx.y == 0; ++y) {
      W more[V];
      Load(more, exchange + (y * per_row + thread) * V);
#pragma unroll
      for (int e = 0; e < V; ++e) dweight[j][e] += more[e];
    }
  }
  if (!present || threadIdx.y != 0) return;
  const int64_t partial = static_cast<int64_t>(blockIdx.x) * in.C + channel;
  W taps[V * kK];
#pragma unroll
  for (int j = 0; j < kK; ++j) {
#pragma unroll
    for (int e = 0; e < V; ++e) taps[e * kK + j] = dweight[j][e];
  }
  Store(a.dweight + partial * kK, taps);
  if (a.dbias != nullptr) Store(a.dbias + partial, dweight[kK]);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
