// Matmul: c = op(a) op(b) (+ c) (+ bias). The products are MatmulEngine's.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/matmul_engine.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS {

void DeviceOps::Matmul(const MatmulArgs& a) {
  CAROUSEL_CHECK(a.c.rank == 2 && a.a.rank == 2 && a.b.rank == 2);
  const DType compute = a.a.dtype, wide = WideOf(compute);
  const int64_t M = a.c.dim[0], N = a.c.dim[1], K = a.transpose_a ? a.a.dim[0] : a.a.dim[1];
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK_SHAPE(a.a, {a.transpose_a ? K : M, a.transpose_a ? M : K});
  CAROUSEL_CHECK_STRIDED(a.b, compute, {a.transpose_b ? N : K, a.transpose_b ? K : N});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {N});
  CAROUSEL_CHECK_MSG(a.c.dtype == compute || a.c.dtype == wide, "c must be of the compute type or wide");
  context_.matmul().Run({.c = {.data = a.c.data, .dtype = a.c.dtype, .row_stride = a.c.row_stride},
                         .a = {.data = a.a.data, .dtype = compute, .row_stride = a.a.row_stride},
                         .b = {.data = a.b.data, .dtype = compute, .row_stride = a.b.row_stride},
                         .bias = {.data = a.bias.data, .dtype = wide},
                         .M = M,
                         .N = N,
                         .K = K,
                         .transpose_a = a.transpose_a,
                         .transpose_b = a.transpose_b,
                         .accumulate = a.accumulate});
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
