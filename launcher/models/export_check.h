// The last question to an exported directory: does it compute what the model computes?
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/dtype.h"
#include "launcher/models/model_source.h"

namespace carousel {

// Host memory that comparing the logits of a model takes, roughly: its weights as f32, its largest tensors on
// their way, and activations.
int64_t LogitCheckBytes(const ModelSpec& spec);
// Host memory that is to be had without swapping: the machine's, and what the memory limits of the process
// (control groups) leave of it. 0 if the system does not say.
int64_t AvailableHostBytes();

// Runs the model of directory `dir` and that of `source` on the same tokens, one in memory at a time, in f32
// on the CPU with `threads` threads (0: all). `dtype`: how the directory stores weights; if it rounds, the
// model with rounded weights is run too. Returns a report of one line per comparison; DataLoss if logits
// differ by more than rounding of f32 arithmetic, ResourceExhausted if the memory is not enough.
absl::StatusOr<std::string> CompareLogits(const ModelSource& source, const std::string& dir, DType dtype,
                                          int64_t threads);
}  // namespace carousel
