// c = op(a) op(b) (+ c) (+ bias): checks, and the specification in plain loops, which serves f64.
#include "kernels/cpu/matmul.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

constexpr int64_t kBlockRows = 16, kBlockColumns = 64, kBlockDepth = 64;

// Two rows and four vectors of columns of c in registers: sum += x y, over k in ascending order. x (2, depth)
// with rows x_row apart; sum and y with rows kBlockColumns apart.
template <class W>
void AddTile(W* sum, const W* x, int64_t x_row, const W* y, int64_t depth) {
  typedef W Vector __attribute__((vector_size(16)));
  constexpr int64_t kLanes = 16 / sizeof(W);
  Vector tile[2][4];
  for (int r = 0; r < 2; ++r) {
    for (int v = 0; v < 4; ++v)
      tile[r][v] = *reinterpret_cast<const Vector*>(sum + r * kBlockColumns + v * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    for (int v = 0; v < 4; ++v) {
      const Vector b = *reinterpret_cast<const Vector*>(y + k * kBlockColumns + v * kLanes);
      tile[0][v] += x[k] * b;
      tile[1][v] += x[x_row + k] * b;
    }
  }
  for (int r = 0; r < 2; ++r) {
    for (int v = 0; v < 4; ++v) *reinterpret_cast<Vector*>(sum + r * kBlockColumns + v * kLanes) = tile[r][v];
  }
}

// Every element is the sum over k in ascending order, by itself: the specification in the order of its loops,
// in blocks whose operands lie in the cache as AddTile reads them.
template <class T, class C>
void Plain(const MatmulArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  constexpr int64_t kTileColumns = 4 * 16 / sizeof(W);
  const int64_t M = a.c.dim[0], N = a.c.dim[1], K = a.transpose_a ? a.a.dim[0] : a.a.dim[1];
  const T* A = a.a.as<T>();
  const T* B = a.b.as<T>();
  const int64_t a_row = a.transpose_a ? 1 : a.a.row_stride, a_k = a.transpose_a ? a.a.row_stride : 1;
  const int64_t b_k = a.transpose_b ? 1 : a.b.row_stride, b_column = a.transpose_b ? a.b.row_stride : 1;
  const int64_t column_blocks = CeilDiv(N, kBlockColumns);
  pool.ParallelFor(CeilDiv(M, kBlockRows) * column_blocks, [&](int64_t task) {
    const int64_t row0 = task / column_blocks * kBlockRows, rows = std::min(kBlockRows, M - row0);
    const int64_t column0 = task % column_blocks * kBlockColumns,
                  columns = std::min(kBlockColumns, N - column0);
    alignas(16) W sum[kBlockRows * kBlockColumns] = {};
    alignas(16) W y[kBlockDepth * kBlockColumns] = {};  // zeros beyond the last column
    W x[kBlockRows * kBlockDepth] = {};                 // and beyond the last row
    for (int64_t k0 = 0; k0 < K; k0 += kBlockDepth) {
      const int64_t depth = std::min(kBlockDepth, K - k0);
      for (int64_t r = 0; r < rows; ++r) {
        const T* const from = A + (row0 + r) * a_row + k0 * a_k;
        for (int64_t k = 0; k < depth; ++k) x[r * kBlockDepth + k] = static_cast<W>(from[k * a_k]);
      }
      const T* const from = B + k0 * b_k + column0 * b_column;
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t c = 0; c < columns; ++c)
          y[k * kBlockColumns + c] = static_cast<W>(from[k * b_k + c * b_column]);
      }
      for (int64_t r = 0; r < rows; r += 2) {
        for (int64_t c = 0; c < columns; c += kTileColumns)
          AddTile(sum + r * kBlockColumns + c, x + r * kBlockDepth, kBlockDepth, y + c, depth);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      C* const to = Row<C>(a.c, row0 + r) + column0;
      for (int64_t c = 0; c < columns; ++c) {
        W element = sum[r * kBlockColumns + c];
        if (a.bias.defined()) element += a.bias.as<W>()[column0 + c];
        if (a.accumulate) element += static_cast<W>(to[c]);
        to[c] = static_cast<C>(element);
      }
    }
  });
}
}  // namespace

MatmulTiling PickMatmulTiling(int64_t M, int64_t N, int64_t K, bool whole_rows) {
  // Tiles of about 256 x 256 run at the full rate of one thread. A product worth sharing is cut further, down
  // to tiles that still amortise the packing of their operands.
  constexpr int64_t kTile = 256, kMinTile = 64, kAlign = 16, kMinTiles = 8,
                    kMinMultiplyAdds = int64_t{1} << 21;
  const auto split = [](int64_t size, int64_t parts) { return RoundUp(CeilDiv(size, parts), kAlign); };
  int64_t row_parts = CeilDiv(M, kTile), column_parts = whole_rows && M >= kMinTile ? 1 : CeilDiv(N, kTile);
  while (row_parts * column_parts < kMinTiles &&
         M * N * K / (row_parts * column_parts) >= 2 * kMinMultiplyAdds) {
    const int64_t rows = M / row_parts, columns = N / column_parts;
    if (rows >= 2 * kMinTile && (rows >= columns || column_parts == 1)) {
      row_parts *= 2;
    } else if (columns >= 2 * kMinTile && (!whole_rows || M < kMinTile)) {
      column_parts *= 2;
    } else {
      break;
    }
  }
  return {.rows = split(M, row_parts), .columns = column_parts == 1 ? N : split(N, column_parts)};
}

void CpuOps::Matmul(const MatmulArgs& a) {
  CAROUSEL_CHECK(a.c.rank == 2 && a.a.rank == 2 && a.b.rank == 2);
  const DType compute = a.a.dtype, wide = WideOf(compute);
  const int64_t M = a.c.dim[0], N = a.c.dim[1], K = a.transpose_a ? a.a.dim[0] : a.a.dim[1];
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK_SHAPE(a.a, {a.transpose_a ? K : M, a.transpose_a ? M : K});
  CAROUSEL_CHECK_STRIDED(a.b, compute, {a.transpose_b ? N : K, a.transpose_b ? K : N});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {N});
  CAROUSEL_CHECK_MSG(a.c.dtype == compute || a.c.dtype == wide, "c must be of the compute type or wide");
  if (Fast(compute)) return matmul_.Run(a);
  DispatchFloat(compute, [&]<class T>() {
    a.c.dtype == compute ? Plain<T, T>(a, pool_) : Plain<T, Wide<T>>(a, pool_);
  });
}
}  // namespace carousel::cpu
