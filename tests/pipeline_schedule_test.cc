// Schedules, run by stages that do nothing but keep time: sends block until they are received.
#include "parallel/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace carousel {
namespace {
using Kind = Action::Kind;

struct Stage {
  std::vector<Action> actions;
  size_t at = 0;
  int64_t time = 0, busy = 0;
  bool sent = false, received = false;   // halves of the exchange at hand
  std::set<int64_t> streams, gradients;  // received
  std::set<int64_t> went_forward, went_backward;
  int64_t most_in_flight = 0;

  bool finished() const { return at == actions.size(); }
  const Action* current() const { return finished() ? nullptr : &actions[at]; }
  bool exchanges(Kind kind) const { return !finished() && actions[at].kind == kind; }
};

class Simulation {
 public:
  Simulation(int64_t num_stages, int64_t micro_batches) : micro_batches_(micro_batches) {
    for (int64_t s = 0; s < num_stages; ++s) {
      stages_.emplace_back().actions = OneForwardOneBackward(num_stages, s, micro_batches);
    }
  }

  // Until nothing moves. Fails on a pass without its input and on an exchange of different micro-batches.
  void Run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t s = 0; s < stages_.size(); ++s) moved |= RunPasses(s);
      for (size_t s = 0; s + 1 < stages_.size(); ++s) moved |= Exchange(s);
    }
  }
  const std::vector<Stage>& stages() const { return stages_; }

 private:
  bool RunPasses(size_t index) {
    Stage& s = stages_[index];
    const bool first = index == 0, last = index + 1 == stages_.size();
    bool moved = false;
    for (; s.exchanges(Kind::kForward) || s.exchanges(Kind::kBackward); ++s.at, moved = true) {
      const int64_t m = s.current()->micro;
      EXPECT_TRUE(m >= 0 && m < micro_batches_);
      if (s.current()->kind == Kind::kForward) {
        EXPECT_TRUE(first || s.streams.count(m)) << "forward of " << m << " on stage " << index;
        EXPECT_TRUE(s.went_forward.insert(m).second);
      } else {
        EXPECT_TRUE(last || s.gradients.count(m)) << "backward of " << m << " on stage " << index;
        EXPECT_TRUE(s.went_forward.count(m));
        // In the order of the forward passes, so that numbers modulo the number of slots are slots.
        EXPECT_EQ(m, static_cast<int64_t>(s.went_backward.size()));
        s.went_backward.insert(m);
      }
      s.most_in_flight =
          std::max(s.most_in_flight, static_cast<int64_t>(s.went_forward.size() - s.went_backward.size()));
      ++s.time;
      ++s.busy;
    }
    return moved;
  }

  // Between stages `lower` and lower + 1, if both are there.
  bool Exchange(size_t lower) {
    Stage &a = stages_[lower], &b = stages_[lower + 1];
    if (!a.exchanges(Kind::kWithNext) || !b.exchanges(Kind::kWithPrevious)) return false;
    const Action &to_next = *a.current(), &to_previous = *b.current();
    bool moved = false;
    if (to_next.sends >= 0 && to_previous.receives >= 0 && !a.sent) {
      EXPECT_EQ(to_next.sends, to_previous.receives);
      EXPECT_TRUE(a.went_forward.count(to_next.sends));
      // Its slot is free.
      const int64_t slots = MaxInFlight(b.actions);
      EXPECT_TRUE(to_next.sends < slots || b.went_backward.count(to_next.sends - slots));
      b.streams.insert(to_next.sends);
      moved = a.sent = b.received = true;
    }
    if (to_previous.sends >= 0 && to_next.receives >= 0 && !b.sent) {
      EXPECT_EQ(to_previous.sends, to_next.receives);
      EXPECT_TRUE(b.went_backward.count(to_previous.sends));
      a.gradients.insert(to_previous.sends);
      moved = b.sent = a.received = true;
    }
    if (!moved) return false;
    a.time = b.time = std::max(a.time, b.time);
    for (Stage* s : {&a, &b}) {
      const Action& action = *s->current();
      if ((action.sends >= 0 && !s->sent) || (action.receives >= 0 && !s->received)) continue;
      s->sent = s->received = false;
      ++s->at;
    }
    return true;
  }

  int64_t micro_batches_;
  std::vector<Stage> stages_;
};

