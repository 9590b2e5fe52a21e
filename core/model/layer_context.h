// LayerContext: what a layer needs to run besides its own memory. Layers never see ranks.
//
// Rows. A pass is B sequences; a rank of the sequence axis has T consecutive tokens of each, N() = B*T rows:
// what the parts of a layer that are split by heads work on. Outside of them, in the residual stream, the
// norms and the head's input, a rank of the tensor axis has stream_rows() = N() / (size of the tensor axis)
// consecutive ones of these rows.
#pragma once
#include <optional>

#include "core/base/random.h"
#include "core/comm/model_axes.h"
#include "core/model/param_store.h"
#include "core/ops.h"

namespace carousel {

struct LayerContext {
  Ops& ops;
  const ParamStore& params;
  ModelAxes axes = {};
  int64_t B = 0, T = 0;  // of this pass; B*T may be smaller than what was bound
  Tensor resets = {};    // (B*T) u8, optional: 1 = a document starts at this token
  // (B*T*S) u8: the resets of all tokens of the B sequences, in order, for layers that get all tokens of some
  // heads. Given with `resets` where the sequence axis has S > 1 ranks.
  Tensor all_resets = {};
  std::optional<uint64_t> dropout_key = {};  // of this pass; none: dropout is off
  // (2, kValueSumElems) i64, optional: where the mixer's Forward adds what its input and forget gates are
  // like (core/model/gate_measure.h).
  Tensor gate_stats = {};
  // The key of one place where elements are dropped. REQUIRES: dropout_key is given.
  // Places: 0 the embedding, 1 + 2l the mixer of block l, 2 + 2l its feed-forward.
  uint64_t DropoutKey(int64_t place) const {
    return RandomUint64(*dropout_key, StreamOf("dropout"), static_cast<uint64_t>(place));
  }
  int64_t N() const { return B * T; }
  int64_t stream_rows() const { return N() / axes.tensor.size; }
  // Where the elements of an activation lie in that of the whole micro-batch: for dropout. Of the stream's
  // rows and all columns; of all N() rows and columns [first, ...) of `num_columns`.
  ElementPlaces StreamPlaces() const { return Places(axes.tensor.index * stream_rows()); }
  ElementPlaces ColumnPlaces(int64_t first, int64_t num_columns) const {
    ElementPlaces places = Places(0);
    places.first_column = first;
    places.num_columns = num_columns;
    return places;
  }

 private:
  ElementPlaces Places(int64_t first_row) const {
    if (axes.sequence.size == 1) return {.first_row = first_row};
    return {.first_row = first_row,
            .segment = T,
            .segment_stride = T * axes.sequence.size,
            .segment_begin = T * axes.sequence.index};
  }
};
}  // namespace carousel
