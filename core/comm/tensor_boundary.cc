#include "core/comm/tensor_boundary.h"

#include "core/base/int_math.h"

namespace carousel {

Tensor TensorBoundary::AllRows(Tensor scratch, Tensor mine) const {
  return size() == 1 ? mine : scratch.Rows(0, size() * mine.dim[0]);
}

Tensor TensorBoundary::MyRows(Tensor all) const {
  const int64_t rows = DivExact(all.dim[0], size());
  return all.Rows(index() * rows, rows);
}

void TensorBoundary::GatherTokens(Tensor all, Tensor mine, CallSite site) const {
  CAROUSEL_CHECK_EQ(all.num_elems(), mine.num_elems() * size());
  if (size() == 1) {
    CAROUSEL_CHECK(all.data == mine.data);
    return;
  }
  axis_.communicator->AllGather(all.Flatten(), mine.Flatten(), site);
}

void TensorBoundary::SumTokens(Tensor mine, Tensor all, CallSite site) const {
  CAROUSEL_CHECK_EQ(all.num_elems(), mine.num_elems() * size());
  if (size() == 1) {
    CAROUSEL_CHECK(all.data == mine.data);
    return;
  }
  axis_.communicator->ReduceScatterSum(mine.Flatten(), all.Flatten(), site);
}

void TensorBoundary::Sum(Tensor x, CallSite site) const {
  if (size() > 1) axis_.communicator->AllReduceSum(x.Flatten(), site);
}
}  // namespace carousel
