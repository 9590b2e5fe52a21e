// ColumnSum: y += sum over rows of x, the gradient of a bias.
//
// Grid: (parts of the columns, parts of the rows). Block: kThreads threads, `lanes` of them side by side with
// V columns each, the others below one another with every (kThreads / lanes)-th row of the part. Shared:
// kThreads * V sums. Reads x once, in accesses of 16 bytes where x allows them. A thread adds its rows in
// ascending order; its block adds the threads of a column in theirs, and AddPartials the blocks.
#include <algorithm>

#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/partials.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 256;

template <class T, class W, int V>
__global__ void __launch_bounds__(kThreads)
    ColumnSumKernel(W* partials, const T* x, int64_t row_stride, int64_t N, int64_t width,
                    int64_t rows_per_part, int lanes) {
  SHARED_ARRAY(W, room, [kThreads * V]);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes, row = thread / lanes;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * lanes + lane) * V;
  const int64_t begin = blockIdx.y * rows_per_part, end = min(N, begin + rows_per_part);
  W sum[V] = {};
  if (column < width) {
    const int step = kThreads / lanes;
#pragma unroll 4
    for (int64_t r = begin + row; r < end; r += step) {
      W value[V];
      Load(value, x + r * row_stride + column);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += value[i];
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) room[thread * V + i] = sum[i];
  __syncthreads();  // room: every thread's sums, then their reads
  // element (row, c) of the block's part is room[row * lanes * V + c]
  const int columns = lanes * V;
  for (int c = thread; c < columns; c += kThreads) {
    const int64_t place = static_cast<int64_t>(blockIdx.x) * columns + c;
    if (place >= width) continue;
    W total = room[c];
    for (int other = 1; other < kThreads / lanes; ++other) total += room[other * columns + c];
    partials[blockIdx.y * width + place] = total;
  }
}

template <class T, int V>
void Launch(Context& context, const ColumnSumArgs& a) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], width = a.x.dim[1];
  int lanes = 1;
  while (lanes < kWarpSize && lanes * V < width) lanes *= 2;
  const int64_t column_parts = CeilDiv(width, int64_t{lanes} * V);
  // Enough blocks to fill the device, each with enough rows to pay for its partial sums.
  constexpr int64_t kMinRows = 64, kBlocksPerSm = 8;
  const int64_t most_parts = CeilDiv(N, kMinRows),
                wanted_parts = CeilDiv(kBlocksPerSm * context.info().num_sms, column_parts);
  const int64_t rows_per_part = CeilDiv(N, std::min(most_parts, wanted_parts));
  const int64_t row_parts = CeilDiv(N, rows_per_part);
  W* partials = static_cast<W*>(context.Scratch(row_parts * width * static_cast<int64_t>(sizeof(W))));
  context.Launch(ColumnSumKernel<T, W, V>,
                 {.grid = dim3(GridExtent(column_parts), GridExtent(row_parts)),
                  .block = kThreads,
                  .name = "ColumnSumKernel"},
                 partials, a.x.as<T>(), a.x.row_stride, N, width, rows_per_part, lanes);
  AddPartials(context, a.y.as<W>(), partials, row_parts, width);
}
}  // namespace

void DeviceOps::ColumnSum(const ColumnSumArgs& a) {
  CheckArgs(a);
  const int64_t N = a.x.dim[0], width = a.x.dim[1];
  if (N == 0 || width == 0) return;
  DispatchFloat(a.x.dtype, [&]<class T>() {
    Vectorisable(a.x, kVecElems<T>) ? Launch<T, kVecElems<T>>(context_, a) : Launch<T, 1>(context_, a);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
