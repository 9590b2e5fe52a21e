// Integer helpers on int64_t. All results are exact; wrong use is a CHECK failure.
#pragma once
#include "core/base/check.h"

namespace carousel {

// ceil(a / b) for a >= 0, b > 0.
inline int64_t CeilDiv(int64_t a, int64_t b) {
  CAROUSEL_DCHECK(a >= 0 && b > 0);
  return (a + b - 1) / b;
}
// The smallest multiple of b that is >= a.
inline int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
// a / b where b must divide a.
inline int64_t DivExact(int64_t a, int64_t b) {
  CAROUSEL_CHECK(b != 0 && a % b == 0);
  return a / b;
}
}  // namespace carousel
