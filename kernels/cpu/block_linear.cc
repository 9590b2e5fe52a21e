// y_b = x_b W_b^T (+ bias) for every block b of columns. Backward: dx_b = dy_b W_b, dW_b += dy_b^T x_b,
// dbias += sum over rows of dy.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class T, class Y>
void Forward(const BlockLinearForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.y.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  pool.ParallelForBlocks(N, RowsPerTask(a.num_blocks * out * in), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < a.num_blocks * out; ++c) {
        const T* x = Row<T>(a.x, r) + c / out * in;
        const T* weight = a.weight.as<T>() + c * in;
        W sum = 0;
        for (int64_t i = 0; i < in; ++i) sum += static_cast<W>(x[i]) * static_cast<W>(weight[i]);
        if (a.bias.defined()) sum += a.bias.as<W>()[c];
        Row<Y>(a.y, r)[c] = static_cast<Y>(sum);
      }
    }
  });
}

template <class T>
void Backward(const BlockLinearBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.dy.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  pool.ParallelForBlocks(N, RowsPerTask(a.num_blocks * out * in), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < a.num_blocks * in; ++c) {
        const int64_t block = c / in;
        const T* dy = Row<T>(a.dy, r) + block * out;
        const T* weight = a.weight.as<T>() + block * out * in + c % in;
        W sum = 0;
        for (int64_t o = 0; o < out; ++o) sum += static_cast<W>(dy[o]) * static_cast<W>(weight[o * in]);
        T& dx = Row<T>(a.dx, r)[c];
        dx = static_cast<T>(sum + (a.accumulate_dx ? static_cast<W>(dx) : W{0}));
      }
    }
  });
  pool.ParallelFor(a.num_blocks * out, [&](int64_t c) {
    for (int64_t i = 0; i < in; ++i) {
      W sum = 0;
      for (int64_t r = 0; r < N; ++r) {
        sum += static_cast<W>(Row<T>(a.dy, r)[c]) * static_cast<W>(Row<T>(a.x, r)[c / out * in + i]);
      }
      a.dweight.as<W>()[c * in + i] += sum;
    }
    if (!a.dbias.defined()) return;
    W sum = 0;
    for (int64_t r = 0; r < N; ++r) sum += static_cast<W>(Row<T>(a.dy, r)[c]);
    a.dbias.as<W>()[c] += sum;
  });
}
}  // namespace

void CpuOps::BlockLinearForward(const BlockLinearForwardArgs& a) {
  const DType compute = a.x.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK(a.x.rank == 2 && a.weight.rank == 2 && a.num_blocks >= 1);
  const int64_t N = a.x.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  CAROUSEL_CHECK_MSG(a.y.dtype == compute || a.y.dtype == wide, "y must be of the compute type or wide");
  CAROUSEL_CHECK_SHAPE(a.y, {N, a.num_blocks * out});
  CAROUSEL_CHECK_STRIDED(a.x, compute, {N, a.num_blocks * in});
  CAROUSEL_CHECK_TENSOR(a.weight, compute, {a.num_blocks * out, in});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {a.num_blocks * out});
  DispatchFloat(compute, [&]<class T>() {
    a.y.dtype == compute ? Forward<T, T>(a, pool_) : Forward<T, Wide<T>>(a, pool_);
  });
}

void CpuOps::BlockLinearBackward(const BlockLinearBackwardArgs& a) {
  const DType compute = a.x.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK(a.x.rank == 2 && a.weight.rank == 2 && a.num_blocks >= 1);
  const int64_t N = a.x.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  CAROUSEL_CHECK_STRIDED(a.dx, compute, {N, a.num_blocks * in});
  CAROUSEL_CHECK_TENSOR(a.dweight, wide, {a.num_blocks * out, in});
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {a.num_blocks * out});
  CAROUSEL_CHECK_STRIDED(a.dy, compute, {N, a.num_blocks * out});
  CAROUSEL_CHECK_STRIDED(a.x, compute, {N, a.num_blocks * in});
  CAROUSEL_CHECK_TENSOR(a.weight, compute, {a.num_blocks * out, in});
  DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
}
}  // namespace carousel::cpu
