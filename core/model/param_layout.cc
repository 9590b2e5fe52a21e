#include "core/model/param_layout.h"

#include <algorithm>

#include "core/base/check.h"

namespace carousel {
namespace {

// Where index `local` of the split dim lies in the whole dim, and how many indices follow it there
// contiguously.
struct Place {
  int64_t index = 0, count = 0;
};
Place WholeIndex(const ParamPart& part, int dim, int64_t local) {
  if (part.ranks == 1 || part.placement.kind != Placement::Kind::kShard || part.placement.dim != dim) {
    return {local, part.local_shape[static_cast<size_t>(dim)] - local};
  }
  const int64_t slice = part.local_shape[static_cast<size_t>(dim)] / part.placement.parts;
  return {local / slice * slice * part.ranks + part.rank * slice + local % slice, slice - local % slice};
}
}  // namespace

bool ParamPart::CanSplit(const std::vector<int64_t>& shape, Placement placement, int64_t ranks) {
  if (placement.kind != Placement::Kind::kShard) return placement.kind == Placement::Kind::kReplicate;
  return placement.dim < static_cast<int64_t>(shape.size()) &&
         shape[static_cast<size_t>(placement.dim)] % (placement.parts * ranks) == 0;
}

ParamPart ParamPart::Of(const std::vector<int64_t>& shape, Placement placement, int64_t ranks, int64_t rank) {
  CAROUSEL_CHECK(rank >= 0 && rank < ranks);
  CAROUSEL_CHECK_MSG(CanSplit(shape, placement, ranks), "a parameter does not divide over the tensor axis");
  ParamPart part = {
      .shape = shape, .local_shape = shape, .placement = placement, .ranks = ranks, .rank = rank};
  if (placement.kind == Placement::Kind::kShard)
    part.local_shape[static_cast<size_t>(placement.dim)] /= ranks;
  return part;
}

int64_t ParamPart::local_elems() const {
  int64_t n = 1;
  for (const int64_t d : local_shape) n *= d;
  return n;
}

int64_t ParamBox::num_elems() const {
  int64_t n = 1;
  for (const int64_t d : size) n *= d;
  return n;
}

std::vector<ParamBox> BoxesOfLocalRange(const ParamPart& part, int64_t begin, int64_t count) {
  CAROUSEL_CHECK(begin >= 0 && count >= 0 && begin + count <= part.local_elems());
  const bool matrix = part.local_shape.size() == 2;
  const int64_t width = matrix ? part.local_shape[1] : part.local_shape[0];
  std::vector<ParamBox> boxes;
  const int64_t end = begin + count;
  while (begin < end) {
    // Local rows [row, row + rows) and columns [column, column + columns): part of a row, or whole rows.
    const int64_t row = begin / width, column = begin % width;
    int64_t columns = std::min(width - column, end - begin);
    int64_t rows = column == 0 && columns == width ? (end - begin) / width : 1;
    if (matrix) rows = std::min(rows, WholeIndex(part, 0, row).count);
    const int64_t whole_row = matrix ? WholeIndex(part, 0, row).index : 0;
    for (int64_t c = column; c < column + columns;) {
      const Place place = WholeIndex(part, matrix ? 1 : 0, c);
      const int64_t n = std::min(place.count, column + columns - c);
      ParamBox box = {.offset = {}, .size = {}, .local_begin = row * width + c, .local_stride = width};
      if (matrix) {
        box.offset = {whole_row, place.index};
        box.size = {rows, n};
      } else {
        box.offset = {place.index};
        box.size = {n};
        box.local_stride = n;
      }
      boxes.push_back(std::move(box));
      c += n;
    }
    begin += rows * columns;
  }
  return boxes;
}

void ForEachLocalRun(const ParamPart& part, int64_t begin, int64_t count,
                     const std::function<void(int64_t elem, int64_t local_elem, int64_t count)>& fn) {
  const bool matrix = part.local_shape.size() == 2;
  const int64_t width = matrix ? part.local_shape[1] : part.local_shape[0];
  const bool whole_rows =
      !matrix || part.placement.kind != Placement::Kind::kShard || part.placement.dim == 0;
  const int64_t end = begin + count;
  CAROUSEL_CHECK(begin >= 0 && count >= 0 && end <= part.local_elems());
  while (begin < end) {
    const int64_t row = begin / width, column = begin % width;
    int64_t elem, n;
    if (!matrix) {
      const Place place = WholeIndex(part, 0, begin);
      elem = place.index, n = place.count;
    } else if (whole_rows) {
      const Place place = WholeIndex(part, 0, row);
      elem = place.index * width + column, n = place.count * width - column;
    } else {
      const Place place = WholeIndex(part, 1, column);
      elem = row * part.shape[1] + place.index, n = place.count;
    }
    n = std::min(n, end - begin);
    fn(elem, begin, n);
    begin += n;
  }
}
}  // namespace carousel
