// The kernels of the per-head norm with skip and output gate; formulas: head_norm_gate.cu.
// Forward: grid (blocks of rows, blocks of heads); a head's columns stay in registers between the statistics
// and the output. Backward: a fixed number of blocks that take rows in turn, each with one row of partial
// sums of the gradients of weight, bias and skip weight. Both read and write every element once; heads wider
// than kMaxRowThreads * kLongSegmentElems columns (and f64) go in loops that read again, and
// HeadNormWeightGradientKernel reads once more. Shared: 64 to 128 B for the statistics, 8 KB to add rows of
// threads. Sums in the wide type; the variance is the mean of squared distances from the mean.
#pragma once
#include "core/ops.h"
#include "kernels/cuda/activation.h"
#include "kernels/cuda/partials.h"
#include "kernels/cuda/row_layout.h"

namespace carousel::CAROUSEL_DEVICE_NS {

enum class HeadGate { kNone, kSigmoid, kSilu };

// What forward and backward read.
template <class T>
struct HeadNormInputs {
  using W = Wide<T>;
  const T* h;
  const T* o_pre;  // null if gate is kNone
  const T* skip;   // may be null
  int64_t o_stride, skip_stride;
  const W* weight;       // may be null: the scale is 1
  const W* bias;         // may be null
  const W* skip_weight;  // null if skip is
  W one;                 // added to the weight: 0 or 1
  HeadGate gate;
  int64_t N, NH, DHV;
};
template <class T>
struct HeadNormForwardRows {
  using W = Wide<T>;
  HeadNormInputs<T> in;
  T* y;
  W* mean;
  W* rstd;
  W eps;
};
template <class T>
struct HeadNormBackwardRows {
  using W = Wide<T>;
  HeadNormInputs<T> in;
  T* dh;
  T* y;       // may be null, may be dy
  T* do_pre;  // null if gate is kNone
  T* dskip;   // null if skip is
  int64_t do_stride, dskip_stride;
  const T* dy;
  const W* mean;
  const W* rstd;
  // (blocks, NH * DHV) partial sums, each may be null
  W* dweight;
  W* dbias;
  W* dskip_weight;
};

// Parameters of V columns.
template <class W, int V>
struct HeadNormParams {
  template <class T>
  __device__ HeadNormParams(const HeadNormInputs<T>& in, int64_t column) {
    LoadOr(scale, in.weight, column, W{1});
    if (in.weight != nullptr) {
#pragma unroll
      for (int e = 0; e < V; ++e) scale[e] += in.one;
    }
    LoadOr(bias, in.bias, column, W{0});
    LoadOr(skip_weight, in.skip_weight, column, W{0});
  }
  W scale[V], bias[V], skip_weight[V];
};
// act(o)
template <class T>
__device__ inline Wide<T> GateOf(HeadGate gate, Wide<T> o) {
  if (gate == HeadGate::kNone) return 1;
  const Wide<T> s = Sigmoid<T>(o);
  return gate == HeadGate::kSigmoid ? s : o * s;
}
// act(o) and act'(o)
template <class T>
__device__ inline void GateAndSlope(HeadGate gate, Wide<T> o, Wide<T>& act, Wide<T>& slope) {
  const Wide<T> s = Sigmoid<T>(o);
  act = gate == HeadGate::kSigmoid ? s : o * s;
  slope = gate == HeadGate::kSigmoid ? s * (1 - s) : SiluSlope<T>(o, s);
}

// z of column e, forward and backward.
template <int V, class W>
__device__ inline W HeadNormZ(const HeadNormParams<W, V>& p, int e, W xhat, W skip) {
  return xhat * p.scale[e] + p.bias[e] + p.skip_weight[e] * skip;
}
// y of V columns; h, o and skip are the row's values.
template <int V, class T>
__device__ inline void StoreHeadNormed(const HeadNormForwardRows<T>& a, int64_t row, int64_t column,
                                       const Wide<T> (&h)[V], const Wide<T> (&o)[V], const Wide<T> (&skip)[V],
                                       Wide<T> mean, Wide<T> rstd) {
  using W = Wide<T>;
  const HeadNormParams<W, V> p(a.in, column);
  W y[V];
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const W z = HeadNormZ<V>(p, e, (h[e] - mean) * rstd, skip[e]);
    y[e] = a.in.gate == HeadGate::kNone ? z : GateOf<T>(a.in.gate, o[e]) * z;
  }
  Store(a.y + row * (a.in.NH * a.in.DHV) + column, y);
}
template <int V, class T>
__device__ inline void LoadGateAndSkip(Wide<T> (&o)[V], Wide<T> (&skip)[V], const HeadNormInputs<T>& in,
                                       int64_t row, int64_t column) {
  LoadOr(o, in.o_pre, row * in.o_stride + column, Wide<T>{0});
  LoadOr(skip, in.skip, row * in.skip_stride + column, Wide<T>{0});
}

