// StageLink: what neighbouring stages of the pipe axis give each other: the residual stream forward, its
// gradient backward, both wide and exact. Bytes per micro-batch and border: rows * D * (bytes of wide), once
// in each direction.
#pragma once
#include "core/comm/mesh.h"

namespace carousel {

class StageLink {
 public:
  explicit StageLink(const Axis& pipe) : axis_(pipe) {}
  bool is_first() const { return axis_.index == 0; }
  bool is_last() const { return axis_.index + 1 == axis_.size; }

  // Both halves at once; an undefined tensor leaves its half out. The neighbour makes the matching call with
  // the other half, in any combination. Contiguous tensors that do not overlap. REQUIRES: there is such a
  // stage.
  void WithPrevious(Tensor gradient_out, Tensor stream_in, CallSite site = CallSite::Here()) const {
    CAROUSEL_CHECK(!is_first());
    Exchange(gradient_out, stream_in, axis_.index - 1, site);
  }
  void WithNext(Tensor stream_out, Tensor gradient_in, CallSite site = CallSite::Here()) const {
    CAROUSEL_CHECK(!is_last());
    Exchange(stream_out, gradient_in, axis_.index + 1, site);
  }

 private:
  void Exchange(Tensor out, Tensor in, int64_t neighbour, CallSite site) const {
    const int rank = static_cast<int>(neighbour);
    axis_.communicator->SendRecv(out.defined() ? out.Flatten() : out, rank, in.defined() ? in.Flatten() : in,
                                 rank, site);
  }

  Axis axis_;
};
}  // namespace carousel
