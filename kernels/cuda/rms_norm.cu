// y = s rstd weight (+ bias), s = x (+ delta), rstd = 1 / sqrt(mean(s^2) + eps). Zhang & Sennrich 2019,
// arXiv:1910.07467. Backward, with xhat = s rstd: ds = rstd (w dy - xhat mean(w dy xhat)), dw = sum of dy
// xhat. Kernels, grids, shared memory and what is read twice: norm_rows.h. Per element in bf16 with a
// residual: 12 bytes forward, 14 backward, 16 with the rounded gradient, and 2 more with y.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/norm_rows.h"

namespace carousel::CAROUSEL_DEVICE_NS {

void DeviceOps::RmsNormForward(const RmsNormForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  DispatchFloat(compute, [&]<class T>() {
    using W = Wide<T>;
    const NormForwardRows<T> rows = {.y = a.y.as<T>(),
                                     .mean = nullptr,
                                     .rstd = a.rstd.as<W>(),
                                     .sum = DataOrNull<W>(a.sum),
                                     .x = a.x.as<W>(),
                                     .delta = DataOrNull<T>(a.delta),
                                     .weight = a.weight.as<W>(),
                                     .bias = DataOrNull<W>(a.bias),
                                     .one = 0,
                                     .eps = static_cast<W>(a.eps),
                                     .N = N,
                                     .D = D};
    LaunchNormForward</*kCentered=*/false>(
        context_, "RmsNormForward", rows,
        AllVectorisable(kVecElems<T>, a.y, a.sum, a.x, a.delta, a.weight, a.bias));
  });
}

void DeviceOps::RmsNormBackward(const RmsNormBackwardArgs& a) {
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
                                      .mean = nullptr,
                                      .rstd = a.rstd.as<W>(),
                                      .one = 0,
                                      .N = N,
                                      .D = D};
    LaunchNormBackward</*kCentered=*/false>(
        context_, "RmsNormBackward", rows, a.dweight.as<W>(), DataOrNull<W>(a.dbias),
        AllVectorisable(kVecElems<T>, a.dx, a.dx_rounded, a.y, a.dy, a.dresidual, a.x, a.weight, a.bias));
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
