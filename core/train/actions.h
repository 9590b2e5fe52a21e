// Actions: what a stage of the pipe axis does in one step, in order: passes of its micro-batches, and
// exchanges with the stages beside it. Schedules are pure functions (parallel/pipeline_schedule.h); the
// trainer does what they say.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace carousel {

// Micro-batches are numbered from 0 in the order in which the stages' ranks compute them (core/comm/mesh.h:
// Leaves); equal numbers are the same micro-batch on all stages.
struct Action {
  enum class Kind : uint8_t {
    kForward,
    kBackward,
    kWithPrevious,  // exchange with the stage before: gradients of the stream go there, the stream comes
    kWithNext,      // exchange with the stage after: the stream goes there, gradients of it come
  };
  Kind kind = Kind::kForward;
  int64_t micro = -1;  // of a pass
  // Of an exchange, whose halves take place at once: whose stream or gradient; -1: this half is left out.
  int64_t sends = -1, receives = -1;
  bool operator==(const Action&) const = default;
};
inline Action ForwardOf(int64_t micro) { return {.kind = Action::Kind::kForward, .micro = micro}; }
inline Action BackwardOf(int64_t micro) { return {.kind = Action::Kind::kBackward, .micro = micro}; }
inline Action WithPrevious(int64_t sends, int64_t receives) {
  return {.kind = Action::Kind::kWithPrevious, .sends = sends, .receives = receives};
}
inline Action WithNext(int64_t sends, int64_t receives) {
  return {.kind = Action::Kind::kWithNext, .sends = sends, .receives = receives};
}

// The actions of one stage of `stages`. A micro-batch's input may be received as soon as num_slots (=
// MaxInFlight) passes before it have gone backward, and micro-batches go backward in the order in which they
// go forward.
using ActionSchedule =
    std::function<std::vector<Action>(int64_t stages, int64_t stage, int64_t micro_batches)>;

// Without a pipe axis: each micro-batch forward and backward.
inline std::vector<Action> OneStageActions(int64_t micro_batches) {
  std::vector<Action> actions;
  for (int64_t m = 0; m < micro_batches; ++m) {
    actions.push_back(ForwardOf(m));
    actions.push_back(BackwardOf(m));
  }
  return actions;
}

// The most micro-batches that are between their two passes at one time: what a stage keeps activations of.
inline int64_t MaxInFlight(const std::vector<Action>& actions) {
  int64_t in_flight = 0, most = 0;
  for (const Action& action : actions) {
    if (action.kind == Action::Kind::kForward) most = std::max(most, ++in_flight);
    if (action.kind == Action::Kind::kBackward) --in_flight;
  }
  return most;
}
}  // namespace carousel
