// Checks of an op's arguments: they abort with the name of the tensor that is wrong.
#pragma once
#include <climits>
#include <string>

#include "core/ops.h"
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

inline bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF64;
}
// An extent of a grid: the number of blocks that the work needs.
inline unsigned GridExtent(int64_t blocks) {
  CAROUSEL_CHECK(blocks >= 1 && blocks <= INT_MAX);
  return static_cast<unsigned>(blocks);
}
// Element (0, 0) as a T*, or null for an optional tensor that was not given.
template <class T>
T* DataOrNull(const Tensor& t) {
  return t.defined() ? t.as<T>() : nullptr;
}
}  // namespace carousel::CAROUSEL_DEVICE_NS

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
