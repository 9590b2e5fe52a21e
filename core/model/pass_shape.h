// PassShape: what a model's activations are bound for.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/base/int_math.h"
#include "core/comm/model_axes.h"

namespace carousel {

// Passes of at most B*T tokens in at most B sequences of at most T; and, if evaluation_T > 0, passes without
// gradients of at most N() / evaluation_T sequences of at most evaluation_T. T, evaluation_T and N() are
// those of one rank of the sequence axis (core/model/layer_context.h).
struct PassShape {
  int64_t B = 0, T = 0;
  int64_t evaluation_T = 0;
  ModelAxes axes = {};
  bool gate_stats = false;  // passes may be measured (LanguageModel::Input::gate_stats)

  int64_t N() const { return std::max(B * T, evaluation_T); }
  int64_t longest_T() const { return std::max(T, evaluation_T); }
  // Of the residual stream, on one rank of the tensor axis.
  int64_t stream_rows() const { return DivExact(N(), axes.tensor.size); }
  int64_t most_sequences() const { return evaluation_T > 0 ? std::max(B, N() / evaluation_T) : B; }
  // The largest value of size(B, T), a workspace's size, over the shapes that are bound for.
  template <class Size>
  int64_t LargestWorkspace(const Size& size) const {
    const int64_t bytes = size(B, T);
    return evaluation_T > 0 ? std::max<int64_t>(bytes, size(N() / evaluation_T, evaluation_T)) : bytes;
  }
};
}  // namespace carousel
