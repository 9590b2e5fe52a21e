// c = op(a) op(b) (+ c) (+ bias): checks, and the specification in plain loops, which serves f64.
#include "kernels/cpu/matmul.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

// Sums over k in ascending order, one row of c at a time, so that rows of b are read as they lie in memory.
template <class T, class C>
void Plain(const MatmulArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t M = a.c.dim[0], N = a.c.dim[1], K = a.transpose_a ? a.a.dim[0] : a.a.dim[1];
  const T* A = a.a.as<T>();
  const T* B = a.b.as<T>();
  const int64_t a_row = a.transpose_a ? 1 : a.a.row_stride, a_k = a.transpose_a ? a.a.row_stride : 1;
  const int64_t b_k = a.transpose_b ? 1 : a.b.row_stride, b_column = a.transpose_b ? a.b.row_stride : 1;
  constexpr int64_t kColumns = 64;
  const int64_t column_blocks = CeilDiv(N, kColumns);
  pool.ParallelFor(M * column_blocks, [&](int64_t task) {
    const int64_t r = task / column_blocks, first = task % column_blocks * kColumns;
    const int64_t count = std::min(kColumns, N - first);
    W sum[kColumns] = {};
    for (int64_t k = 0; k < K; ++k) {
      const W x = static_cast<W>(A[r * a_row + k * a_k]);
      const T* y = B + k * b_k + first * b_column;
      for (int64_t c = 0; c < count; ++c) sum[c] += x * static_cast<W>(y[c * b_column]);
    }
    C* row = Row<C>(a.c, r) + first;
    for (int64_t c = 0; c < count; ++c) {
      if (a.bias.defined()) sum[c] += a.bias.as<W>()[first + c];
      if (a.accumulate) sum[c] += static_cast<W>(row[c]);
      row[c] = static_cast<C>(sum[c]);
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
