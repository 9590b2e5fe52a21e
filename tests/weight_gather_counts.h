// How often a rank of a shard axis gathers a group of weights in one step, in closed form
// (parallel/weight_gather.h).
#pragma once
#include <algorithm>
#include <cstdint>

namespace carousel::testing {

// Group j = 1 .. n of those that take turns in the 1 + distance places: the blocks of stage `stage`, and on
// the last stage the head, under the one-forward-one-backward schedule of m micro-batches.
inline int64_t GathersOfGroup(int64_t j, int64_t n, int64_t distance, int64_t stages, int64_t stage,
                              int64_t m) {
  const int64_t places = 1 + distance;
  if (n <= places) return 1;  // they all stay
  // Pairs of passes in the same direction, once forwards and once backwards.
  const int64_t k = std::min(stages - stage - 1, m - 1);
  const bool first = j <= places, last = j > n - places;  // in place after a backward, a forward pass
  return 1                                                // the first pass
         + (m - 1 - k) * (first ? 0 : 1)                  // forwards after backwards
         + (m - k) * (last ? 0 : 1)                       // backwards after forwards
         + 2 * k * (first && last ? 0 : 1);               // the same direction again
}
}  // namespace carousel::testing
