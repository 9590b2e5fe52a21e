// c = op(a) op(b) (+ c) (+ bias) without a library, and the passes over rows of c beside the library's
// products.
//
// PlainProductKernel: a tile of kTile x kTile elements of c per block, kThreads threads with kEach x kEach
// elements each. Slices of kDepth terms of both operands pass through shared memory in the type of the sums.
// a is read ceil(N / kTile) times, b ceil(M / kTile) times. Sums run over k in ascending order.
// RowsKernel: kEach elements of a row per thread; reads what is added and writes c once.
#include <algorithm>

#include "core/base/int_math.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kTile = 64, kDepth = 16, kEach = 4, kThreads = 256;
static_assert(kThreads * kEach * kEach == kTile * kTile);
// One more than the tile: threads of a warp that store a transposed slice hit different banks.
constexpr int kPitch = kTile + 1;

// An operand as a matrix of terms: element (i, k) of op(a), element (k, j) of op(b) seen as (j, k).
template <class T>
struct Terms {
  const T* data;
  int64_t outer_stride, k_stride, batch_stride;
};
template <class C, class W>
struct Rows {
  C* c;
  const W* bias;  // may be null
  int64_t M, N, row_stride, batch_stride, bias_batch_stride;
  bool accumulate;
};

// slice[k][i] = terms of `outer` index first + i; 0 beyond the matrix. Threads run along the dimension that
// is contiguous in memory.
template <class T, class W>
__device__ void LoadSlice(W (&slice)[kDepth][kPitch], const Terms<T>& terms, const T* data, int64_t first,
                          int64_t outer_size, int64_t first_k, int64_t K) {
  const bool along_k = terms.k_stride == 1;
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kDepth; e += kThreads) {
    const int i = along_k ? e / kDepth : e % kTile, k = along_k ? e % kDepth : e / kTile;
    const bool inside = first + i < outer_size && first_k + k < K;
    slice[k][i] =
        inside ? gpu::convert<W>(data[(first + i) * terms.outer_stride + (first_k + k) * terms.k_stride])
               : W{0};
  }
}

template <class T, class C, class W>
__global__ void __launch_bounds__(kThreads)
    PlainProductKernel(Rows<C, W> out, Terms<T> a, Terms<T> b, int64_t K, int64_t row_tiles,
                       int64_t column_tiles) {
  SHARED_ARRAY(W, a_slice, [kDepth][kPitch]);
  SHARED_ARRAY(W, b_slice, [kDepth][kPitch]);
  const int64_t tile = static_cast<int64_t>(blockIdx.x) % (row_tiles * column_tiles),
                batch = static_cast<int64_t>(blockIdx.x) / (row_tiles * column_tiles);
  const int64_t first_row = tile / column_tiles * kTile, first_column = tile % column_tiles * kTile;
  const T* a_data = a.data + batch * a.batch_stride;
  const T* b_data = b.data + batch * b.batch_stride;
  // This thread's elements: rows and columns spaced by kTile / kEach.
  constexpr int kSpacing = kTile / kEach;
  const int row = static_cast<int>(threadIdx.x) / kSpacing, column = static_cast<int>(threadIdx.x) % kSpacing;
  W sum[kEach][kEach] = {};
  for (int64_t first_k = 0; first_k < K; first_k += kDepth) {
    LoadSlice<T, W>(a_slice, a, a_data, first_row, out.M, first_k, K);
    LoadSlice<T, W>(b_slice, b, b_data, first_column, out.N, first_k, K);
    __syncthreads();  // the stores of both slices, and their loads by all threads
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      W x[kEach], y[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        x[i] = a_slice[k][row + i * kSpacing];
        y[i] = b_slice[k][column + i * kSpacing];
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum[i][j] += x[i] * y[j];
      }
    }
    __syncthreads();  // the loads of both slices, and the stores of the next ones
  }
  C* c = out.c + batch * out.batch_stride;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t r = first_row + row + i * kSpacing, n = first_column + column + j * kSpacing;
      if (r >= out.M || n >= out.N) continue;
      W value = sum[i][j];
      if (out.bias != nullptr) value += out.bias[batch * out.bias_batch_stride + n];
      C& place = c[r * out.row_stride + n];
      if (out.accumulate) value += gpu::convert<W>(place);
      place = gpu::convert<C>(value);
    }
  }
}

