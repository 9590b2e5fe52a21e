#include "core/comm/conv_halo.h"

namespace carousel {

// A chain: every rank sends and receives at once, the ends only one of the two.
void ConvHalo::PassOn(Tensor initial, Tensor last, CallSite site) const {
  if (axis_.size == 1) return;
  const int here = static_cast<int>(axis_.index);
  axis_.communicator->SendRecv(is_last() ? Tensor() : last, here + 1, is_first() ? Tensor() : initial,
                               here - 1, site);
}

void ConvHalo::PassBack(Tensor dlast, Tensor dinitial, CallSite site) const {
  if (axis_.size == 1) return;
  const int here = static_cast<int>(axis_.index);
  axis_.communicator->SendRecv(is_first() ? Tensor() : dinitial, here - 1, is_last() ? Tensor() : dlast,
                               here + 1, site);
}
}  // namespace carousel
