// BlockLinear: y_b = x_b W_b^T (+ bias) for every block b of columns. Backward: dx_b = dy_b W_b, dW_b +=
// dy_b^T x_b, dbias += sum over rows of dy.
//
// Square blocks of 4, 8 and 16 columns have kernels of their own: a thread owns some neighbouring columns
// (kEach) of every row of its part, and keeps what belongs to them in registers: kEach rows of W_b in
// forward; kEach columns of W_b, kEach rows of dW_b and kEach of dbias in backward. Grid: (parts of the
// columns, parts of the rows). Block: kThreads threads, `lanes` of them side by side, the others with parts
// of the rows of their own. No shared memory. Forward reads x and writes y once; backward reads x and dy and
// writes dx once (a group of kSize / kEach neighbouring threads reads the same columns, through the
// first-level cache). Sums over rows are made by thread, in ascending order, then by AddPartials. All other
// blocks are batched products of MatmulEngine.
#include <algorithm>

#include "core/base/int_math.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/matmul_engine.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/partials.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 128;
// Columns of a thread. Backward keeps twice as much per column as forward, too much for 4 columns of 16.
constexpr int kForwardEach = 4;
constexpr int BackwardEach(int64_t size) { return size == 16 ? 2 : 4; }
// Elements per access; 1 where strides or addresses do not allow it.
constexpr int kVec = 4;

// How the threads share a (N, width) matrix.
struct Sharing {
  int64_t N, width, rows_per_part;
  int each, lanes;
};
// The first of this thread's columns, its part of the rows, and whether it has any.
struct Place {
  int64_t column, part, begin, end;
  bool any;
};
__device__ inline Place PlaceOf(const Sharing& s) {
  const int thread = static_cast<int>(threadIdx.x);
  Place p;
  p.column = (static_cast<int64_t>(blockIdx.x) * s.lanes + thread % s.lanes) * s.each;
  p.part = static_cast<int64_t>(blockIdx.y) * (kThreads / s.lanes) + thread / s.lanes;
  p.begin = min(s.N, p.part * s.rows_per_part);
  p.end = min(s.N, p.begin + s.rows_per_part);
  p.any = p.column < s.width && p.begin < p.end;
  return p;
}

// to[i] = from[i], V elements at a time.
template <int V, int kCount, class W, class T>
__device__ void LoadRow(W (&to)[kCount], const T* from) {
#pragma unroll
  for (int i = 0; i < kCount; i += V) {
    W value[V];
    Load(value, from + i);
#pragma unroll
    for (int j = 0; j < V; ++j) to[i + j] = value[j];
  }
}
template <int V, int kCount, class Y, class W>
__device__ void StoreRow(Y* to, const W (&from)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += V) {
    W value[V];
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = from[i + j];
    Store(to + i, value);
  }
}

template <class T, class Y>
struct ForwardRows {
  Y* y;
  const T* x;
  const T* weight;      // (width, kSize)
  const Wide<T>* bias;  // (width), may be null
  int64_t y_stride, x_stride;
};

template <int kSize, int V, class T, class Y>
__global__ void __launch_bounds__(kThreads) BlockLinearForwardKernel(ForwardRows<T, Y> a, Sharing sharing) {
  using W = Wide<T>;
  constexpr int kEach = kForwardEach;
  const Place p = PlaceOf(sharing);
  if (!p.any) return;
  W weight[kEach][kSize], bias[kEach] = {};
#pragma unroll
  for (int j = 0; j < kEach; ++j) LoadRow<1>(weight[j], a.weight + (p.column + j) * kSize);
  if (a.bias != nullptr) LoadRow<1>(bias, a.bias + p.column);
  const T* x = a.x + p.column / kSize * kSize;
  // 16 columns in flight
  constexpr int kRowsAtOnce = 16 / kSize;
  for (int64_t first = p.begin; first < p.end; first += kRowsAtOnce) {
    W in[kRowsAtOnce][kSize];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) LoadRow<V>(in[k], x + min(first + k, p.end - 1) * a.x_stride);
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (first + k >= p.end) break;
      W sum[kEach];
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        sum[j] = 0;
#pragma unroll
        for (int i = 0; i < kSize; ++i) sum[j] += in[k][i] * weight[j][i];
        sum[j] += bias[j];
      }
      StoreRow<V>(a.y + (first + k) * a.y_stride + p.column, sum);
    }
  }
}

template <class T>
struct BackwardRows {
  T* dx;
  Wide<T>* dweight;  // partial sums: (parts, width, kSize)
  Wide<T>* dbias;    // partial sums: (parts, width), may be null
  const T *dy, *x;
  const T* weight;  // (width, kSize)
  int64_t dx_stride, dy_stride, x_stride;
  bool accumulate_dx;
};

