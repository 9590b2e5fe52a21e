// What the host parts of the ops share, and the checks of their arguments.
#pragma once
#include <climits>
#include <string>

#include "core/op_args.h"
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

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