template <class T, int V, int kItems>
__global__ void __launch_bounds__(kRowThreads<V, kItems>, 1) HeadNormForwardKernel(HeadNormForwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<1, kMaxRowThreads>]);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.z + threadIdx.z;
  const int64_t head = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
  const bool present = row < a.in.N && head < a.in.NH;
  const int64_t first = head * a.in.DHV, width = present ? a.in.DHV : 0;
  const W count = static_cast<W>(a.in.DHV);
  W h[kItems][V] = {}, o[kItems][V] = {}, skip[kItems][V] = {};
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t column = ColumnOf<V>(i);
    if (column >= width) continue;
    Load(h[i], a.in.h + row * (a.in.NH * a.in.DHV) + first + column);
    LoadGateAndSkip(o[i], skip[i], a.in, row, first + column);
  }
  W mean[1] = {0}, squares[1] = {0};
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (ColumnOf<V>(i) >= width) continue;
#pragma unroll
    for (int e = 0; e < V; ++e) mean[0] += h[i][e];
  }
  SegmentSum(mean, room);
  mean[0] /= count;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (ColumnOf<V>(i) >= width) continue;
#pragma unroll
    for (int e = 0; e < V; ++e) squares[0] += (h[i][e] - mean[0]) * (h[i][e] - mean[0]);
  }
  SegmentSum(squares, room);
  const W rstd = 1 / std::sqrt(squares[0] / count + a.eps);
  if (present && threadIdx.x == 0) {
    a.mean[row * a.in.NH + head] = mean[0];
    a.rstd[row * a.in.NH + head] = rstd;
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t column = ColumnOf<V>(i);
    if (column < width) StoreHeadNormed(a, row, first + column, h[i], o[i], skip[i], mean[0], rstd);
  }
}

// Heads of any width, one block per row and head.
template <class T, int V>
__global__ void __launch_bounds__(kMaxRowThreads) HeadNormForwardLoopKernel(HeadNormForwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<1, kMaxRowThreads>]);
  const int64_t row = blockIdx.x / a.in.NH, head = blockIdx.x - row * a.in.NH, first = head * a.in.DHV;
  const T* const h_row = a.in.h + row * (a.in.NH * a.in.DHV) + first;
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * V, step = static_cast<int64_t>(blockDim.x) * V;
  const W count = static_cast<W>(a.in.DHV);
  W mean[1] = {0}, squares[1] = {0};
  for (int64_t column = begin; column < a.in.DHV; column += step) {
    W h[V];
    Load(h, h_row + column);
#pragma unroll
    for (int e = 0; e < V; ++e) mean[0] += h[e];
  }
  SegmentSum(mean, room);
  mean[0] /= count;
  for (int64_t column = begin; column < a.in.DHV; column += step) {
    W h[V];
    Load(h, h_row + column);
#pragma unroll
    for (int e = 0; e < V; ++e) squares[0] += (h[e] - mean[0]) * (h[e] - mean[0]);
  }
  SegmentSum(squares, room);
  const W rstd = 1 / std::sqrt(squares[0] / count + a.eps);
  if (threadIdx.x == 0) {
    a.mean[blockIdx.x] = mean[0];
    a.rstd[blockIdx.x] = rstd;
  }
  for (int64_t column = begin; column < a.in.DHV; column += step) {
    W h[V], o[V], skip[V];
    Load(h, h_row + column);
    LoadGateAndSkip(o, skip, a.in, row, first + column);
    StoreHeadNormed(a, row, first + column, h, o, skip, mean[0], rstd);
  }
}

