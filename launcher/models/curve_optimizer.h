// The optimizer of a training curve, read from the words of the dump's metadata field "optimizer":
//   "AdamW lr per step in lrs, betas 0.9 0.95, eps 1e-8, decoupled weight decay 0.1 on tensors of 2 or more
//   dims, none on 1-d; global-norm clip 1.0; no dropout; input tokens[s,:,:-1], target tokens[s,:,1:]"
// Phrases may come in any order. Whatever is left once all known phrases are taken away is refused, so that
// nothing is computed otherwise than the dump says.
#pragma once
#include "absl/status/statusor.h"
#include "core/optim/adamw.h"
#include "launcher/models/reference_dump.h"

namespace carousel {

struct CurveOptimizer {
  AdamWSpec adamw;
  // Which tensors of the reference decay: all, or those of 2 or more dims ("on tensors of 2 or more dims").
  bool decay_all = false;
};

// InvalidArgument with the words that are missing or not known.
absl::StatusOr<CurveOptimizer> ReadCurveOptimizer(const ReferenceDump& dump);
}  // namespace carousel
