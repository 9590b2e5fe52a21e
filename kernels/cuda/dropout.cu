// y = x / (1 - rate) where an element is kept, 0 where not. Element e = row * W + column of the whole
// activation draws word e % 4 of Philox4x32-10 with counter e / 4 and the call's key, and is kept if that
// word is at least rate * 2^32: the bits of core/base/random.h, so every backend drops the same elements.
// Srivastava et al. 2014. Grid, block: element_grid.h, 8 bf16 or 4 f32 or f64 per thread, one draw per 4
// elements. Shared: none. Reads and writes every element once; no mask in memory.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/element_grid.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/philox.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

template <class T>
struct DropoutOp {
  using W = Wide<T>;
  static constexpr int kVec = sizeof(T) == 2 ? 8 : 4;
  template <int V>
  __device__ void operator()(int64_t row, int64_t column) const {
    const uint64_t element = static_cast<uint64_t>(first + places.WholeRow(row) * width + column);
    W values[V];
    Load(values, x + row * x_stride + column);
    uint32_t words[4];
    if constexpr (V == 1) {
      Philox(words, element / 4, key);
      // a select, not an index: the words stay in registers
      const uint32_t pair = element % 2 == 0 ? words[0] : words[1];
      const uint32_t other = element % 2 == 0 ? words[2] : words[3];
      values[0] = (element % 4 < 2 ? pair : other) >= threshold ? values[0] * scale : W{0};
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (e % 4 == 0) Philox(words, element / 4 + static_cast<uint64_t>(e / 4), key);
        values[e] = words[e % 4] >= threshold ? values[e] * scale : W{0};
      }
    }
    Store(y + row * y_stride + column, values);
  }
  T* y;
  const T* x;
  int64_t y_stride, x_stride;
  // Element (r, c) of the grid is element first + places.WholeRow(r) * width + c of the whole activation:
  // kVec of them begin at a multiple of 4.
  int64_t first;
  int64_t width;
  ElementPlaces places;
  uint64_t key;
  uint32_t threshold;
  W scale;
};
}  // namespace

void DeviceOps::Dropout(const DropoutArgs& a) {
  CheckArgs(a);
  if (a.rate == 0) {
    if (a.y.data != a.x.data) Cast({.y = a.y, .x = a.x});
    return;
  }
  const int64_t N = a.x.dim[0], columns = a.places.num_columns > 0 ? a.places.num_columns : a.x.dim[1];
  DispatchFloat(a.x.dtype, [&]<class T>() {
    constexpr int kVec = DropoutOp<T>::kVec;
    // Rows without gaps, here and in the whole activation, are one row.
    ElementGrid grid = {.rows = N, .width = a.x.dim[1], .vectorised = AllVectorisable(kVec, a.y, a.x)};
    int64_t first = a.places.first_column;
    ElementPlaces places = a.places;
    if (a.places.Gapless(a.x.dim[1])) {
      grid = ElementGridOf(kVec, a.y, a.x);
      first = a.places.first_row * columns;
      places.first_row = 0;
    }
    grid.vectorised &= first % 4 == 0 && (grid.rows == 1 || columns % 4 == 0);
    const DropoutOp<T> op = {.y = a.y.as<T>(),
                             .x = a.x.as<T>(),
                             .y_stride = a.y.row_stride,
                             .x_stride = a.x.row_stride,
                             .first = first,
                             .width = columns,
                             .places = places,
                             .key = a.key,
                             .threshold = static_cast<uint32_t>(a.rate * 0x1p32),
                             .scale = static_cast<Wide<T>>(1 / (1 - a.rate))};
    LaunchElements(context_, "Dropout", grid, op);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
