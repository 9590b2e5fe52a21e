// The kernels of RMS norm and layer norm: kCentered says whether the mean is subtracted.
//   forward:  s = x + delta; xhat = (s - mean) rstd; y = xhat scale (+ bias), scale = weight or 1 + weight
//   backward: g = dy scale; ds = rstd (g - mean(g) - xhat mean(g xhat)), without mean(g) if not centred;
//             dweight = sum of dy xhat, dbias = sum of dy
// Forward: grid one block per blockDim.z rows. Reads x and delta once, writes s and y once; a row wider than
// kMaxRowThreads * kLongSegmentElems elements (kUnalignedElems, if it cannot be read 16 bytes at a time) is
// read again (from L2). The variance is the mean of squared distances from the mean, not a difference of
// sums. Backward: a fixed number of blocks that take rows in turn, each with one row of partial sums of
// dweight and dbias; reads dy, x and dresidual once; wider rows: NormWeightGradientKernel reads dy and x once
// more. Shared: 64 to 128 B for the statistics, 8 KB to add rows of threads. Sums in the wide type.
#pragma once
#include "core/base/dtype.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/partials.h"
#include "kernels/cuda/row_layout.h"

namespace carousel::CAROUSEL_DEVICE_NS {

template <class T>
struct NormForwardRows {
  using W = Wide<T>;
  T* y;
  W* mean;  // centred only
  W* rstd;
  W* sum;  // may be null, may be x
  const W* x;
  const T* delta;  // may be null
  const W* weight;
  const W* bias;  // may be null
  W one;          // added to the weight: 0 or 1
  W eps;
  int64_t N, D;
};

template <class T>
struct NormBackwardRows {
  using W = Wide<T>;
  W* dx;          // may be dresidual
  T* dx_rounded;  // may be null, may be dy
  T* y;           // may be null, may be dy
  W* dweight;     // (blocks, D) partial sums
  W* dbias;       // the same, may be null
  const T* dy;
  const W* dresidual;  // may be null
  const W* x;
  const W* weight;
  const W* bias;  // may be null
  const W* mean;  // centred only
  const W* rstd;
  W one;
  int64_t N, D;
};

// s of V columns: x + delta.
template <int V, class T>
__device__ inline void LoadSum(Wide<T> (&s)[V], const NormForwardRows<T>& a, int64_t at) {
  Load(s, a.x + at);
  if (a.delta != nullptr) {
    Wide<T> d[V];
    Load(d, a.delta + at);
#pragma unroll
    for (int e = 0; e < V; ++e) s[e] += d[e];
  }
}
// y of V columns, forward and backward.
template <int V, class Rows, class W>
__device__ inline void StoreNormed(const Rows& a, int64_t at, int64_t column, const W (&xhat)[V]) {
  W weight[V], bias[V], y[V];
  Load(weight, a.weight + column);
  LoadOr(bias, a.bias, column, W{0});
#pragma unroll
  for (int e = 0; e < V; ++e) y[e] = xhat[e] * (a.one + weight[e]) + bias[e];
  Store(a.y + at, y);
}
template <int V, class W>
__device__ inline void Normalise(W (&s)[V], W mean, W rstd) {
#pragma unroll
  for (int e = 0; e < V; ++e) s[e] = (s[e] - mean) * rstd;
}

template <class T, int V, int kItems, bool kCentered>
__global__ void __launch_bounds__(kRowThreads<V, kItems>, 1) NormForwardKernel(NormForwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<1, kMaxRowThreads>]);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.z + threadIdx.z;
  const bool present = row < a.N;
  const int64_t offset = row * a.D, width = present ? a.D : 0;
  const W count = static_cast<W>(a.D);
  // the row, in registers
  W s[kItems][V] = {};
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t column = ColumnOf<V>(i);
    if (column < width) LoadSum(s[i], a, offset + column);
  }
  W mean[1] = {0}, squares[1] = {0};
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t column = ColumnOf<V>(i);
    if (column >= width) continue;
    if (a.sum != nullptr) Store(a.sum + offset + column, s[i]);
