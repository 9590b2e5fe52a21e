// PassShape: what a model's activations are bound for.
#pragma once
#include <algorithm>
#include <cstdint>

namespace carousel {

// Passes of at most B*T tokens in sequences of at most T; and, if longest_T > T, passes without gradients of
// at most N() tokens in sequences of at most longest_T.
struct PassShape {
  int64_t B = 0, T = 0;
  int64_t longest_T = 0;

  int64_t N() const { return std::max(B * T, longest_T); }
  // The largest value of size(B, T), a workspace's size, over the shapes that are bound for.
  template <class Size>
  int64_t LargestWorkspace(const Size& size) const {
    const int64_t bytes = size(B, T);
    return longest_T > T ? std::max<int64_t>(bytes, size(N() / longest_T, longest_T)) : bytes;
  }
};
}  // namespace carousel
