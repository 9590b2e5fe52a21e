// The scale of a norm as the fast loops take it.
#pragma once
#include "core/tensor.h"

namespace carousel::cpu {

// Floats that NormScale writes: `width`, or 0 if the weight itself is the scale.
inline int64_t NormScaleRoom(const Tensor& weight, bool residual_weight, int64_t width) {
  return weight.defined() && !residual_weight ? 0 : width;
}
// The scale of every column: the weight itself, or, written to `room`, 1 + weight if residual_weight, or
// ones without a weight.
inline const float* NormScale(const Tensor& weight, bool residual_weight, int64_t width, float* room) {
  if (weight.defined() && !residual_weight) return weight.as<float>();
  for (int64_t c = 0; c < width; ++c) room[c] = weight.defined() ? 1.0f + weight.as<float>()[c] : 1.0f;
  return room;
}
}  // namespace carousel::cpu
