// The border between the residual stream and the parts of a layer that are split by heads or features.
// Outside, each rank of the tensor axis has an equal part of the rows (consecutive tokens), inside it has all
// rows and a part of the columns. The two crossings are conjugate: the gradient of one is the other.
//   enter:  all = GatherTokens(mine);      backward:  dmine = SumTokens(dall)
//   leave:  mine = SumTokens(partial all); backward:  dall = GatherTokens(dmine)
// Bytes sent per rank of t and crossing: (t-1)/t of `all`.
#pragma once
#include "core/comm/mesh.h"

namespace carousel {

class TensorBoundary {
 public:
  explicit TensorBoundary(const Axis& tensor) : axis_(tensor) {}
  int64_t size() const { return axis_.size; }
  int64_t index() const { return axis_.index; }

  // Where the rows of all ranks lie: with one rank `mine` itself, so that nothing is copied (`scratch` may be
  // undefined), otherwise the first size() * (rows of mine) rows of `scratch`.
  Tensor AllRows(Tensor scratch, Tensor mine) const;
  // This rank's rows of `all`.
  Tensor MyRows(Tensor all) const;

  // all (N, W) = the rows of all ranks; mine (N / size, W), may be MyRows(all). Contiguous, any dtype. With
  // one rank `all` must be `mine`, here and in SumTokens.
  void GatherTokens(Tensor all, Tensor mine, CallSite site = CallSite::Here()) const;
  // mine (N / size, W) = this rank's rows of the sum over ranks of `all` (N, W). Contiguous.
  void SumTokens(Tensor mine, Tensor all, CallSite site = CallSite::Here()) const;
  // x = its sum over ranks: for what is small and needed whole. Contiguous.
  void Sum(Tensor x, CallSite site = CallSite::Here()) const;

 private:
  Axis axis_;
};
}  // namespace carousel
