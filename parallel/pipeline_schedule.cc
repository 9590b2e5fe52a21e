#include "parallel/pipeline_schedule.h"

#include <algorithm>

#include "core/base/check.h"

namespace carousel {

std::vector<Action> OneForwardOneBackward(int64_t stages, int64_t stage, int64_t micro_batches) {
  CAROUSEL_CHECK(stages >= 1 && stage >= 0 && stage < stages && micro_batches >= 0);
  constexpr int64_t kNothing = -1;
  const bool first = stage == 0, last = stage + 1 == stages;
  std::vector<Action> actions;
  const auto with_previous = [&](int64_t sends, int64_t receives) {
    if (!first) actions.push_back(WithPrevious(sends, receives));
  };
  const auto with_next = [&](int64_t sends, int64_t receives) {
    if (!last) actions.push_back(WithNext(sends, receives));
  };

  // Forward until the first gradient can have come back.
  const int64_t ahead = std::min(stages - stage - 1, micro_batches);
  for (int64_t m = 0; m < ahead; ++m) {
    with_previous(kNothing, m);
    actions.push_back(ForwardOf(m));
    with_next(m, kNothing);
  }

  // One forward, one backward.
  if (ahead < micro_batches) with_previous(kNothing, ahead);
  for (int64_t m = ahead; m < micro_batches; ++m) {
    actions.push_back(ForwardOf(m));
    with_next(m, m - ahead);
    actions.push_back(BackwardOf(m - ahead));
    with_previous(m - ahead, m + 1 < micro_batches ? m + 1 : kNothing);
  }

  // What is left goes backward.
  for (int64_t m = micro_batches - ahead; m < micro_batches; ++m) {
    with_next(kNothing, m);
    actions.push_back(BackwardOf(m));
    with_previous(m, kNothing);
  }
  return actions;
}
}  // namespace carousel
