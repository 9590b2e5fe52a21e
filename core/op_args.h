// What every backend checks of an op's arguments (core/ops.h) before it runs: dtypes, shapes, contiguity, and
// which optional tensors go together. They abort with the name of the tensor that is wrong.
#pragma once
#include <string>

#include "core/ops.h"

namespace carousel {

inline bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF64;
}

void CheckArgs(const AddArgs& a);
void CheckArgs(const ColumnSumArgs& a);
void CheckArgs(const EmbeddingForwardArgs& a);
void CheckArgs(const EmbeddingBackwardArgs& a);
void CheckArgs(const RmsNormForwardArgs& a);
void CheckArgs(const RmsNormBackwardArgs& a);
void CheckArgs(const LayerNormForwardArgs& a);
void CheckArgs(const LayerNormBackwardArgs& a);
void CheckArgs(const SoftCapForwardArgs& a);
void CheckArgs(const SoftCapBackwardArgs& a);
void CheckArgs(const HeadNormGateForwardArgs& a);
void CheckArgs(const HeadNormGateBackwardArgs& a);
void CheckArgs(const DropoutArgs& a);
void CheckArgs(const GluForwardArgs& a);
void CheckArgs(const GluBackwardArgs& a);
void CheckArgs(const BlockLinearForwardArgs& a);
void CheckArgs(const BlockLinearBackwardArgs& a);
void CheckArgs(const CausalConvForwardArgs& a);
void CheckArgs(const CausalConvBackwardArgs& a);
void CheckArgs(const CrossEntropyArgs& a);
void CheckArgs(const CrossEntropyStatsArgs& a);
void CheckArgs(const CrossEntropyFromStatsArgs& a);
void CheckArgs(const AdamWArgs& a);
void CheckArgs(const TensorStatsArgs& a);
void CheckArgs(const DigestArgs& a);
}  // namespace carousel

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
