// y = xhat scale (+ bias), xhat = (s - mean) rstd, s = x (+ delta), rstd = 1 / sqrt(var(s) + eps) with the
// biased variance. Ba et al. 2016, arXiv:1607.06450. The scale is weight, or 1 + weight. Backward: ds =
// rstd (scale dy - mean(scale dy) - xhat mean(scale dy xhat)), dw = sum of dy xhat. Kernels, grids, shared
// memory and what is read twice: norm_rows.h. Per element in bf16 with a residual: 12 bytes forward, 14
// backward, 16 with the rounded gradient, and 2 more with y.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/norm_rows.h"

namespace carousel::CAROUSEL_DEVICE_NS {

void DeviceOps::LayerNormForward(const LayerNormForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  DispatchFloat(compute, [&]<class T>() {
    using W = Wide<T>;
    const NormForwardRows<T> rows = {.y = a.y.as<T>(),
                                     .mean = a.mean.as<W>(),
                                     .rstd = a.rstd.as<W>(),
                                     .sum = DataOrNull<W>(a.sum),
                                     .x = a.x.as<W>(),
                                     .delta = DataOrNull<T>(a.delta),
                                     .weight = a.weight.as<W>(),
                                     .bias = DataOrNull<W>(a.bias),
                                     .one = static_cast<W>(a.residual_weight ? 1 : 0),
                                     .eps = static_cast<W>(a.eps),
                                     .N = N,
                                     .D = D};
    LaunchNormForward</*kCentered=*/true>(
        context_, "LayerNormForward", rows,
        AllVectorisable(kVecElems<T>, a.y, a.sum, a.x, a.delta, a.weight, a.bias));
  });
}

void DeviceOps::LayerNormBackward(const LayerNormBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.dy.dtype;
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  DispatchFloat(compute, [&]<class T>() {
    using W = Wide<T>;
    const NormBackwardRows<T> rows = {.dx = a.dx.as<W>(),
                                      .dx_rounded = DataOrNull<T>(a.dx_rounded),
                                      .y = DataOrNull<T>(a.y),
                                      .dweight = nullptr,
                                      .dbias = nullptr,
                                      .dy = a.dy.as<T>(),
                                      .dresidual = DataOrNull<W>(a.dresidual),
                                      .x = a.x.as<W>(),
                                      .weight = a.weight.as<W>(),
                                      .bias = DataOrNull<W>(a.bias),
                                      .mean = a.mean.as<W>(),
                                      .rstd = a.rstd.as<W>(),
                                      .one = static_cast<W>(a.residual_weight ? 1 : 0),
                                      .N = N,
                                      .D = D};
    LaunchNormBackward</*kCentered=*/true>(
        context_, "LayerNormBackward", rows, a.dweight.as<W>(), DataOrNull<W>(a.dbias),
        AllVectorisable(kVecElems<T>, a.dx, a.dx_rounded, a.y, a.dy, a.dresidual, a.x, a.weight, a.bias));
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