TEST(PipelineSchedule, HonoursEveryDependencyAndNeverBlocksForAnyNumberOfStagesAndMicroBatches) {
  for (int64_t p = 1; p <= 8; ++p) {
    for (int64_t m = 1; m <= 16; ++m) {
      SCOPED_TRACE(std::to_string(p) + " stages, " + std::to_string(m) + " micro-batches");
      Simulation simulation(p, m);
      simulation.Run();
      int64_t end = 0;
      for (int64_t s = 0; s < p; ++s) {
        const Stage& stage = simulation.stages()[static_cast<size_t>(s)];
        ASSERT_TRUE(stage.finished()) << "stage " << s << " is stuck at its action " << stage.at;
        EXPECT_EQ(static_cast<int64_t>(stage.went_forward.size()), m);
        EXPECT_EQ(static_cast<int64_t>(stage.went_backward.size()), m);
        EXPECT_EQ(stage.most_in_flight, std::min(p - s, m));
        EXPECT_EQ(stage.most_in_flight, MaxInFlight(stage.actions));
        EXPECT_EQ(stage.busy, 2 * m);
        end = std::max(end, stage.time);
      }
      // Of `end` units of time each stage is busy for 2m: idle are (p-1)/(m+p-1) of them.
      EXPECT_EQ(end, 2 * (m + p - 1));
    }
  }
}

TEST(PipelineSchedule, CrossesEachBorderOncePerMicroBatchAndDirection) {
  for (int64_t p = 1; p <= 6; ++p) {
    for (int64_t m = 1; m <= 9; ++m) {
      for (int64_t s = 0; s < p; ++s) {
        int64_t to_next = 0, from_next = 0, to_previous = 0, from_previous = 0;
        for (const Action& action : OneForwardOneBackward(p, s, m)) {
          if (action.kind != Kind::kWithNext && action.kind != Kind::kWithPrevious) continue;
          const bool next = action.kind == Kind::kWithNext;
          EXPECT_TRUE(action.sends >= 0 || action.receives >= 0);
          (next ? to_next : to_previous) += action.sends >= 0;
          (next ? from_next : from_previous) += action.receives >= 0;
        }
        EXPECT_EQ(to_next, s + 1 < p ? m : 0);
        EXPECT_EQ(from_next, s + 1 < p ? m : 0);
        EXPECT_EQ(to_previous, s > 0 ? m : 0);
        EXPECT_EQ(from_previous, s > 0 ? m : 0);
      }
    }
  }
}

TEST(PipelineSchedule, OneStageGoesForwardAndBackwardInTurn) {
  EXPECT_EQ(OneForwardOneBackward(1, 0, 3), OneStageActions(3));
  EXPECT_EQ(OneStageActions(2),
            (std::vector<Action>{ForwardOf(0), BackwardOf(0), ForwardOf(1), BackwardOf(1)}));
}

TEST(PipelineSchedule, TheMiddleOfThreeStagesSendsAndReceivesAtOnce) {
  EXPECT_EQ(OneForwardOneBackward(3, 1, 3),
            (std::vector<Action>{WithPrevious(-1, 0), ForwardOf(0), WithNext(0, -1), WithPrevious(-1, 1),
                                 ForwardOf(1), WithNext(1, 0), BackwardOf(0), WithPrevious(0, 2),
                                 ForwardOf(2), WithNext(2, 1), BackwardOf(1), WithPrevious(1, -1),
                                 WithNext(-1, 2), BackwardOf(2), WithPrevious(2, -1)}));
}
}  // namespace
}  // namespace carousel
