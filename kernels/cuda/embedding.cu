// EmbeddingForward: y[n] = weight[ids[n]]. Of a part of the table (first_id), ids of other rows give zeros.
//
// Grid: rows. Block: `columns` threads along a row, V elements each at a time, and kThreads / columns rows.
// No shared memory. Reads a row of weight per token, in accesses of 16 bytes where D allows them; writes y
// once.
#include <algorithm>

#include "core/base/int_math.h"
#include "kernels/cuda/check_ids.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 256;

template <class T, class W, int V>
__global__ void __launch_bounds__(kThreads)
    EmbeddingForwardKernel(W* y, const T* weight, const int32_t* ids, int64_t first_id, int64_t vocabulary,
                           int64_t N, int64_t D) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (n >= N) return;
  const int64_t row = ids[n] - first_id;
  const bool here = row >= 0 && row < vocabulary;
  const T* from = weight + (here ? row : 0) * D;
  W* to = y + n * D;
#pragma unroll 2
  for (int64_t c = threadIdx.x * V; c < D; c += static_cast<int64_t>(blockDim.x) * V) {
    W value[V];
    Load(value, from + c);
    if (!here) {
#pragma unroll
      for (int i = 0; i < V; ++i) value[i] = 0;
    }
    Store(to + c, value);
  }
}

template <class T, int V>
void Launch(Context& context, const EmbeddingForwardArgs& a) {
  const int64_t N = a.ids.dim[0], D = a.weight.dim[1];
  int columns = 1;
  while (columns < kThreads && columns * V < D) columns *= 2;
  const int rows = kThreads / columns;
  context.Launch(EmbeddingForwardKernel<T, Wide<T>, V>,
                 {.grid = dim3(GridExtent(CeilDiv(N, rows))),
                  .block = dim3(columns, rows),
                  .name = "EmbeddingForwardKernel"},
                 a.y.as<Wide<T>>(), a.weight.as<T>(), a.ids.as<int32_t>(), std::max<int64_t>(a.first_id, 0),
                 a.weight.dim[0], N, D);
}
}  // namespace

void DeviceOps::EmbeddingForward(const EmbeddingForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.weight.dtype;
  const int64_t V = a.weight.dim[0], D = a.weight.dim[1], N = a.ids.dim[0];
  if (a.first_id < 0) CheckIds(context_, a.ids.as<int32_t>(), N, V, IdKind::kToken);
  if (N == 0 || D == 0) return;
  DispatchFloat(compute, [&]<class T>() {
    AllVectorisable(kVecElems<T>, a.weight, a.y) ? Launch<T, kVecElems<T>>(context_, a)
                                                 : Launch<T, 1>(context_, a);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
