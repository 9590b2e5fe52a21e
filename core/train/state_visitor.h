// What a checkpoint sees of a training run: a list of boxes of named global tensors. The list is the same
// code for saving and loading.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "core/tensor.h"

namespace carousel {
class ParamStore;

enum class StateKind : uint8_t { kWeight, kAdamM, kAdamV };

// Elements offset[d] <= index[d] < offset[d] + size[d] of the row-major global tensor `name` of `shape`, in
// host-accessible memory: row-major at `data`, rows (of the last dim) row_stride elements apart. A scalar has
// no dims and one element. Together the slices of all ranks that are no replicas tile every tensor exactly
// once.
struct StateSlice {
  std::string name;
  StateKind kind = StateKind::kWeight;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape = {};              // of the whole tensor
  std::vector<int64_t> offset = {}, size = {};  // as many dims
  void* data = nullptr;
  int64_t row_stride = 0;  // 0: rows lie one after the other
  // Another rank has a slice of the same box that is no replica, with equal elements: that one is saved and
  // counted, this one is filled by loads.
  bool replica = false;

  int64_t num_elems() const {
    int64_t n = 1;
    for (const int64_t s : size) n *= s;
    return n;
  }
  // Elements of a row, and from the start of one to that of the next.
  int64_t row_elems() const { return size.empty() ? 1 : size.back(); }
  int64_t stride() const { return row_stride == 0 ? row_elems() : row_stride; }
};

// Appends what a rank has of the parameters of one segment of a group: `shard` is one of the segment's shards
// (master weights or a moment), or a copy of it in memory that the host can access.
void AppendSlices(const ParamStore& params, int group, int segment, StateKind kind, const Tensor& shard,
                  std::vector<StateSlice>* slices);

// All of a tensor, in memory without gaps.
inline StateSlice WholeSlice(std::string name, StateKind kind, DType dtype, std::vector<int64_t> shape,
                             void* data) {
  return {.name = std::move(name),
          .kind = kind,
          .dtype = dtype,
          .shape = shape,
          .offset = std::vector<int64_t>(shape.size(), 0),
          .size = shape,
          .data = data};
}

// Calls fn(elem, data, count) for runs of elements that follow each other in the tensor and in memory: count
// elements from flat index elem of the tensor on lie at data (char*). Rising in both.
template <class Fn>
void ForEachRun(const StateSlice& slice, Fn&& fn) {
  const size_t dims = slice.size.size();
  if (slice.num_elems() == 0) return;
  // The dims from `inner` on make one run: those below it are whole, and nothing lies between rows.
  size_t inner = dims == 0 ? 0 : dims - 1;
  int64_t count = slice.row_elems();
  while (inner > 0 && slice.size[inner] == slice.shape[inner] && slice.stride() == slice.row_elems()) {
    count *= slice.size[--inner];
  }
  const int64_t rows_per_run = count / slice.row_elems();
  char* data = static_cast<char*>(slice.data);
  std::vector<int64_t> index = slice.offset;
  while (true) {
    int64_t elem = 0;
    for (size_t d = 0; d < dims; ++d) elem = elem * slice.shape[d] + index[d];
    fn(elem, data, count);
    data += rows_per_run * slice.stride() * SizeOf(slice.dtype);
    // the next index of the dims above `inner`
    size_t d = inner;
    while (d > 0 && ++index[d - 1] == slice.offset[d - 1] + slice.size[d - 1]) {
      index[d - 1] = slice.offset[d - 1];
      --d;
    }
    if (d == 0) return;
  }
}
}  // namespace carousel
