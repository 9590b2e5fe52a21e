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
}  // namespace carousel
