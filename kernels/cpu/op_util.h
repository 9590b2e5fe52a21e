// Small helpers shared by the ops: rows of tensors, the cutting of rows into tasks.
#pragma once
#include <algorithm>

#include "core/base/int_math.h"
#include "core/op_args.h"

namespace carousel::cpu {

// Row r of a rank-2 tensor; T is the tensor's element type.
template <class T>
T* Row(const Tensor& t, int64_t r) {
  return t.as<T>() + r * t.row_stride;
}
// The fast loops see bf16 as its 16 bits.
template <class T>
T* RawData(const Tensor& t) {
  if constexpr (sizeof(T) == 2) {
    return reinterpret_cast<T*>(t.as<bfloat16>());
  } else {
    return t.as<T>();
  }
}
template <class T>
T* RawDataOrNull(const Tensor& t) {
  return t.defined() ? RawData<T>(t) : nullptr;
}

// Rows per task of a loop over N rows of `width` elements: enough work to pay for starting a task, few enough
// rows to keep many threads busy. A function of the shape alone.
inline int64_t RowsPerTask(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1));
}
// Rows per partial sum of a gradient of weights: at most 64 partial sums, of at least 32 rows each.
inline int64_t RowsPerPartial(int64_t N) { return std::max<int64_t>(32, CeilDiv(N, 64)); }
// Elements per task of a flat loop; a multiple of kSquaredNormBlock.
constexpr int64_t kElemsPerTask = 16384;
}  // namespace carousel::cpu
