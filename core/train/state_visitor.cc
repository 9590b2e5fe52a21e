#include "core/train/state_visitor.h"

#include "core/model/param_store.h"

namespace carousel {

void AppendSlices(const ParamStore& params, int group, int segment, StateKind kind, const Tensor& shard,
                  std::vector<StateSlice>* slices) {
  for (const ParamStore::ShardPiece& piece : params.ShardPieces(group, segment)) {
    const Param& param = params.param(piece.param);
    const bool replica = params.tensor_index() > 0 && param.tensor.kind == Placement::Kind::kReplicate;
    for (ParamBox& box : BoxesOfLocalRange(param.part, piece.param_begin, piece.count)) {
      const int64_t begin = piece.shard_begin + box.local_begin - piece.param_begin;
      slices->push_back({.name = param.name,
                         .kind = kind,
                         .dtype = shard.dtype,
                         .shape = param.shape,
                         .offset = std::move(box.offset),
                         .size = std::move(box.size),
                         .data = shard.Rows(begin, 1).data,
                         .row_stride = box.local_stride,
                         .replica = replica});
    }
  }
}

SliceRuns::SliceRuns(const StateSlice& slice)
    : slice_(slice), index_(slice.offset), data_(static_cast<char*>(slice.data)) {
  done_ = slice.num_elems() == 0;
  if (done_) return;
  inner_ = slice.size.empty() ? 0 : slice.size.size() - 1;
  count_ = slice.row_elems();
  // A run goes on over the next dim above while those below are whole and nothing lies between rows.
  while (inner_ > 0 && slice.size[inner_] == slice.shape[inner_] && slice.stride() == slice.row_elems()) {
    count_ *= slice.size[--inner_];
  }
  step_bytes_ = count_ / slice.row_elems() * slice.stride() * SizeOf(slice.dtype);
  SetElem();
}

void SliceRuns::SetElem() {
  elem_ = 0;
  for (size_t d = 0; d < index_.size(); ++d) elem_ = elem_ * slice_.shape[d] + index_[d];
}

void SliceRuns::Next() {
  data_ += step_bytes_;
  // the next index of the dims above inner_
  size_t d = inner_;
  while (d > 0 && ++index_[d - 1] == slice_.offset[d - 1] + slice_.size[d - 1]) {
    index_[d - 1] = slice_.offset[d - 1];
    --d;
  }
  done_ = d == 0;
  if (!done_) SetElem();
}
}  // namespace carousel