// c = staged (0 if null) (+ c) (+ bias). A block has kEach neighbouring stretches of blockDim.x elements of a
// row; `parts` blocks share a row.
template <class C, class W>
__global__ void __launch_bounds__(kThreads) RowsKernel(Rows<C, W> out, const W* staged, unsigned parts) {
  const int64_t row = blockIdx.x / parts, batch = row / out.M;
  const int64_t first = static_cast<int64_t>(blockIdx.x % parts) * blockDim.x * kEach + threadIdx.x;
  C* c = out.c + batch * out.batch_stride + (row - batch * out.M) * out.row_stride;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t n = first + i * static_cast<int64_t>(blockDim.x);
    if (n >= out.N) return;
    W value = staged == nullptr ? W{0} : staged[row * out.N + n];
    if (out.bias != nullptr) value += out.bias[batch * out.bias_batch_stride + n];
    if (out.accumulate) value += gpu::convert<W>(c[n]);
    c[n] = gpu::convert<C>(value);
  }
}

template <class C, class W>
Rows<C, W> RowsOf(const MatmulProduct& p) {
  return {.c = static_cast<C*>(p.c.data),
          .bias = static_cast<const W*>(p.bias.data),
          .M = p.M,
          .N = p.N,
          .row_stride = p.c.row_stride,
          .batch_stride = p.c.batch_stride,
          .bias_batch_stride = p.bias.batch_stride,
          .accumulate = p.accumulate};
}

template <class C, class W>
void LaunchRows(const MatmulProduct& p, const W* staged, cudaStream_t stream) {
  if (p.batch == 0 || p.M == 0 || p.N == 0) return;
  const int64_t threads = std::min<int64_t>(kThreads, RoundUp(p.N, 32));
  const int64_t parts = CeilDiv(p.N, threads * kEach);
  const gpu::LaunchCfg config = {.grid = dim3(GridExtent(p.batch * p.M * parts)),
                                 .block = dim3(static_cast<unsigned>(threads)),
                                 .stream = stream,
                                 .name = "MatmulRowsKernel"};
  CheckCuda(gpu::launch(RowsKernel<C, W>, config, RowsOf<C, W>(p), staged, static_cast<unsigned>(parts)),
            config.name);
}

template <class T, class C>
void LaunchPlain(const MatmulProduct& p, cudaStream_t stream) {
  using W = Wide<T>;
  const Terms<T> a = {.data = static_cast<const T*>(p.a.data),
                      .outer_stride = p.transpose_a ? 1 : p.a.row_stride,
                      .k_stride = p.transpose_a ? p.a.row_stride : 1,
                      .batch_stride = p.a.batch_stride};
  const Terms<T> b = {.data = static_cast<const T*>(p.b.data),
                      .outer_stride = p.transpose_b ? p.b.row_stride : 1,
                      .k_stride = p.transpose_b ? 1 : p.b.row_stride,
                      .batch_stride = p.b.batch_stride};
  const int64_t row_tiles = CeilDiv(p.M, int64_t{kTile}), column_tiles = CeilDiv(p.N, int64_t{kTile});
  const gpu::LaunchCfg config = {.grid = dim3(GridExtent(p.batch * row_tiles * column_tiles)),
                                 .block = kThreads,
                                 .stream = stream,
                                 .name = "PlainProductKernel"};
  CheckCuda(
      gpu::launch(PlainProductKernel<T, C, W>, config, RowsOf<C, W>(p), a, b, p.K, row_tiles, column_tiles),
      config.name);
}
}  // namespace

void StartRows(const MatmulProduct& p, cudaStream_t stream) {
  switch (p.c.dtype) {
    case DType::kBF16:
      return LaunchRows<bfloat16, float>(p, nullptr, stream);
    case DType::kF32:
      return LaunchRows<float, float>(p, nullptr, stream);
    default:
      return LaunchRows<double, double>(p, nullptr, stream);
  }
}

void FinishRows(const MatmulProduct& p, const float* staged, cudaStream_t stream) {
  p.c.dtype == DType::kBF16 ? LaunchRows<bfloat16, float>(p, staged, stream)
                            : LaunchRows<float, float>(p, staged, stream);
}

void PlainProduct(const MatmulProduct& p, cudaStream_t stream) {
  switch (p.a.dtype) {
    case DType::kBF16:
      return p.c.dtype == DType::kBF16 ? LaunchPlain<bfloat16, bfloat16>(p, stream)
                                       : LaunchPlain<bfloat16, float>(p, stream);
    case DType::kF32:
      return LaunchPlain<float, float>(p, stream);
    default:
      return LaunchPlain<double, double>(p, stream);
  }
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
