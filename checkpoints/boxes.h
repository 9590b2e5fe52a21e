// Axis-aligned boxes of row-major tensors. Ranks own and files hold boxes (a shard of a flat optimizer buffer
// is a few of them), so that any other way to cut a tensor can be read from them. Pure functions.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace carousel {

// Elements with offset[d] <= index[d] < offset[d] + size[d]. As many dims as the tensor; a scalar has none
// and is one box without dims.
struct Box {
  std::vector<int64_t> offset, size;
  int64_t num_elems() const;
  bool operator==(const Box&) const = default;
};

// Elements of a shape of non-negative dims; -1 if a dim is negative or the product does not fit.
int64_t NumElems(const std::vector<int64_t>& shape);

// The flat range [begin, begin + count) as boxes, in row-major order: each is contiguous in the tensor's
// memory, and there are at most max(1, 2 * dims - 1). None if count is 0.
// REQUIRES: 0 <= begin, begin + count <= NumElems(shape).
std::vector<Box> BoxesOfRange(const std::vector<int64_t>& shape, int64_t begin, int64_t count);

// Flat index in the tensor of the box's first element. REQUIRES: the box is not empty and lies within.
int64_t FirstElem(const std::vector<int64_t>& shape, const Box& box);

// False if the boxes have no element in common.
bool Intersect(const Box& a, const Box& b, Box* common);

// Whether the box has elements and all of them lie within the shape. Trusts nothing.
bool BoxFits(const std::vector<int64_t>& shape, const Box& box);

// Whether boxes that all fit cover every element of the shape exactly once. O(2^dims * n log n) for n boxes,
// wherever they lie.
bool BoxesTile(const std::vector<int64_t>& shape, const std::vector<Box>& boxes);

// Calls fn(elem, box_elem, count) for each run of elements of `part` that is contiguous both in the tensor
// and in `box` laid out row-major on its own: count elements from flat index elem of the tensor are those
// from index box_elem of the box. In rising order of box_elem. REQUIRES: part lies within box, box within
// shape.
void ForEachRun(const std::vector<int64_t>& shape, const Box& box, const Box& part,
                const std::function<void(int64_t elem, int64_t box_elem, int64_t count)>& fn);
}  // namespace carousel
