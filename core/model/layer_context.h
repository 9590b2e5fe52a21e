// LayerContext: what a layer needs to run besides its own memory. Layers never see ranks.
#pragma once
#include <optional>

#include "core/model/param_store.h"
#include "core/ops.h"

namespace carousel {

struct LayerContext {
  Ops& ops;
  const ParamStore& params;
  int64_t B = 0, T = 0;                      // of this pass; B*T may be smaller than what was bound
  Tensor resets = {};                        // (B*T) u8, optional: 1 = a document starts at this token
  std::optional<uint64_t> dropout_key = {};  // of this pass; none: dropout is off
  int64_t N() const { return B * T; }
};
}  // namespace carousel
