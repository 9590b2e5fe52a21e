// y = xhat scale (+ bias), xhat = (s - mean) rstd, s = x (+ delta), rstd = 1 / sqrt(var(s) + eps) with the
// biased variance. Ba et al. 2016, arXiv:1607.06450. The scale is weight, or 1 + weight. Backward: ds =
// rstd (scale dy - mean(scale dy) - xhat mean(scale dy xhat)), dw = sum of dy xhat.
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/norm_scale.h"
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
        if (a.dx_rounded.defined()) Row<T>(a.dx_rounded, r)[c] = static_cast<T>(dx[c]);
        if (a.y.defined()) {
          const W xhat = (x[c] - mean[r]) * rstd[r], bias = a.bias.defined() ? a.bias.as<W>()[c] : W{0};
          Row<T>(a.y, r)[c] = static_cast<T>(xhat * (one + weight[c]) + bias);
        }
      }
    }
  });
}
}  // namespace

template <class T>
void CpuOps::FastLayerNormForward(const LayerNormForwardArgs& a) {
  const int64_t D = a.x.dim[1];
  float* scale_room = ScratchF32(NormScaleRoom(a.weight, a.residual_weight, D));
  const LayerNormForwardRows<T> rows = {.y = RawData<T>(a.y),
                                        .mean = a.mean.as<float>(),
                                        .rstd = a.rstd.as<float>(),
                                        .sum = RawDataOrNull<float>(a.sum),
                                        .x = a.x.as<float>(),
                                        .delta = RawDataOrNull<T>(a.delta),
                                        .scale = NormScale(a.weight, a.residual_weight, D, scale_room),
                                        .bias = RawDataOrNull<float>(a.bias),
                                        .D = D,
                                        .eps = static_cast<float>(a.eps)};
  pool_.ParallelForBlocks(a.x.dim[0], RowsPerTask(D), [&](int64_t begin, int64_t end) {
    norm<T>().layer_norm_forward(rows, begin, end);
  });
}

template <class T>
void CpuOps::FastLayerNormBackward(const LayerNormBackwardArgs& a) {
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  const int64_t per_partial = RowsPerPartial(N), num_partials = CeilDiv(N, per_partial);
  // One partial sum per block of rows, then their sum.
  float* dweight = ScratchF32(2 * num_partials * D + NormScaleRoom(a.weight, a.residual_weight, D));
  float* dbias = a.dbias.defined() ? dweight + num_partials * D : nullptr;
  float* scale_room = dweight + 2 * num_partials * D;
  const LayerNormBackwardRows<T> rows = {.dx = a.dx.as<float>(),
                                         .dx_rounded = RawDataOrNull<T>(a.dx_rounded),
                                         .y = RawDataOrNull<T>(a.y),
                                         .dy = RawData<T>(a.dy),
                                         .dresidual = RawDataOrNull<float>(a.dresidual),
                                         .x = a.x.as<float>(),
                                         .scale = NormScale(a.weight, a.residual_weight, D, scale_room),
                                         .bias = RawDataOrNull<float>(a.bias),
                                         .mean = a.mean.as<float>(),
                                         .rstd = a.rstd.as<float>(),
                                         .D = D};
  pool_.ParallelForBlocks(N, per_partial, [&](int64_t begin, int64_t end) {
    const int64_t offset = begin / per_partial * D;
    norm<T>().layer_norm_backward(rows, begin, end, dweight + offset,
                                  dbias == nullptr ? nullptr : dbias + offset);
  });
  AddPartials(a.dweight.as<float>(), dweight, num_partials, D);
  if (dbias != nullptr) AddPartials(a.dbias.as<float>(), dbias, num_partials, D);
}

void CpuOps::LayerNormForward(const LayerNormForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastLayerNormForward<float>(a);
  } else {
    FastLayerNormForward<uint16_t>(a);
  }
}

void CpuOps::LayerNormBackward(const LayerNormBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.dy.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastLayerNormBackward<float>(a);
  } else {
    FastLayerNormBackward<uint16_t>(a);
  }
}
}  // namespace carousel::cpu
