// A layer's whole backward as its block runs it, for tests that have the input at hand.
#pragma once
#include "core/model/layer_context.h"
#include "core/tensor.h"

namespace carousel::testing {

template <class Layer>
void LayerBackward(const Layer& layer, const LayerContext& ctx, const typename Layer::Memory& memory,
                   Tensor dx, Tensor dy, Tensor x) {
  if constexpr (requires { &Layer::WeightGradients; }) {
    layer.Backward(ctx, memory, {.dx = dx, .dy = dy});
    layer.WeightGradients(ctx, memory, x);
  } else {
    layer.Backward(ctx, memory, {.dx = dx, .dy = dy, .x = x});
  }
}
}  // namespace carousel::testing
