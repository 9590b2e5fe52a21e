// y = s rstd weight (+ bias), s = x (+ delta), rstd = 1 / sqrt(mean(s^2) + eps). Zhang & Sennrich 2019,
// arXiv:1910.07467. Backward, with xhat = s rstd: ds = rstd (w dy - xhat mean(w dy xhat)), dw = sum of dy
// xhat.
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class T>
void Forward(const RmsNormForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  const W* weight = a.weight.as<W>();
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
      W squares = 0;
      for (int64_t c = 0; c < D; ++c) squares += s[c] * s[c];
      const W rstd = 1 / std::sqrt(squares / static_cast<W>(D) + static_cast<W>(a.eps));
      a.rstd.as<W>()[r] = rstd;
      T* y = Row<T>(a.y, r);
      for (int64_t c = 0; c < D; ++c) {
        y[c] = static_cast<T>(s[c] * rstd * weight[c] + (a.bias.defined() ? a.bias.as<W>()[c] : W{0}));
      }
    }
  });
}

template <class T>
void Backward(const RmsNormBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  const W* weight = a.weight.as<W>();
  const W* rstd = a.rstd.as<W>();
  // Before dx is written: dx may be dresidual and dx_rounded or y dy, but none is x.
  pool.ParallelForBlocks(D, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      W dweight = 0, dbias = 0;
      for (int64_t r = 0; r < N; ++r) {
        const W dy = static_cast<W>(Row<T>(a.dy, r)[c]);
        dweight += dy * (Row<W>(a.x, r)[c] * rstd[r]);
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
      W mean = 0;
      for (int64_t c = 0; c < D; ++c) mean += static_cast<W>(dy[c]) * weight[c] * (x[c] * rstd[r]);
      mean /= static_cast<W>(D);
      W* dx = Row<W>(a.dx, r);
      for (int64_t c = 0; c < D; ++c) {
        const W ds = (static_cast<W>(dy[c]) * weight[c] - x[c] * rstd[r] * mean) * rstd[r];
        dx[c] = ds + (a.dresidual.defined() ? Row<W>(a.dresidual, r)[c] : W{0});
        if (a.dx_rounded.defined()) Row<T>(a.dx_rounded, r)[c] = static_cast<T>(dx[c]);
        if (a.y.defined()) {
          const W bias = a.bias.defined() ? a.bias.as<W>()[c] : W{0};
          Row<T>(a.y, r)[c] = static_cast<T>(x[c] * rstd[r] * weight[c] + bias);
        }
      }
    }
  });
}
}  // namespace

template <class T>
void CpuOps::FastRmsNormForward(const RmsNormForwardArgs& a) {
  const RmsNormForwardRows<T> rows = {.y = RawData<T>(a.y),
                                      .rstd = a.rstd.as<float>(),
                                      .sum = RawDataOrNull<float>(a.sum),
                                      .x = a.x.as<float>(),
                                      .delta = RawDataOrNull<T>(a.delta),
                                      .weight = a.weight.as<float>(),
                                      .bias = RawDataOrNull<float>(a.bias),
                                      .D = a.x.dim[1],
                                      .eps = static_cast<float>(a.eps)};
  pool_.ParallelForBlocks(a.x.dim[0], RowsPerTask(rows.D),
                          [&](int64_t begin, int64_t end) { norm<T>().rms_norm_forward(rows, begin, end); });
}

template <class T>
void CpuOps::FastRmsNormBackward(const RmsNormBackwardArgs& a) {
  const RmsNormBackwardRows<T> rows = {.dx = a.dx.as<float>(),
                                       .dx_rounded = RawDataOrNull<T>(a.dx_rounded),
                                       .y = RawDataOrNull<T>(a.y),
                                       .dy = RawData<T>(a.dy),
                                       .dresidual = RawDataOrNull<float>(a.dresidual),
                                       .x = a.x.as<float>(),
                                       .weight = a.weight.as<float>(),
                                       .bias = RawDataOrNull<float>(a.bias),
                                       .rstd = a.rstd.as<float>(),
                                       .D = a.x.dim[1]};
  const int64_t N = a.x.dim[0], per_partial = RowsPerPartial(N), num_partials = CeilDiv(N, per_partial);
  // One partial sum per block of rows, then their sum.
  float* dweight = ScratchF32(2 * num_partials * rows.D);
  float* dbias = a.dbias.defined() ? dweight + num_partials * rows.D : nullptr;
  pool_.ParallelForBlocks(N, per_partial, [&](int64_t begin, int64_t end) {
    const int64_t offset = begin / per_partial * rows.D;
    norm<T>().rms_norm_backward(rows, begin, end, dweight + offset,
                                dbias == nullptr ? nullptr : dbias + offset);
  });
  AddPartials(a.dweight.as<float>(), dweight, num_partials, rows.D);
  if (dbias != nullptr) AddPartials(a.dbias.as<float>(), dbias, num_partials, rows.D);
}

void CpuOps::RmsNormForward(const RmsNormForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastRmsNormForward<float>(a);
  } else {
    FastRmsNormForward<uint16_t>(a);
  }
}

void CpuOps::RmsNormBackward(const RmsNormBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.dy.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastRmsNormBackward<float>(a);
  } else {
    FastRmsNormBackward<uint16_t>(a);
  }
}
}  // namespace carousel::cpu
