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

// The elements of a slice as runs that follow each other in the tensor and in memory, one after the other.
class SliceRuns {
 public:
  explicit SliceRuns(const StateSlice& slice);  // must outlive this
  bool done() const { return done_; }
  // REQUIRES: !done(). count elements from flat index elem of the tensor on lie at data. Rising in both.
  int64_t elem() const { return elem_; }
  char* data() const { return data_; }
  int64_t count() const { return count_; }
  void Next();

 private:
  void SetElem();

  const StateSlice& slice_;
  size_t inner_ = 0;        // the dims from here on make one run
  int64_t count_ = 0;       // elements of a run
  int64_t step_bytes_ = 0;  // from one run to the next
  std::vector<int64_t> index_;
  char* data_ = nullptr;
  int64_t elem_ = 0;
  bool done_ = false;
};

// Calls fn(elem, data, count) for all runs of a slice.
template <class Fn>
void ForEachRun(const StateSlice& slice, Fn&& fn) {
  for (SliceRuns runs(slice); !runs.done(); runs.Next()) fn(runs.elem(), runs.data(), runs.count());
}
}  // namespace carousel
