// PassShape: what a model's activations are bound for.
#pragma once
#include <algorithm>
#include <cstdint>

namespace carousel {

// Passes of at most B*T tokens in at most B sequences of at most T; and, if evaluation_T > 0, passes without
// gradients of at most N() / evaluation_T sequences of at most evaluation_T.
struct PassShape {
  int64_t B = 0, T = 0;
  int64_t evaluation_T = 0;

  int64_t N() const { return std::max(B * T, evaluation_T); }
  int64_t longest_T() const { return std::max(T, evaluation_T); }
  // The largest value of size(B, T), a workspace's size, over the shapes that are bound for.
  template <class Size>
  int64_t LargestWorkspace(const Size& size) const {
    const int64_t bytes = size(B, T);
    return evaluation_T > 0 ? std::max<int64_t>(bytes, size(N() / evaluation_T, evaluation_T)) : bytes;
  }
};
}  // namespace carousel