#pragma unroll
    for (int e = 0; e < V; ++e) mean[0] += s[i][e];
  }
  if constexpr (kCentered) {
    SegmentSum(mean, room);
    mean[0] /= count;
  } else {
    mean[0] = 0;
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (ColumnOf<V>(i) >= width) continue;
#pragma unroll
    for (int e = 0; e < V; ++e) squares[0] += (s[i][e] - mean[0]) * (s[i][e] - mean[0]);
  }
  SegmentSum(squares, room);
  const W rstd = 1 / std::sqrt(squares[0] / count + a.eps);
  if (present && threadIdx.x == 0) {
    if constexpr (kCentered) a.mean[row] = mean[0];
    a.rstd[row] = rstd;
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t column = ColumnOf<V>(i);
    if (column >= width) continue;
    Normalise(s[i], mean[0], rstd);
    StoreNormed(a, offset + column, column, s[i]);
  }
}

// Rows of any width, one block per row.
template <class T, int V, bool kCentered>
__global__ void __launch_bounds__(kMaxRowThreads) NormForwardLoopKernel(NormForwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<1, kMaxRowThreads>]);
  const int64_t row = blockIdx.x, offset = row * a.D;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * V, step = static_cast<int64_t>(blockDim.x) * V;
  const W count = static_cast<W>(a.D);
  W mean[1] = {0}, squares[1] = {0};
  if (kCentered || a.sum != nullptr) {
    for (int64_t column = first; column < a.D; column += step) {
      W s[V];
      LoadSum(s, a, offset + column);
      if (a.sum != nullptr) Store(a.sum + offset + column, s);
#pragma unroll
      for (int e = 0; e < V; ++e) mean[0] += s[e];
    }
  }
  // s, where this thread has written it
  const W* const sum = (a.sum != nullptr ? a.sum : a.x) + offset;
  if constexpr (kCentered) {
    SegmentSum(mean, room);
    mean[0] /= count;
  } else {
    mean[0] = 0;
  }
  for (int64_t column = first; column < a.D; column += step) {
    W s[V];
    Load(s, sum + column);
#pragma unroll
    for (int e = 0; e < V; ++e) squares[0] += (s[e] - mean[0]) * (s[e] - mean[0]);
  }
  SegmentSum(squares, room);
  const W rstd = 1 / std::sqrt(squares[0] / count + a.eps);
  if (threadIdx.x == 0) {
    if constexpr (kCentered) a.mean[row] = mean[0];
    a.rstd[row] = rstd;
  }
  for (int64_t column = first; column < a.D; column += step) {
    W s[V];
    Load(s, sum + column);
    Normalise(s, mean[0], rstd);
    StoreNormed(a, offset + column, column, s);
  }
}

template <class T, int V, int kItems, bool kCentered>
__global__ void __launch_bounds__(kRowThreads<V, kItems>, 1) NormBackwardKernel(NormBackwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<2, kMaxRowThreads>]);
  SHARED_ARRAY(W, exchange, [kRowBlockThreads * V]);
  const W count = static_cast<W>(a.D);
  W dweight[kItems][V] = {}, dbias[kItems][V] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.z;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * blockDim.z; base < a.N; base += step) {
    const int64_t row = base + threadIdx.z, offset = row * a.D;
    const bool present = row < a.N;
    const int64_t width = present ? a.D : 0;
    const W rstd = present ? a.rstd[row] : W{0};
    const W mean = kCentered && present ? a.mean[row] : W{0};
    W xhat[kItems][V] = {}, g[kItems][V] = {};
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t column = ColumnOf<V>(i);
      if (column >= width) continue;
      Load(xhat[i], a.x + offset + column);
      Load(g[i], a.dy + offset + column);
    }
    W sums[2] = {0, 0};  // of g and g xhat
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t column = ColumnOf<V>(i);
      if (column >= width) continue;
      W weight[V];
      Load(weight, a.weight + column);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        xhat[i][e] = (xhat[i][e] - mean) * rstd;
        dweight[i][e] += g[i][e] * xhat[i][e];
        dbias[i][e] += g[i][e];
        g[i][e] *= a.one + weight[e];
        sums[0] += g[i][e];
        sums[1] += g[i][e] * xhat[i][e];
      }
    }
    SegmentSum(sums, room);
    const W mean_g = kCentered ? sums[0] / count : W{0}, mean_product = sums[1] / count;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t column = ColumnOf<V>(i);
      if (column >= width) continue;
      W dx[V];
      LoadOr(dx, a.dresidual, offset + column, W{0});
