// Where the elements of this rank's part of a parameter lie in the whole parameter: pure functions of shapes.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "core/comm/placement.h"

namespace carousel {

// The part of a parameter that one rank of the tensor axis holds. Local tensors are row-major and contiguous.
struct ParamPart {
  std::vector<int64_t> shape;        // of the whole parameter: 1 or 2 dims
  std::vector<int64_t> local_shape;  // of this rank's part
  Placement placement;
  int64_t ranks = 1, rank = 0;  // of the tensor axis

  // REQUIRES: CanSplit.
  static ParamPart Of(const std::vector<int64_t>& shape, Placement placement, int64_t ranks, int64_t rank);
  // Whether the dim that is split divides into placement.parts * ranks.
  static bool CanSplit(const std::vector<int64_t>& shape, Placement placement, int64_t ranks);
  int64_t local_elems() const;
};

// Elements [offset, offset + size) of the whole parameter (as many dims as it has) that lie in the local part
// from element `local_begin` on, rows `local_stride` elements apart (1 dim: contiguous).
struct ParamBox {
  std::vector<int64_t> offset, size;
  int64_t local_begin = 0;
  int64_t local_stride = 0;
  int64_t num_elems() const;
};
// The local elements [begin, begin + count) as boxes of the whole parameter, in no more boxes than needed
// (one for a whole part that is not split into several parts).
std::vector<ParamBox> BoxesOfLocalRange(const ParamPart& part, int64_t begin, int64_t count);

// The same as runs of elements that are contiguous in both: fn(first element of the whole parameter
// (row-major), first local element, count), in rising order of the local element.
void ForEachLocalRun(const ParamPart& part, int64_t begin, int64_t count,
                     const std::function<void(int64_t elem, int64_t local_elem, int64_t count)>& fn);
}  // namespace carousel
