// ConvHalo: the last K-1 inputs of a causal convolution, passed along the sequence axis. Each rank's part of
// a sequence has at least K-1 tokens, so that nothing passes through a rank.
#pragma once
#include "core/comm/mesh.h"

namespace carousel {

class ConvHalo {
 public:
  explicit ConvHalo(const Axis& sequence) : axis_(sequence) {}
  int64_t size() const { return axis_.size; }
  bool is_first() const { return axis_.index == 0; }
  bool is_last() const { return axis_.index + 1 == axis_.size; }

  // Forward: `last` goes to the next rank, `initial` comes from the one before. On the first rank nothing
  // comes, on the last nothing goes: that tensor is not touched. Convolution states (B, K-1, C) wide.
  void PassOn(Tensor initial, Tensor last, CallSite site = CallSite::Here()) const;
  // Backward: `dinitial` goes to the rank before, `dlast` comes from the next one.
  void PassBack(Tensor dlast, Tensor dinitial, CallSite site = CallSite::Here()) const;

 private:
  Axis axis_;
};
}  // namespace carousel
