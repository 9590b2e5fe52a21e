// LayerContext: what a layer needs to run besides its own memory. Layers never see ranks.
#pragma once
#include <optional>

#include "core/base/random.h"
#include "core/model/param_store.h"
#include "core/ops.h"

namespace carousel {

struct LayerContext {
  Ops& ops;
  const ParamStore& params;
  int64_t B = 0, T = 0;                      // of this pass; B*T may be smaller than what was bound
  Tensor resets = {};                        // (B*T) u8, optional: 1 = a document starts at this token
  std::optional<uint64_t> dropout_key = {};  // of this pass; none: dropout is off
  // The key of one place where elements are dropped. REQUIRES: dropout_key is given.
  // Places: 0 the embedding, 1 + 2l the mixer of block l, 2 + 2l its feed-forward.
  uint64_t DropoutKey(int64_t place) const {
    return RandomUint64(*dropout_key, StreamOf("dropout"), static_cast<uint64_t>(place));
  }
  int64_t N() const { return B * T; }
};
}  // namespace carousel