// V columns of one row in backward: reads everything of theirs, then writes do_pre, dskip and y.
//   g = dy act(o_pre): the gradient of z, and of bias; scaled_g = scale g: of xhat; skip_g = g skip
template <class T, int V>
struct HeadNormColumns {
  using W = Wide<T>;
  // What the statistics need, and nothing that is written.
  __device__ void Read(const HeadNormBackwardRows<T>& a, int64_t row, int64_t column, W mean, W rstd) {
    const int64_t at = row * (a.in.NH * a.in.DHV) + column;
    Load(xhat, a.in.h + at);
    Load(g, a.dy + at);
    LoadGateAndSkip(o, skip, a.in, row, column);
#pragma unroll
    for (int e = 0; e < V; ++e) xhat[e] = (xhat[e] - mean) * rstd;
  }
  // Afterwards g and scaled_g hold what is said above, and do_pre, dskip and y are written if kStore.
  template <bool kStore>
  __device__ void Gate(const HeadNormBackwardRows<T>& a, int64_t row, int64_t column) {
    const HeadNormParams<W, V> p(a.in, column);
    W y[V];
#pragma unroll
    for (int e = 0; e < V; ++e) y[e] = HeadNormZ<V>(p, e, xhat[e], skip[e]);
    if (a.in.gate != HeadGate::kNone) {
      W do_pre[V];
#pragma unroll
      for (int e = 0; e < V; ++e) {
        W act, slope;
        GateAndSlope<T>(a.in.gate, o[e], act, slope);
        do_pre[e] = g[e] * slope * y[e];
        g[e] *= act;
        y[e] *= act;
      }
      if constexpr (kStore) Store(a.do_pre + row * a.do_stride + column, do_pre);
    }
    if (kStore && a.y != nullptr) Store(a.y + row * (a.in.NH * a.in.DHV) + column, y);
    if (kStore && a.in.skip != nullptr) {
      W dskip[V];
#pragma unroll
      for (int e = 0; e < V; ++e) dskip[e] = g[e] * p.skip_weight[e];
      Store(a.dskip + row * a.dskip_stride + column, dskip);
    }
#pragma unroll
    for (int e = 0; e < V; ++e) scaled_g[e] = g[e] * p.scale[e];
  }
  __device__ void StoreDh(const HeadNormBackwardRows<T>& a, int64_t row, int64_t column, W mean_g,
                          W mean_product, W rstd) const {
    W dh[V];
#pragma unroll
    for (int e = 0; e < V; ++e) dh[e] = (scaled_g[e] - mean_g - xhat[e] * mean_product) * rstd;
    Store(a.dh + row * (a.in.NH * a.in.DHV) + column, dh);
  }
  W xhat[V] = {}, g[V] = {}, o[V] = {}, skip[V] = {}, scaled_g[V] = {};
};

template <class T, int V, int kItems>
__global__ void __launch_bounds__(kRowBlockThreads, 1) HeadNormBackwardKernel(HeadNormBackwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<2, kMaxRowThreads>]);
  SHARED_ARRAY(W, exchange, [kRowBlockThreads * V]);
  const int64_t head = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y, first = head * a.in.DHV;
  const W count = static_cast<W>(a.in.DHV);
  W dweight[kItems][V] = {}, dbias[kItems][V] = {}, dskip_weight[kItems][V] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.z;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * blockDim.z; base < a.in.N; base += step) {
    const int64_t row = base + threadIdx.z;
    const bool present = row < a.in.N && head < a.in.NH;
    const int64_t width = present ? a.in.DHV : 0;
    const W mean = present ? a.mean[row * a.in.NH + head] : W{0};
    const W rstd = present ? a.rstd[row * a.in.NH + head] : W{0};
    HeadNormColumns<T, V> columns[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t column = ColumnOf<V>(i);
      if (column < width) columns[i].Read(a, row, first + column, mean, rstd);
    }
    W sums[2] = {0, 0};  // of scaled_g and scaled_g xhat
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t column = ColumnOf<V>(i);
      if (column >= width) continue;
      HeadNormColumns<T, V>& c = columns[i];
      c.template Gate<true>(a, row, first + column);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        dweight[i][e] += c.g[e] * c.xhat[e];
        dbias[i][e] += c.g[e];
        dskip_weight[i][e] += c.g[e] * c.skip[e];
        sums[0] += c.scaled_g[e];
        sums[1] += c.scaled_g[e] * c.xhat[e];
      }
    }
    SegmentSum(sums, room);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t column = ColumnOf<V>(i);
      if (column < width) columns[i].StoreDh(a, row, first + column, sums[0] / count, sums[1] / count, rstd);
    }
  }
  const int64_t partial = static_cast<int64_t>(blockIdx.x) * (a.in.NH * a.in.DHV) + first;
  const auto store = [&](W* partials, const W(&sums)[kItems][V]) {
    if (partials != nullptr) StorePartials(partials + partial, sums, head < a.in.NH, a.in.DHV, exchange);
  };
  store(a.dweight, dweight);
  store(a.dbias, dbias);
  store(a.dskip_weight, dskip_weight);
}

