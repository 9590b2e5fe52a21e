// y += sum over rows of x: the gradient of a bias.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {
template <class T>
void Sum(const ColumnSumArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], width = a.x.dim[1];
  pool.ParallelForBlocks(width, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      W sum = 0;
      for (int64_t r = 0; r < N; ++r) sum += static_cast<W>(Row<T>(a.x, r)[c]);
      a.y.as<W>()[c] += sum;
    }
  });
}
constexpr int64_t kColumnsPerTask = 128;
static_assert(kColumnsPerTask <= kMaxSumColumns);
}  // namespace

void CpuOps::ColumnSum(const ColumnSumArgs& a) {
  CheckArgs(a);
  const int64_t N = a.x.dim[0], width = a.x.dim[1];
  if (!Fast(a.x.dtype)) {
    return DispatchFloat(a.x.dtype, [&]<class T>() { Sum<T>(a, pool_); });
  }
  float* y = a.y.as<float>();
  pool_.ParallelForBlocks(width, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    if (a.x.dtype == DType::kF32) {
      elementwise_.column_sum_f32(y + begin, a.x.as<float>() + begin, N, end - begin, a.x.row_stride);
    } else {
      elementwise_.column_sum_bf16(y + begin, RawData<uint16_t>(a.x) + begin, N, end - begin, a.x.row_stride);
    }
  });
}

void CpuOps::AddPartials(float* y, const float* partials, int64_t rows, int64_t columns) {
  pool_.ParallelForBlocks(columns, kMaxSumColumns, [&](int64_t begin, int64_t end) {
    elementwise_.column_sum_f32(y + begin, partials + begin, rows, end - begin, columns);
  });
}
}  // namespace carousel::cpu