template <int kSize, int V, class T>
__global__ void __launch_bounds__(kThreads) BlockLinearBackwardKernel(BackwardRows<T> a, Sharing sharing) {
  using W = Wide<T>;
  constexpr int kEach = BackwardEach(kSize), kOwnVec = V < kEach ? V : kEach;
  const Place p = PlaceOf(sharing);
  if (!p.any) return;
  const int64_t block_column = p.column / kSize * kSize;
  const int first = static_cast<int>(p.column - block_column);  // of this thread's columns in the block
  W weight[kSize][kEach], dweight[kEach][kSize] = {}, dbias[kEach] = {};
#pragma unroll
  for (int o = 0; o < kSize; ++o) LoadRow<1>(weight[o], a.weight + (block_column + o) * kSize + first);
  constexpr int kRowsAtOnce = kSize == 4 ? 2 : 1;
  for (int64_t row = p.begin; row < p.end; row += kRowsAtOnce) {
    W dy[kRowsAtOnce][kSize], x[kRowsAtOnce][kSize], own[kRowsAtOnce][kEach];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      const int64_t r = min(row + k, p.end - 1);
      LoadRow<V>(dy[k], a.dy + r * a.dy_stride + block_column);
      LoadRow<V>(x[k], a.x + r * a.x_stride + block_column);
      // an index known only at run time would put dy into local memory
      if constexpr (kSize == kEach) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) own[k][j] = dy[k][j];
      } else {
        LoadRow<kOwnVec>(own[k], a.dy + r * a.dy_stride + p.column);
      }
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (row + k >= p.end) break;
      T* dx = a.dx + (row + k) * a.dx_stride + p.column;
      W sum[kEach] = {}, product[kEach] = {};
      if (a.accumulate_dx) LoadRow<kOwnVec>(sum, dx);
#pragma unroll
      for (int o = 0; o < kSize; ++o) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) product[j] += dy[k][o] * weight[o][j];
      }
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        sum[j] += product[j];
        dbias[j] += own[k][j];
#pragma unroll
        for (int i = 0; i < kSize; ++i) dweight[j][i] += own[k][j] * x[k][i];
      }
      StoreRow<kOwnVec>(dx, sum);
    }
  }
  W* partial = a.dweight + (p.part * sharing.width + p.column) * kSize;
#pragma unroll
  for (int j = 0; j < kEach; ++j) StoreRow<kVec>(partial + j * kSize, dweight[j]);
  if (a.dbias != nullptr) StoreRow<kEach>(a.dbias + p.part * sharing.width + p.column, dbias);
}

// Parts of at least min_rows rows, about as many as the device has room for.
Sharing PickSharing(const DeviceInfo& info, int64_t N, int64_t width, int each, int64_t min_rows) {
  Sharing s = {.N = N, .width = width, .rows_per_part = 0, .each = each, .lanes = 1};
  while (s.lanes < kThreads && s.lanes * each < width) s.lanes *= 2;
  constexpr int64_t kThreadsPerSm = 2048;
  const int64_t wanted = CeilDiv(info.num_sms * kThreadsPerSm, width / each);
  s.rows_per_part = CeilDiv(N, std::min(CeilDiv(N, min_rows), wanted));
  return s;
}
int64_t NumParts(const Sharing& s) { return CeilDiv(s.N, s.rows_per_part); }
gpu::LaunchCfg ConfigOf(const Sharing& s, const char* name) {
  return {.grid = dim3(GridExtent(CeilDiv(s.width, int64_t{s.lanes} * s.each)),
                       GridExtent(CeilDiv(NumParts(s), int64_t{kThreads} / s.lanes))),
          .block = kThreads,
          .name = name};
}

bool HasOwnKernel(int64_t in, int64_t out) { return in == out && (in == 4 || in == 8 || in == 16); }
// Calls body.operator()<kSize>().
template <class Body>
void DispatchSize(int64_t size, Body&& body) {
  switch (size) {
    case 4:
      return body.template operator()<4>();
    case 8:
      return body.template operator()<8>();
    default:
      return body.template operator()<16>();
  }
}

template <class T, class Y>
void SmallForward(Context& context, const BlockLinearForwardArgs& a) {
  constexpr int64_t kMinRows = 16;
  const Sharing sharing = PickSharing(context.info(), a.x.dim[0], a.x.dim[1], kForwardEach, kMinRows);
  const ForwardRows<T, Y> rows = {.y = a.y.as<Y>(),
                                  .x = a.x.as<T>(),
                                  .weight = a.weight.as<T>(),
                                  .bias = DataOrNull<Wide<T>>(a.bias),
                                  .y_stride = a.y.row_stride,
                                  .x_stride = a.x.row_stride};
  const gpu::LaunchCfg config = ConfigOf(sharing, "BlockLinearForwardKernel");
  DispatchSize(a.weight.dim[1], [&]<int kSize>() {
    AllVectorisable(kVec, a.y, a.x)
        ? context.Launch(BlockLinearForwardKernel<kSize, kVec, T, Y>, config, rows, sharing)
        : context.Launch(BlockLinearForwardKernel<kSize, 1, T, Y>, config, rows, sharing);
  });
}

