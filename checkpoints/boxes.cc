#include "checkpoints/boxes.h"

#include <algorithm>
#include <span>

#include "core/base/check.h"

namespace carousel {
namespace {

// Appends the boxes of [begin, end) of the sub-tensor whose dims are shape[level..] and which lies at
// prefix[0..level) in the dims above. strides[d]: elements between neighbours along dim d.
void AppendBoxes(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, size_t level,
                 std::vector<int64_t>& prefix, int64_t begin, int64_t end, std::vector<Box>* boxes) {
  // Indices [first, last) of dim `level`, whole below it.
  const auto append = [&](int64_t first, int64_t last) {
    Box box;
    box.offset.assign(shape.size(), 0);
    box.size = shape;
    for (size_t d = 0; d < level; ++d) {
      box.offset[d] = prefix[d];
      box.size[d] = 1;
    }
    box.offset[level] = first;
    box.size[level] = last - first;
    boxes->push_back(std::move(box));
  };
  const auto descend = [&](int64_t index, int64_t from, int64_t to) {
    prefix[level] = index;
    AppendBoxes(shape, strides, level + 1, prefix, from, to, boxes);
  };
  const int64_t stride = strides[level];
  int64_t first = begin / stride;
  const int64_t last = end / stride, head = begin % stride, tail = end % stride;
  if (first == last) return descend(first, head, tail);  // within one index of this dim
  if (head != 0) descend(first++, head, stride);
  if (first < last) append(first, last);
  if (tail != 0) descend(last, 0, tail);
}

// Elements between neighbours along each dim. No dim is 0.
std::vector<int64_t> Strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

// sign * (1 on the box, 0 elsewhere) from index `begin` of the dim above on.
struct Term {
  int64_t begin;
  const Box* box;
  int64_t sign;
};

// Whether the sum of the terms, as functions on shape[level..], is 0 everywhere. It is if it does not change
// anywhere along dim `level` (starting from 0 before index 0), and the change at an index is a sum of terms
// of the dims below: + those that begin there, - those that end there. A change at the end of the dim is
// outside. A term splits in two at most, so this takes O(2^dims * n log n).
bool SumIsZero(const std::vector<int64_t>& shape, size_t level, std::span<const Term> terms) {
  if (level == shape.size()) {
    int64_t sum = 0;
    for (const Term& term : terms) sum += term.sign;
    return sum == 0;
  }
  std::vector<Term> changes;
  changes.reserve(2 * terms.size());
  for (const Term& term : terms) {
    const int64_t begin = term.box->offset[level], end = begin + term.box->size[level];
    changes.push_back({begin, term.box, term.sign});
    if (end < shape[level]) changes.push_back({end, term.box, -term.sign});
  }
  std::sort(changes.begin(), changes.end(), [](const Term& a, const Term& b) { return a.begin < b.begin; });
  for (size_t first = 0, last = 0; first < changes.size(); first = last) {
    while (last < changes.size() && changes[last].begin == changes[first].begin) ++last;
    if (!SumIsZero(shape, level + 1, std::span(changes).subspan(first, last - first))) return false;
  }
  return true;
}
}  // namespace

int64_t Box::num_elems() const {
  int64_t n = 1;
  for (const int64_t s : size) n *= s;
  return n;
}

int64_t NumElems(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  bool empty = false;
  for (const int64_t d : shape) {
    if (d < 0) return -1;
    empty |= d == 0;
  }
  if (empty) return 0;
  for (const int64_t d : shape) {
    if (__builtin_mul_overflow(n, d, &n)) return -1;
  }
  return n;
}

std::vector<Box> BoxesOfRange(const std::vector<int64_t>& shape, int64_t begin, int64_t count) {
  CAROUSEL_CHECK(begin >= 0 && count >= 0 && count <= NumElems(shape) - begin);
  std::vector<Box> boxes;
  if (count == 0) return boxes;
  if (shape.empty()) return {Box{}};
  std::vector<int64_t> prefix(shape.size(), 0);
  AppendBoxes(shape, Strides(shape), 0, prefix, begin, begin + count, &boxes);
  return boxes;
}

int64_t FirstElem(const std::vector<int64_t>& shape, const Box& box) {
  int64_t elem = 0;
  for (size_t d = 0; d < shape.size(); ++d) elem = elem * shape[d] + box.offset[d];
  return elem;
}

bool Intersect(const Box& a, const Box& b, Box* common) {
  CAROUSEL_CHECK_EQ(a.size.size(), b.size.size());
  common->offset.resize(a.offset.size());
  common->size.resize(a.size.size());
  for (size_t d = 0; d < a.size.size(); ++d) {
    const int64_t begin = std::max(a.offset[d], b.offset[d]);
    const int64_t end = std::min(a.offset[d] + a.size[d], b.offset[d] + b.size[d]);
    if (begin >= end) return false;
    common->offset[d] = begin;
    common->size[d] = end - begin;
  }
  return true;
}

bool BoxFits(const std::vector<int64_t>& shape, const Box& box) {
  if (box.offset.size() != shape.size() || box.size.size() != shape.size()) return false;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (box.offset[d] < 0 || box.size[d] <= 0 || box.size[d] > shape[d] ||
        box.offset[d] > shape[d] - box.size[d]) {
      return false;
    }
  }
  return true;
}

bool BoxesTile(const std::vector<int64_t>& shape, const std::vector<Box>& boxes) {
  if (NumElems(shape) <= 0) return NumElems(shape) == 0 && boxes.empty();
  // They tile the shape if they cover each element as often as the shape itself does.
  const Box whole = {std::vector<int64_t>(shape.size(), 0), shape};
  std::vector<Term> terms = {{0, &whole, -1}};
  for (const Box& box : boxes) terms.push_back({0, &box, 1});
  return SumIsZero(shape, 0, terms);
}

void ForEachRun(const std::vector<int64_t>& shape, const Box& box, const Box& part,
                const std::function<void(int64_t elem, int64_t box_elem, int64_t count)>& fn) {
  // Dims from `inner` on make one run: below it, part, box and tensor have the same whole dims.
  size_t inner = shape.empty() ? 0 : shape.size() - 1;
  int64_t count = shape.empty() ? 1 : part.size[inner];
  while (inner > 0 && part.size[inner] == shape[inner]) {
    --inner;
    count *= part.size[inner];
  }
  std::vector<int64_t> index = part.offset;
  while (true) {
    int64_t elem = 0, box_elem = 0;
    for (size_t d = 0; d < shape.size(); ++d) {
      elem = elem * shape[d] + index[d];
      box_elem = box_elem * box.size[d] + (index[d] - box.offset[d]);
    }
    fn(elem, box_elem, count);
    // The next index of the dims above `inner`.
    size_t d = inner;
    while (d > 0 && ++index[d - 1] == part.offset[d - 1] + part.size[d - 1]) {
      index[d - 1] = part.offset[d - 1];
      --d;
    }
    if (d == 0) return;
  }
}
}  // namespace carousel
