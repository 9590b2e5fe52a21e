// The one-forward-one-backward schedule of a pipeline (Narayanan et al. 2019, doi:10.1145/3341301.3359646;
// the synchronous form: Fan et al. 2021, arXiv:2007.01045).
//
// Stage s of p first runs p - s - 1 micro-batches forward, then one backward for each forward. It holds the
// activations of at most p - s micro-batches. If a forward and a backward pass take equal times, all stages
// together are idle for (p-1)/(m+p-1) of a step of m micro-batches: the least that a schedule of whole stages
// can have.
#pragma once
#include <vector>

#include "core/train/actions.h"

namespace carousel {

// An exchange waits for its neighbour's matching one. A send and a receive that follow each other with the
// same neighbour are one exchange, so that stages that send to each other never wait for each other, even if
// a send blocks until it is received. One stage: OneStageActions.
std::vector<Action> OneForwardOneBackward(int64_t stages, int64_t stage, int64_t micro_batches);
}  // namespace carousel