// dh, do_pre and dskip of heads of any width, one block per row and head. Comes after
// HeadNormWeightGradientKernel.
template <class T, int V>
__global__ void __launch_bounds__(kMaxRowThreads) HeadNormBackwardLoopKernel(HeadNormBackwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<2, kMaxRowThreads>]);
  const int64_t row = blockIdx.x / a.in.NH, head = blockIdx.x - row * a.in.NH, first = head * a.in.DHV;
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * V, step = static_cast<int64_t>(blockDim.x) * V;
  const W count = static_cast<W>(a.in.DHV), mean = a.mean[blockIdx.x], rstd = a.rstd[blockIdx.x];
  HeadNormColumns<T, V> c;
  W sums[2] = {0, 0};
  for (int64_t column = begin; column < a.in.DHV; column += step) {
    c.Read(a, row, first + column, mean, rstd);
    c.template Gate<false>(a, row, first + column);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      sums[0] += c.scaled_g[e];
      sums[1] += c.scaled_g[e] * c.xhat[e];
    }
  }
  SegmentSum(sums, room);
  for (int64_t column = begin; column < a.in.DHV; column += step) {
    c.Read(a, row, first + column, mean, rstd);
    c.template Gate<true>(a, row, first + column);
    c.StoreDh(a, row, first + column, sums[0] / count, sums[1] / count, rstd);
  }
}

// Partial sums by columns. Grid: (columns / kPartialColumns, partial sums). Block (kPartialColumns,
// kPartialLanes): row of threads l of block p takes rows p * kPartialLanes + l, ...
template <class T>
__global__ void __launch_bounds__(kPartialColumns* kPartialLanes)
    HeadNormWeightGradientKernel(HeadNormBackwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [3][kPartialLanes][kPartialColumns]);
  const int lane = static_cast<int>(threadIdx.y), x = static_cast<int>(threadIdx.x);
  const int64_t width = a.in.NH * a.in.DHV;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kPartialColumns + x, head = column / a.in.DHV;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * kPartialLanes + lane;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kPartialLanes;
  W sums[3] = {0, 0, 0};  // of weight, bias, skip weight
  for (int64_t row = begin; row < a.in.N && column < width; row += step) {
    HeadNormColumns<T, 1> c;
    c.Read(a, row, column, a.mean[row * a.in.NH + head], a.rstd[row * a.in.NH + head]);
    const W g = a.in.gate == HeadGate::kNone ? c.g[0] : c.g[0] * GateOf<T>(a.in.gate, c.o[0]);
    sums[0] += g * c.xhat[0];
    sums[1] += g;
    sums[2] += g * c.skip[0];
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) room[i][lane][x] = sums[i];
  __syncthreads();  // room: every row's writes, then row 0's reads
  if (lane != 0 || column >= width) return;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    for (int l = 1; l < kPartialLanes; ++l) sums[i] += room[i][l][x];
  }
  const int64_t at = static_cast<int64_t>(blockIdx.y) * width + column;
  if (a.dweight != nullptr) a.dweight[at] = sums[0];
  if (a.dbias != nullptr) a.dbias[at] = sums[1];
  if (a.dskip_weight != nullptr) a.dskip_weight[at] = sums[2];
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
