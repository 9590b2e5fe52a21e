// Small helpers shared by the ops: checks of arguments, rows of tensors, the cutting of rows into tasks.
#pragma once
#include <algorithm>

#include "core/base/int_math.h"
#include "core/ops.h"

namespace carousel::cpu {

inline bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF64;
}
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

#define CAROUSEL_CHECK_DTYPE(tensor, type)                                                             \
  CAROUSEL_CHECK_MSG((tensor).dtype == (type), std::string("dtype of " #tensor " is ") +               \
                                                   ::carousel::NameOf((tensor).dtype) + ", must be " + \
                                                   ::carousel::NameOf(type))
// A contiguous tensor of this dtype and shape.
#define CAROUSEL_CHECK_TENSOR(tensor, type, ...)                              \
  do {                                                                        \
    CAROUSEL_CHECK_SHAPE(tensor, __VA_ARGS__);                                \
    CAROUSEL_CHECK_DTYPE(tensor, type);                                       \
    CAROUSEL_CHECK_MSG((tensor).contiguous(), #tensor " must be contiguous"); \
  } while (0)
// The same, where a row stride is allowed.
#define CAROUSEL_CHECK_STRIDED(tensor, type, ...) \
  do {                                            \
    CAROUSEL_CHECK_SHAPE(tensor, __VA_ARGS__);    \
    CAROUSEL_CHECK_DTYPE(tensor, type);           \
  } while (0)
#define CAROUSEL_CHECK_OPTIONAL(tensor, type, ...)                            \
  do {                                                                        \
    if ((tensor).defined()) CAROUSEL_CHECK_TENSOR(tensor, type, __VA_ARGS__); \
  } while (0)
