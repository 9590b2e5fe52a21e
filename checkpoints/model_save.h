// A checkpoint of weights that come from elsewhere: how an import becomes a run.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/weight_source.h"
#include "core/base/dtype.h"
#include "core/model/param_store.h"

namespace carousel {

// SaveCheckpoint of `params` (names and shapes), converted from `weights` to `dtype`, and of zero Adam
// moments in the same dtype, on one rank. `request` says all but its slices. The values pass through memory
// in pieces of at most 16 MiB, whatever the size of the tensors. progress (may be null) is called with the
// bytes of the state that have been written and how many there are. Errors as SaveCheckpoint's, and those of
// reading. REQUIRES: request.communicator == null, request.slices is empty; weights.params() has all of
// `params`.
absl::Status SaveWeights(const WeightSource& weights, const std::vector<Param>& params, DType dtype,
                         SaveRequest request,
                         const std::function<void(int64_t done_bytes, int64_t total_bytes)>& progress);
}  // namespace carousel
