// Gradients of weights: every block of a kernel leaves its partial sums in scratch memory, and a second
// kernel adds them to the gradient in the blocks' order. No atomics: the bits depend on the shape and the
// device alone.
#pragma once
#include "core/base/int_math.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kPartialColumns = 32, kPartialLanes = 8;

// sums[c] += partials[0][c] + partials[1][c] + ...; partials (count, width). Grid: one block per
// kPartialColumns columns. Block (kPartialColumns, kPartialLanes): row of threads l adds partials l, l +
// kPartialLanes, ..., then the rows are added in order. Shared: kPartialLanes * kPartialColumns elements.
template <class W>
__global__ void __launch_bounds__(kPartialColumns* kPartialLanes)
    AddPartialsKernel(W* sums, const W* partials, int64_t count, int64_t width) {
  SHARED_ARRAY(W, room, [kPartialLanes][kPartialColumns]);
  const int lane = static_cast<int>(threadIdx.y), column = static_cast<int>(threadIdx.x);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kPartialColumns + column;
  W sum = 0;
  if (c < width) {
#pragma unroll 4
    for (int64_t p = lane; p < count; p += kPartialLanes) sum += partials[p * width + c];
  }
  room[lane][column] = sum;
  __syncthreads();  // room: every row's write, then row 0's reads
  if (lane != 0 || c >= width) return;
#pragma unroll
  for (int l = 1; l < kPartialLanes; ++l) sum += room[l][column];
  sums[c] += sum;
}

// Enqueues the addition of `count` rows of `width` partial sums to `sums`.
template <class W>
void AddPartials(Context& context, W* sums, const W* partials, int64_t count, int64_t width) {
  if (count == 0 || width == 0) return;
  context.Launch(AddPartialsKernel<W>,
                 {.grid = dim3(GridExtent(CeilDiv(width, kPartialColumns))),
                  .block = dim3(kPartialColumns, kPartialLanes),
                  .name = "AddPartials"},
                 sums, partials, count, width);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
