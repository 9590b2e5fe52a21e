// What the values of a checkpoint's tensors are like, and how far those of two checkpoints are apart: read
// piece by piece and verified on the way, with memory for a few pieces whatever the size of the tensors.
#pragma once
#include <algorithm>
#include <cstdint>

#include "absl/status/statusor.h"
#include "checkpoints/checkpoint_tensors.h"

namespace carousel {

struct ValueSummary {
  int64_t num_nan = 0, num_inf = 0;
  int64_t num_finite = 0;                      // what follows is of these; without any, 0
  double min = 0, max = 0, mean = 0, rms = 0;  // rms: root of the mean of the squares
};
absl::StatusOr<ValueSummary> SummarizeValues(CheckpointTensors& tensors, const CheckpointTensor& tensor);

struct ValueDifference {
  int64_t num_different = 0;  // elements whose bits differ
  int64_t first = -1;         // index of the first of them in the row-major tensor
  // Of pairs of finite values: the largest |a - b|, and the largest |a - b| / max(|a|, |b|).
  double max_absolute = 0, max_relative = 0;
  // Of the same pairs, equal ones included: root mean squares of a - b and of a.
  double rms = 0, rms_of_a = 0;
  int64_t num_not_finite = 0;  // different pairs of which one is not finite
  // rms / max(rms_of_a, floor): the norm of the difference over that of the tensor, whose elements count as
  // if they were at least `floor` on the average. 0 if nothing differs.
  double RelativeNorm(double floor) const { return rms == 0 ? 0 : rms / std::max(rms_of_a, floor); }
};
// REQUIRES: equal shapes and dtypes.
absl::StatusOr<ValueDifference> CompareValues(CheckpointTensors& a, const CheckpointTensor& in_a,
                                              CheckpointTensors& b, const CheckpointTensor& in_b);
}  // namespace carousel
