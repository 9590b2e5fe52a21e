// Which weights are gathered again, and which are still in their places, under every schedule of passes: as
// often as parallel/weight_gather.h says, which is as seldom as so many places allow.
#include "parallel/weight_gather.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "parallel/counting_communicator.h"
#include "parallel/pipeline_schedule.h"
#include "tests/weight_gather_counts.h"

namespace carousel {
namespace {
using testing::GathersOfGroup;

struct Stage {
  int64_t stages = 1, stage = 0, micro_batches = 1;
  int num_groups = 1;  // that take turns: blocks, and the head on the last stage
  int distance = 1;
  bool last() const { return stage + 1 == stages; }
  std::string ToString() const {
    return "stage " + std::to_string(stage) + " of " + std::to_string(stages) + ", " +
           std::to_string(micro_batches) + " micro-batches, " + std::to_string(num_groups) +
           " groups, distance " + std::to_string(distance);
  }
  std::vector<Action> Passes() const {
    std::vector<Action> passes = OneForwardOneBackward(stages, stage, micro_batches);
    std::erase_if(passes, [](const Action& a) {
      return a.kind != Action::Kind::kForward && a.kind != Action::Kind::kBackward;
    });
    return passes;
  }
};

// How often each group is gathered in the second of two steps: by the calls, each group having a size of its
// own.
std::vector<int64_t> CountGathers(const Stage& s) {
  constexpr int64_t kRanks = 2;
  CountingCommunicator communicator(0, kRanks);
  Mesh mesh;
  mesh.shard = {.size = kRanks, .communicator = &communicator};
  ParamStore store(DType::kF32, {.num_shards = kRanks, .weight_shards = kRanks});
  const int first_group = s.stage == 0 ? 1 : 4;  // groups of other stages are known to be empty
  std::map<int64_t, int> group_of_size;
  for (int j = 0; j < s.num_groups; ++j) {
    store.Register({.name = "block " + std::to_string(j),
                    .shape = {kSquaredNormBlock * kRanks * (j + 1), 1},
                    .group = first_group + j});
    group_of_size[store.segment(first_group + j, ParamStore::kMatrix).padded_size] = j;
  }
  CommLane lane(nullptr, mesh);
  WeightGather gather(store, lane, mesh.shard, s.distance);
  Arena counting;
  store.Bind(counting, true);
  gather.Bind(counting);

  // As LanguageModel: a head stays acquired from the forward pass into the backward one.
  const int last_group = first_group + s.num_groups - 1, last_block = last_group - (s.last() ? 1 : 0);
  const auto forward = [&] {
    gather.Prefetch(first_group);
    for (int group = first_group; group <= last_block; ++group) {
      if (group < last_group) gather.Prefetch(group + 1);
      gather.Acquire(group);
      gather.Release(group);
    }
    if (s.last()) gather.Acquire(last_group);
  };
  const auto backward = [&] {
    gather.Prefetch(last_block);
    if (s.last()) gather.Release(last_group);
    for (int group = last_block; group >= first_group; --group) {
      if (group > first_group) gather.Prefetch(group - 1);
      gather.Acquire(group);
      gather.Release(group);
    }
  };
  for (int step = 0; step < 2; ++step) {
    communicator.Clear();
    for (const Action& pass : s.Passes()) pass.kind == Action::Kind::kForward ? forward() : backward();
    for (int group = first_group; group <= last_group; ++group) gather.WeightsUpdated(group);
  }
  EXPECT_EQ(gather.num_late(), 0) << s.ToString();
  std::vector<int64_t> gathers(static_cast<size_t>(s.num_groups));
  for (const RecordedCall& recorded : communicator.calls()) {
    ++gathers[static_cast<size_t>(group_of_size.at(recorded.call.num_elems))];
  }
  return gathers;
}

// The fewest gathers of all ways to fill the places, if a pass that is at one group has the next ones in its
// direction on their way. A set of groups in place is a set of bits.
int64_t FewestGathers(const Stage& s) {
  const int places = s.distance + 1;
  std::map<unsigned, int64_t> fewest = {{0u, 0}};
  for (const Action& pass : s.Passes()) {
    const bool up = pass.kind == Action::Kind::kForward;
    for (int j = 0; j < s.num_groups; ++j) {
      const int at = up ? j : s.num_groups - 1 - j;
      unsigned window = 0;
      for (int ahead = 0; ahead <= s.distance; ++ahead) {
        const int group = up ? at + ahead : at - ahead;
        if (group >= 0 && group < s.num_groups) window |= 1u << group;
      }
      std::map<unsigned, int64_t> next;
      for (const auto& [held, count] : fewest) {
        const int64_t then = count + __builtin_popcount(window & ~held);
        // Keep any part of what else is in place.
        const unsigned rest = held & ~window;
        for (unsigned kept = rest;; kept = (kept - 1) & rest) {
          if (__builtin_popcount(window | kept) <= places) {
            const auto [found, is_new] = next.emplace(window | kept, then);
            if (!is_new) found->second = std::min(found->second, then);
          }
          if (kept == 0) break;
        }
      }
      fewest = std::move(next);
    }
  }
  int64_t least = fewest.begin()->second;
  for (const auto& [held, count] : fewest) least = std::min(least, count);
  return least;
}

TEST(WeightGather, GathersEachGroupAsOftenAsTheFormulaSaysAndNoOftenerThanItMust) {
  int num_cases = 0, num_that_keep_weights_from_pass_to_pass = 0;
  for (int distance = 1; distance <= 3; ++distance) {
    for (int64_t stages = 1; stages <= 4; ++stages) {
      for (int64_t stage = 0; stage < stages; ++stage) {
        for (int64_t micro_batches = 1; micro_batches <= 5; ++micro_batches) {
          for (int num_groups = stage + 1 == stages ? 2 : 1; num_groups <= 7; ++num_groups) {
            const Stage s = {.stages = stages,
                             .stage = stage,
                             .micro_batches = micro_batches,
                             .num_groups = num_groups,
                             .distance = distance};
            const std::vector<int64_t> gathers = CountGathers(s);
            int64_t total = 0;
            for (int j = 0; j < num_groups; ++j) {
              const int64_t n = gathers[static_cast<size_t>(j)];
              EXPECT_EQ(n, GathersOfGroup(j + 1, num_groups, distance, stages, stage, micro_batches))
                  << "group " << j + 1 << ", " << s.ToString();
              total += n;
            }
            EXPECT_EQ(total, FewestGathers(s)) << s.ToString();
            ++num_cases;
            num_that_keep_weights_from_pass_to_pass += total < 2 * micro_batches * num_groups;
          }
        }
      }
    }
  }
  EXPECT_EQ(num_cases, 3 * 5 * (10 * 7 - 4));
  EXPECT_GT(num_that_keep_weights_from_pass_to_pass, num_cases / 2);
}
}  // namespace
}  // namespace carousel