#pragma unroll
      for (int e = 0; e < V; ++e) dx[e] += (g[i][e] - mean_g - xhat[i][e] * mean_product) * rstd;
      Store(a.dx + offset + column, dx);
      if (a.dx_rounded != nullptr) Store(a.dx_rounded + offset + column, dx);
      if (a.y != nullptr) StoreNormed(a, offset + column, column, xhat[i]);
    }
  }
  const int64_t partial = static_cast<int64_t>(blockIdx.x) * a.D;
  StorePartials(a.dweight + partial, dweight, true, a.D, exchange);
  if (a.dbias != nullptr) StorePartials(a.dbias + partial, dbias, true, a.D, exchange);
}

// dx of rows of any width, one block per row. Comes after NormWeightGradientKernel.
template <class T, int V, bool kCentered>
__global__ void __launch_bounds__(kMaxRowThreads) NormBackwardLoopKernel(NormBackwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [kReduceRoom<2, kMaxRowThreads>]);
  const int64_t row = blockIdx.x, offset = row * a.D;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * V, step = static_cast<int64_t>(blockDim.x) * V;
  const W count = static_cast<W>(a.D), rstd = a.rstd[row], mean = kCentered ? a.mean[row] : W{0};
  // g and xhat of V columns
  const auto load = [&](W(&g)[V], W(&xhat)[V], int64_t column) {
    W weight[V];
    Load(g, a.dy + offset + column);
    Load(xhat, a.x + offset + column);
    Load(weight, a.weight + column);
    Normalise(xhat, mean, rstd);
#pragma unroll
    for (int e = 0; e < V; ++e) g[e] *= a.one + weight[e];
  };
  W sums[2] = {0, 0};
  for (int64_t column = first; column < a.D; column += step) {
    W g[V], xhat[V];
    load(g, xhat, column);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      sums[0] += g[e];
      sums[1] += g[e] * xhat[e];
    }
  }
  SegmentSum(sums, room);
  const W mean_g = kCentered ? sums[0] / count : W{0}, mean_product = sums[1] / count;
  for (int64_t column = first; column < a.D; column += step) {
    W g[V], xhat[V], dx[V];
    load(g, xhat, column);
    LoadOr(dx, a.dresidual, offset + column, W{0});
#pragma unroll
    for (int e = 0; e < V; ++e) dx[e] += (g[e] - mean_g - xhat[e] * mean_product) * rstd;
    Store(a.dx + offset + column, dx);
    if (a.dx_rounded != nullptr) Store(a.dx_rounded + offset + column, dx);
    if (a.y != nullptr) StoreNormed(a, offset + column, column, xhat);
  }
}

// Partial sums of dweight and dbias by columns. Grid: (columns / kPartialColumns, partial sums). Block
// (kPartialColumns, kPartialLanes): row of threads l of block p takes rows p * kPartialLanes + l, ...
template <class T, bool kCentered>
__global__ void __launch_bounds__(kPartialColumns* kPartialLanes)
    NormWeightGradientKernel(NormBackwardRows<T> a) {
  using W = Wide<T>;
  SHARED_ARRAY(W, room, [2][kPartialLanes][kPartialColumns]);
  const int lane = static_cast<int>(threadIdx.y), x = static_cast<int>(threadIdx.x);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kPartialColumns + x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kPartialLanes + lane;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kPartialLanes;
  W dweight = 0, dbias = 0;
  for (int64_t row = first; row < a.N && column < a.D; row += step) {
    const W dy = gpu::convert<W>(a.dy[row * a.D + column]);
    const W mean = kCentered ? a.mean[row] : W{0};
    dweight += dy * ((a.x[row * a.D + column] - mean) * a.rstd[row]);
    dbias += dy;
  }
  room[0][lane][x] = dweight;
  room[1][lane][x] = dbias;
  __syncthreads();  // room: every row's writes, then row 0's reads
  if (lane != 0 || column >= a.D) return;
  for (int l = 1; l < kPartialLanes; ++l) {
    dweight += room[0][l][x];
    dbias += room[1][l][x];
  }
  const int64_t at = static_cast<int64_t>(blockIdx.y) * a.D + column;
  a.dweight[at] = dweight;
  if (a.dbias != nullptr) a.dbias[at] = dbias;
}

