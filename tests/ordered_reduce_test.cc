#include "parallel/ordered_reduce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/random.h"

namespace carousel {
namespace {

// Magnitudes over many decades, so that nearly every other order of additions gives other bits.
float Leaf(int64_t leaf) {
  return static_cast<float>(RandomNormal(7, 1, static_cast<uint64_t>(leaf)) *
                            std::pow(10.0, 6.0 * RandomUniform(7, 2, static_cast<uint64_t>(leaf)) - 3.0));
}

// The definition: node (level, index) over num_leaves leaves.
float Evaluate(int64_t num_leaves, int64_t level, int64_t index) {
  if (level == 0) return Leaf(index);
  const float left = Evaluate(num_leaves, level - 1, 2 * index);
  const int64_t right_begin = (2 * index + 1) << (level - 1);
  return right_begin >= num_leaves ? left : left + Evaluate(num_leaves, level - 1, 2 * index + 1);
}
float EvaluateRoot(int64_t num_leaves) {
  int64_t level = 0;
  while ((int64_t{1} << level) < num_leaves) ++level;
  return Evaluate(num_leaves, level, 0);
}

// Does what ShardedSync does, with one float for each buffer.
struct Simulated {
  float sum = 0;
  bool within_buffers = true;
};
Simulated Simulate(int64_t num_leaves, int64_t num_ranks) {
  const OwnerReducePlan owner = PlanOwner(num_leaves, num_ranks);
  std::vector<std::vector<float>> received(static_cast<size_t>(num_ranks));
  Simulated result;
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    const RankReducePlan plan = PlanRank(num_leaves, num_ranks, rank);
    std::vector<float> buffers(static_cast<size_t>(plan.num_buffers));
    TreeStack stack(num_leaves, plan.first_leaf);
    for (int64_t leaf = plan.first_leaf; leaf < plan.first_leaf + plan.num_leaves; ++leaf) {
      size_t top = static_cast<size_t>(stack.depth());
      if (top >= buffers.size()) return {.within_buffers = false};
      buffers[top] = Leaf(leaf);
      for (int64_t merges = stack.PushLeaf(); merges > 0; --merges, --top) buffers[top - 1] += buffers[top];
    }
    EXPECT_EQ(stack.nodes(), plan.nodes);
    EXPECT_LE(static_cast<int64_t>(plan.nodes.size()), owner.num_rounds);
    buffers.resize(plan.nodes.size());
    received[static_cast<size_t>(rank)] = buffers;
  }
  const auto value = [&](OwnerReducePlan::Source s) -> float& {
    return received.at(static_cast<size_t>(s.rank)).at(static_cast<size_t>(s.round));
  };
  for (const OwnerReducePlan::Addition& a : owner.additions) value(a.into) += value(a.from);
  result.sum = value(owner.additions.empty() ? OwnerReducePlan::Source{} : owner.additions.back().into);
  return result;
}

TEST(OrderedReduce, EveryNumberOfRanksGivesTheBitsOfTheTree) {
  for (int64_t M = 1; M <= 64; ++M) {
    const float expected = EvaluateRoot(M);
    for (int64_t P = 1; P <= M; ++P) {
      if (M % P != 0) continue;
      const Simulated simulated = Simulate(M, P);
      EXPECT_TRUE(simulated.within_buffers) << "M " << M << " P " << P;
      EXPECT_EQ(simulated.sum, expected) << "M " << M << " P " << P;
    }
  }
}

// F ranks that take turns in each of R ranges, as the owner of one part sees it.
Simulated SimulateTurns(int64_t num_leaves, int64_t R, int64_t F) {
  const OwnerReducePlan owner = PlanOwner(num_leaves, R);
  std::vector<std::vector<float>> kept;
  Simulated result;
  for (int64_t rank = 0; rank < R; ++rank) {
    const TurnReducePlan plan = PlanTurns(num_leaves, R, rank, F);
    EXPECT_EQ(plan.nodes, PlanRank(num_leaves, R, rank).nodes);
    std::vector<float> buffers(static_cast<size_t>(plan.num_buffers), NAN), received(static_cast<size_t>(F));
    int64_t leaf = rank * (num_leaves / R);
    for (const auto& steps : plan.turns) {
      for (float& value : received) value = Leaf(leaf++);
      const auto at = [&](TurnReducePlan::Operand x) -> float& {
        return (x.received ? received : buffers).at(static_cast<size_t>(x.index));
      };
      for (const auto& step : steps)
        at(step.into) = step.copy ? at(step.left) : at(step.left) + at(step.right);
      std::fill(received.begin(), received.end(), NAN);  // nothing stays there
    }
    buffers.resize(plan.nodes.size());
    kept.push_back(buffers);
  }
  const auto value = [&](OwnerReducePlan::Source s) -> float& {
    return kept.at(static_cast<size_t>(s.rank)).at(static_cast<size_t>(s.round));
  };
  for (const OwnerReducePlan::Addition& a : owner.additions) value(a.into) += value(a.from);
  result.sum = value(owner.additions.empty() ? OwnerReducePlan::Source{} : owner.additions.back().into);
  return result;
}

TEST(OrderedReduce, TakingTurnsGivesTheBitsOfTheTree) {
  for (int64_t M = 1; M <= 48; ++M) {
    const float expected = EvaluateRoot(M);
    for (int64_t R = 1; R <= M; ++R) {
      for (int64_t F = 1; R * F <= M; ++F) {
        if (M % (R * F) != 0) continue;
        EXPECT_EQ(SimulateTurns(M, R, F).sum, expected) << "M " << M << " R " << R << " F " << F;
      }
    }
  }
}

TEST(OrderedReduce, TurnsOfAPowerOfTwoNeedBuffersForWholeTurnsOnly) {
  // Eight leaves add up before they are kept: log2(turns) buffers, at least one.
  for (int64_t log = 0; log <= 4; ++log) {
    EXPECT_EQ(PlanTurns(int64_t{8} << log, 1, 0, 8).num_buffers, std::max<int64_t>(1, log)) << log;
  }
}

TEST(OrderedReduce, PartsOfLeavesAreAddedInOrderAfterTheirTrees) {
  for (const int64_t S : {2, 3}) {
    for (const int64_t R : {1, 2, 3}) {
      const int64_t M = 6;
      const auto leaf = [S](int64_t l, int64_t s) { return Leaf(100 + l * S + s); };
      // Ranks as PlanOwner numbers them: each adds what lies in its range.
      std::vector<std::vector<float>> kept(static_cast<size_t>(R * S));
      for (int64_t r = 0; r < R; ++r) {
        const RankReducePlan plan = PlanRank(M, R, r);
        for (int64_t s = 0; s < S; ++s) {
          std::vector<float> buffers(static_cast<size_t>(plan.num_buffers));
          TreeStack stack(M, plan.first_leaf);
          for (int64_t l = plan.first_leaf; l < plan.first_leaf + plan.num_leaves; ++l) {
            size_t top = static_cast<size_t>(stack.depth());
            buffers.at(top) = leaf(l, s);
            for (int64_t merges = stack.PushLeaf(); merges > 0; --merges, --top)
              buffers[top - 1] += buffers[top];
          }
          buffers.resize(plan.nodes.size());
          kept[static_cast<size_t>(r * S + s)] = buffers;
        }
      }
      const OwnerReducePlan owner = PlanOwner(M, R, S);
      const auto value = [&](OwnerReducePlan::Source s) -> float& {
        return kept.at(static_cast<size_t>(s.rank)).at(static_cast<size_t>(s.round));
      };
      for (const OwnerReducePlan::Addition& a : owner.additions) value(a.into) += value(a.from);
      float expected = 0;
      for (int64_t s = 0; s < S; ++s) {
        const float tree =
            ((leaf(0, s) + leaf(1, s)) + (leaf(2, s) + leaf(3, s))) + (leaf(4, s) + leaf(5, s));
        expected = s == 0 ? tree : expected + tree;
      }
      EXPECT_EQ(value(owner.additions.back().into), expected) << "R " << R << " S " << S;
    }
  }
}

TEST(OrderedReduce, TheDataOfThisTestTellsOrdersApart) {
  int64_t num_different = 0;
  for (int64_t M = 4; M <= 64; ++M) {
    float sequential = 0;
    for (int64_t leaf = 0; leaf < M; ++leaf) sequential += Leaf(leaf);
    num_different += sequential != EvaluateRoot(M);
  }
  EXPECT_GT(num_different, 30);
}

TEST(OrderedReduce, APowerOfTwoPerRankLeavesOneNodeAndLogarithmicallyManyBuffers) {
  for (const int64_t P : {1, 2, 3, 5, 8}) {
    for (int64_t log = 0; log <= 5; ++log) {
      const int64_t M = P << log;
      EXPECT_EQ(PlanOwner(M, P).num_rounds, 1);
      for (int64_t rank = 0; rank < P; ++rank) {
        const RankReducePlan plan = PlanRank(M, P, rank);
        EXPECT_EQ(plan.nodes.size(), 1u);
        EXPECT_EQ(plan.num_buffers, log + 1) << "M " << M << " P " << P;
      }
    }
  }
}

TEST(OrderedReduce, BuffersStayFewForEveryNumberOfLeaves) {
  for (int64_t M = 1; M <= 256; ++M) {
    for (int64_t P = 1; P <= M; ++P) {
      if (M % P != 0) continue;
      int64_t log = 0;
      while ((int64_t{2} << log) <= M / P) ++log;
      for (int64_t rank = 0; rank < P; ++rank) {
        EXPECT_LE(PlanRank(M, P, rank).num_buffers, 2 * log + 1) << "M " << M << " P " << P;
      }
    }
  }
}

TEST(OrderedReduce, RanksHoldConsecutiveLeavesAndTheirNodesCoverThem) {
  const auto begin = [](TreeNode n) { return n.index << n.level; };
  for (const int64_t M : {12, 30, 60}) {
    for (int64_t P = 1; P <= M; ++P) {
      if (M % P != 0) continue;
      int64_t next = 0;
      for (int64_t rank = 0; rank < P; ++rank) {
        const RankReducePlan plan = PlanRank(M, P, rank);
        EXPECT_EQ(plan.first_leaf, next);
        for (const TreeNode& node : plan.nodes) {
          EXPECT_EQ(begin(node), next);
          next = std::min((node.index + 1) << node.level, M);
        }
        EXPECT_EQ(next, plan.first_leaf + plan.num_leaves);
      }
      EXPECT_EQ(next, M);
      EXPECT_EQ(static_cast<int64_t>(PlanOwner(M, P).additions.empty()), static_cast<int64_t>(P == 1));
    }
  }
}

TEST(OrderedReduce, KnownTreeOfSixOverTwoRanks) {
  // Leaves 0 1 | 2, 3 | 4 5: the tree is ((0+1)+(2+3))+(4+5).
  const std::vector<TreeNode> first = {{1, 0}, {0, 2}}, second = {{0, 3}, {2, 1}};
  EXPECT_EQ(PlanRank(6, 2, 0).nodes, first);
  EXPECT_EQ(PlanRank(6, 2, 1).nodes, second);  // (4+5) has an empty right neighbour: it stands for its parent
  const OwnerReducePlan owner = PlanOwner(6, 2);
  EXPECT_EQ(owner.num_rounds, 2);
  ASSERT_EQ(owner.additions.size(), 3u);
  EXPECT_EQ(owner.additions[0].into.round, 1);  // 2 + 3
  EXPECT_EQ(owner.additions[0].from.rank, 1);
  EXPECT_EQ(owner.additions[1].into.round, 0);  // (0+1) + (2+3)
  EXPECT_EQ(owner.additions[2].from.round, 1);  // ... + (4+5)
}

TEST(OrderedReduceDeathTest, RanksThatDoNotDivideTheLeavesAreRefused) {
  EXPECT_DEATH(PlanRank(6, 4, 0), "4 ranks cannot share 6 micro-batches evenly");
  EXPECT_DEATH(PlanTurns(6, 2, 0, 2), "2 ranks cannot take turns in 3 micro-batches evenly");
}
}  // namespace
}  // namespace carousel