template <class T>
void SmallBackward(Context& context, const BlockLinearBackwardArgs& a) {
  using W = Wide<T>;
  // partial sums are then at most a twentieth of what is read and written for blocks of 4
  constexpr int64_t kMinRows = 128;
  const int64_t width = a.x.dim[1], size = a.weight.dim[1];
  const Sharing sharing = PickSharing(context.info(), a.x.dim[0], width, BackwardEach(size), kMinRows);
  const int64_t parts = NumParts(sharing);
  W* partials =
      static_cast<W*>(context.Scratch(parts * width * (size + 1) * static_cast<int64_t>(sizeof(W))));
  W* dbias_partials = partials + parts * width * size;
  const BackwardRows<T> rows = {.dx = a.dx.as<T>(),
                                .dweight = partials,
                                .dbias = a.dbias.defined() ? dbias_partials : nullptr,
                                .dy = a.dy.as<T>(),
                                .x = a.x.as<T>(),
                                .weight = a.weight.as<T>(),
                                .dx_stride = a.dx.row_stride,
                                .dy_stride = a.dy.row_stride,
                                .x_stride = a.x.row_stride,
                                .accumulate_dx = a.accumulate_dx};
  const gpu::LaunchCfg config = ConfigOf(sharing, "BlockLinearBackwardKernel");
  DispatchSize(size, [&]<int kSize>() {
    AllVectorisable(kVec, a.dx, a.dy, a.x)
        ? context.Launch(BlockLinearBackwardKernel<kSize, kVec, T>, config, rows, sharing)
        : context.Launch(BlockLinearBackwardKernel<kSize, 1, T>, config, rows, sharing);
  });
  AddPartials(context, a.dweight.as<W>(), partials, parts, width * size);
  if (a.dbias.defined()) AddPartials(context, a.dbias.as<W>(), dbias_partials, parts, width);
}

// The columns of a block, for every block.
MatmulProduct::Operand BlocksOf(const Tensor& t, int64_t columns) {
  return {.data = t.data, .dtype = t.dtype, .row_stride = t.row_stride, .batch_stride = columns};
}
MatmulProduct::Operand Matrices(const Tensor& t, int64_t out, int64_t in) {
  return {.data = t.data, .dtype = t.dtype, .row_stride = in, .batch_stride = out * in};
}
}  // namespace

void DeviceOps::BlockLinearForward(const BlockLinearForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype, wide = WideOf(compute);
  const int64_t N = a.x.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  if (N == 0 || out == 0) return;
  if (HasOwnKernel(in, out)) {
    return DispatchFloat(compute, [&]<class T>() {
      a.y.dtype == compute ? SmallForward<T, T>(context_, a) : SmallForward<T, Wide<T>>(context_, a);
    });
  }
  context_.matmul().Run({.c = BlocksOf(a.y, out),
                         .a = BlocksOf(a.x, in),
                         .b = Matrices(a.weight, out, in),
                         .bias = {.data = a.bias.data, .dtype = wide, .batch_stride = out},
                         .M = N,
                         .N = out,
                         .K = in,
                         .batch = a.num_blocks,
                         .transpose_b = true});
}

void DeviceOps::BlockLinearBackward(const BlockLinearBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype;
  const int64_t N = a.x.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  if (N == 0) return;
  if (HasOwnKernel(in, out)) {
    return DispatchFloat(compute, [&]<class T>() { SmallBackward<T>(context_, a); });
  }
  context_.matmul().Run({.c = BlocksOf(a.dx, in),
                         .a = BlocksOf(a.dy, out),
                         .b = Matrices(a.weight, out, in),
                         .M = N,
                         .N = in,
                         .K = out,
                         .batch = a.num_blocks,
                         .accumulate = a.accumulate_dx});
  context_.matmul().Run({.c = Matrices(a.dweight, out, in),
                         .a = BlocksOf(a.dy, out),
                         .b = BlocksOf(a.x, in),
                         .M = out,
                         .N = in,
                         .K = N,
                         .batch = a.num_blocks,
                         .transpose_a = true,
                         .accumulate = true});
  if (a.dbias.defined()) ColumnSum({.y = a.dbias, .x = a.dy});
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