// ---- config

constexpr int kMaxShortItems = 4;  // vectors per thread of a row of one warp

// ---- launchers

template <bool kCentered, class T>
void LaunchNormForward(Context& context, const char* name, const NormForwardRows<T>& a, bool vectorised) {
  if (a.N == 0) return;
  const int V = vectorised && kRowsInRegisters<T> ? kVecElems<T> : 1;
  const RowLayout layout = PickRowLayout(a.N, 1, a.D, V, kMaxShortItems, kMaxRowThreads);
  DispatchItems<T, kMaxShortItems>(V, layout.items, [&]<int kV, int kItems>() {
    if constexpr (kItems > 0) {
      context.Launch(NormForwardKernel<T, kV, kItems, kCentered>,
                     {.grid = dim3(GridExtent(layout.row_blocks)), .block = layout.block, .name = name}, a);
    } else {
      context.Launch(NormForwardLoopKernel<T, kV, kCentered>,
                     {.grid = dim3(GridExtent(a.N)), .block = dim3(kMaxRowThreads), .name = name}, a);
    }
  });
}

// Adds to dweight and dbias (may be null); a.dweight and a.dbias are set here.
template <bool kCentered, class T>
void LaunchNormBackward(Context& context, const char* name, NormBackwardRows<T> a, Wide<T>* dweight,
                        Wide<T>* dbias, bool vectorised) {
  using W = Wide<T>;
  if (a.N == 0) return;
  const int V = vectorised && kRowsInRegisters<T> ? kVecElems<T> : 1;
  const RowLayout layout = PickRowLayout(a.N, 1, a.D, V, kMaxShortItems, kMaxRowThreads);
  DispatchItems<T, kMaxShortItems>(V, layout.items, [&]<int kV, int kItems>() {
    constexpr int64_t kRowsPerPartial = 64, kMaxPartials = 256;
    const int64_t partials = kItems > 0 ? PersistentBlocks(layout, context.info().num_sms)
                                        : std::min(CeilDiv(a.N, kRowsPerPartial), kMaxPartials);
    const int64_t elems = partials * a.D;
    a.dweight = static_cast<W*>(
        context.Scratch((dbias == nullptr ? 1 : 2) * elems * static_cast<int64_t>(sizeof(W))));
    a.dbias = dbias == nullptr ? nullptr : a.dweight + elems;
    if constexpr (kItems > 0) {
      context.Launch(NormBackwardKernel<T, kV, kItems, kCentered>,
                     {.grid = dim3(GridExtent(partials)), .block = layout.block, .name = name}, a);
    } else {
      context.Launch(NormWeightGradientKernel<T, kCentered>,
                     {.grid = dim3(GridExtent(CeilDiv(a.D, kPartialColumns)), GridExtent(partials)),
                      .block = dim3(kPartialColumns, kPartialLanes),
                      .name = name},
                     a);
      context.Launch(NormBackwardLoopKernel<T, kV, kCentered>,
                     {.grid = dim3(GridExtent(a.N)), .block = dim3(kMaxRowThreads), .name = name}, a);
    }
    AddPartials(context, dweight, a.dweight, partials, a.D);
    if (dbias != nullptr) AddPartials(context, dbias, a.dbias, partials, a.D);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
