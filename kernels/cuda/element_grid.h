// One kernel for every op that works element by element. An op is a struct of pointers and row strides with
//   static constexpr int kVec;                 // elements per thread where every tensor allows it
//   template <int V> __device__ void operator()(int64_t row, int64_t column) const;
//                                              // elements column .. column + V - 1 of that row
// A thread does one vector: full occupancy keeps enough accesses in flight, and an element is read and
// written by one thread, so that an output may take the place of an input.
#pragma once
#include "core/base/int_math.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kElementThreads = 256;

// What the tensors of an op are cut into: rows of `width` elements, or one row of all if none has gaps.
struct ElementGrid {
  int64_t rows, width;
  bool vectorised;  // V elements at a time are aligned; the end of a single row may be shorter
};
// `shape` gives rows and columns, and the tensors that have its number of elements its memory; a tensor that
// is not contiguous has its shape, too.
template <class... Tensors>
ElementGrid ElementGridOf(int64_t V, const Tensor& shape, const Tensors&... tensors) {
  if (shape.contiguous() && (tensors.contiguous() && ...)) {
    const auto aligned = [V](const Tensor& t) {
      const int64_t bytes = V * SizeOf(t.dtype) < kAccessBytes ? V * SizeOf(t.dtype) : kAccessBytes;
      return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0;
    };
    return {.rows = 1, .width = shape.num_elems(), .vectorised = aligned(shape) && (aligned(tensors) && ...)};
  }
  return {.rows = shape.dim[0], .width = shape.dim[1], .vectorised = AllVectorisable(V, shape, tensors...)};
}

// Grid: one block per kElementThreads vectors, row by row. Reads and writes every element once.
template <int V, class Op>
__global__ void __launch_bounds__(kElementThreads) ElementKernel(Op op, int64_t rows, int64_t width) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (rows == 1) {
    const int64_t column = i * V;
    if (column + V <= width) {
      op.template operator()<V>(0, column);
    } else {
      for (int64_t c = column; c < width; ++c) op.template operator()<1>(0, c);
    }
    return;
  }
  const int64_t per_row = width / V;
  if (i >= rows * per_row) return;
  int64_t row;
  if (i <= UINT32_MAX && per_row <= UINT32_MAX) {  // a short division
    row = static_cast<uint32_t>(i) / static_cast<uint32_t>(per_row);
  } else {
    row = i / per_row;
  }
  op.template operator()<V>(row, (i - row * per_row) * V);
}

template <class Op>
void LaunchElements(Context& context, const char* name, const ElementGrid& grid, const Op& op) {
  if (grid.rows == 0 || grid.width == 0) return;
  const auto launch = [&](auto kernel, int64_t V) {
    const int64_t vectors = grid.rows * CeilDiv(grid.width, V);
    context.Launch(kernel,
                   {.grid = dim3(GridExtent(CeilDiv(vectors, kElementThreads))),
                    .block = dim3(kElementThreads),
                    .name = name},
                   op, grid.rows, grid.width);
  };
  if (grid.vectorised) {
    launch(ElementKernel<Op::kVec, Op>, Op::kVec);
  } else {
    launch(ElementKernel<1, Op>, 1);
  }
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
