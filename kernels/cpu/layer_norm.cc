// y = xhat scale (+ bias), xhat = (s - mean) rstd, s = x (+ delta), rstd = 1 / sqrt(var(s) + eps) with the
// biased variance. Ba et al. 2016, arXiv:1607.06450. The scale is weight, or 1 + weight. Backward: ds =
// rstd (scale dy - mean(scale dy) - xhat mean(scale dy xhat)), dw = sum of dy xhat.
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class T>
void Forward(const LayerNormForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  const W* weight = a.weight.as<W>();
  const W one = a.residual_weight ? W{1} : W{0};
  pool.ParallelForBlocks(N, RowsPerTask(D), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const W* s = Row<W>(a.x, r);
      if (a.sum.defined()) {
        W* sum = Row<W>(a.sum, r);
        for (int64_t c = 0; c < D; ++c) {
          sum[c] = s[c] + (a.delta.defined() ? static_cast<W>(Row<T>(a.delta, r)[c]) : W{0});
        }
        s = sum;
      }
      W mean = 0, variance = 0;
      for (int64_t c = 0; c < D; ++c) mean += s[c];
      mean /= static_cast<W>(D);
      for (int64_t c = 0; c < D; ++c) variance += (s[c] - mean) * (s[c] - mean);
      const W rstd = 1 / std::sqrt(variance / static_cast<W>(D) + static_cast<W>(a.eps));
      a.mean.as<W>()[r] = mean;
      a.rstd.as<W>()[r] = rstd;
      T* y = Row<T>(a.y, r);
      for (int64_t c = 0; c < D; ++c) {
        const W xhat = (s[c] - mean) * rstd;
        y[c] = static_cast<T>(xhat * (one + weight[c]) + (a.bias.defined() ? a.bias.as<W>()[c] : W{0}));
      }
    }
  });
}

template <class T>
void Backward(const LayerNormBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  const W* weight = a.weight.as<W>();
  const W* mean = a.mean.as<W>();
  const W* rstd = a.rstd.as<W>();
  const W one = a.residual_weight ? W{1} : W{0};
  pool.ParallelForBlocks(D, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      W dweight = 0, dbias = 0;
      for (int64_t r = 0; r < N; ++r) {
        const W dy = static_cast<W>(Row<T>(a.dy, r)[c]);
        dweight += dy * ((Row<W>(a.x, r)[c] - mean[r]) * rstd[r]);
        dbias += dy;
      }
      a.dweight.as<W>()[c] += dweight;
      if (a.dbias.defined()) a.dbias.as<W>()[c] += dbias;
    }
  });
  pool.ParallelForBlocks(N, RowsPerTask(D), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const W* x = Row<W>(a.x, r);
      const T* dy = Row<T>(a.dy, r);
      W sum = 0, products = 0;
      for (int64_t c = 0; c < D; ++c) {
        const W dxhat = static_cast<W>(dy[c]) * (one + weight[c]);
        sum += dxhat;
        products += dxhat * ((x[c] - mean[r]) * rstd[r]);
      }
      sum /= static_cast<W>(D);
      products /= static_cast<W>(D);
      W* dx = Row<W>(a.dx, r);
      for (int64_t c = 0; c < D; ++c) {
        const W dxhat = static_cast<W>(dy[c]) * (one + weight[c]);
        const W ds = (dxhat - sum - (x[c] - mean[r]) * rstd[r] * products) * rstd[r];
        dx[c] = ds + (a.dresidual.defined() ? Row<W>(a.dresidual, r)[c] : W{0});
      }
    }
  });
}
}  // namespace

void CpuOps::LayerNormForward(const LayerNormForwardArgs& a) {
  const DType compute = a.y.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  CAROUSEL_CHECK_TENSOR(a.y, compute, {N, D});
  CAROUSEL_CHECK_TENSOR(a.mean, wide, {N});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N});
  CAROUSEL_CHECK_OPTIONAL(a.sum, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.x, wide, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.delta, compute, {N, D});
  CAROUSEL_CHECK_MSG(a.sum.defined() || !a.delta.defined(), "delta needs a place for the sum");
  CAROUSEL_CHECK_TENSOR(a.weight, wide, {D});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {D});
  DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
}

void CpuOps::LayerNormBackward(const LayerNormBackwardArgs& a) {
  const DType compute = a.dy.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  CAROUSEL_CHECK_TENSOR(a.dx, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.dweight, wide, {D});
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {D});
  CAROUSEL_CHECK_TENSOR(a.dy, compute, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.dresidual, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.x, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.weight, wide, {D});
  CAROUSEL_CHECK_TENSOR(a.mean, wide, {N});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N});
  DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
}
}  // namespace carousel::cpu
