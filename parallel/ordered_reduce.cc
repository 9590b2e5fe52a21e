#include "parallel/ordered_reduce.h"

#include <algorithm>

#include "core/base/check.h"

namespace carousel {
namespace {
int64_t Begin(TreeNode node) { return node.index << node.level; }
}  // namespace

TreeStack::TreeStack(int64_t num_leaves, int64_t first_leaf)
    : num_leaves_(num_leaves), next_leaf_(first_leaf), root_level_(0) {
  CAROUSEL_CHECK(num_leaves >= 1 && first_leaf >= 0 && first_leaf < num_leaves);
  while ((int64_t{1} << root_level_) < num_leaves) ++root_level_;
}

int64_t TreeStack::Push(TreeNode node) {
  CAROUSEL_CHECK_LT(next_leaf_, num_leaves_);
  // A node with an empty right half has its left half's value, so it also stands for that half and may have
  // been promoted to it: compare where it begins, not its level.
  CAROUSEL_CHECK_EQ(Begin(node), next_leaf_);
  next_leaf_ = std::min((node.index + 1) << node.level, num_leaves_);
  nodes_.push_back(node);
  int64_t num_merges = 0;
  while (true) {
    TreeNode& top = nodes_.back();
    if (top.index % 2 == 0) {
      // A left half. Its right sibling is empty if it would begin after the last leaf.
      if (top.level == root_level_ || Begin({top.level, top.index + 1}) < num_leaves_) return num_merges;
      top = {top.level + 1, top.index / 2};
    } else {
      const TreeNode sibling = {top.level, top.index - 1};
      if (nodes_.size() < 2 || !(nodes_[nodes_.size() - 2] == sibling)) return num_merges;
      nodes_.pop_back();
      nodes_.back() = {sibling.level + 1, sibling.index / 2};
      ++num_merges;
    }
  }
}

RankReducePlan PlanRank(int64_t num_leaves, int64_t num_ranks, int64_t rank) {
  CAROUSEL_CHECK_MSG(num_ranks >= 1 && num_leaves >= 1 && num_leaves % num_ranks == 0,
                     std::to_string(num_ranks) + " ranks cannot share " + std::to_string(num_leaves) +
                         " micro-batches evenly");
  CAROUSEL_CHECK(rank >= 0 && rank < num_ranks);
  RankReducePlan plan;
  plan.num_leaves = num_leaves / num_ranks;
  plan.first_leaf = rank * plan.num_leaves;
  TreeStack stack(num_leaves, plan.first_leaf);
  for (int64_t i = 0; i < plan.num_leaves; ++i) {
    plan.num_buffers = std::max(plan.num_buffers, stack.depth() + 1);
    stack.PushLeaf();
  }
  plan.nodes = stack.nodes();
  return plan;
}

TurnReducePlan PlanTurns(int64_t num_leaves, int64_t num_ranks, int64_t rank, int64_t turn_size) {
  const RankReducePlan whole = PlanRank(num_leaves, num_ranks, rank);
  CAROUSEL_CHECK_MSG(turn_size >= 1 && whole.num_leaves % turn_size == 0,
                     std::to_string(turn_size) + " ranks cannot take turns in " +
                         std::to_string(whole.num_leaves) + " micro-batches evenly");
  using Step = TurnReducePlan::Step;
  TurnReducePlan plan;
  TreeStack stack(num_leaves, whole.first_leaf);
  std::vector<TurnReducePlan::Operand> values;  // of the stack's entries
  for (int64_t turn = 0; turn < whole.num_leaves / turn_size; ++turn) {
    std::vector<Step> steps;
    for (int64_t i = 0; i < turn_size; ++i) {
      values.push_back({.received = true, .index = i});
      for (int64_t merges = stack.PushLeaf(); merges > 0; --merges) {
        const TurnReducePlan::Operand right = values.back();
        values.pop_back();
        steps.push_back({.into = values.back(), .left = values.back(), .right = right});
      }
    }
    // What would be left in the turn's memory goes to buffers: by the step that makes it, if there is one.
    for (size_t j = 0; j < values.size(); ++j) {
      if (!values[j].received) continue;
      const TurnReducePlan::Operand buffer = {.received = false, .index = static_cast<int64_t>(j)};
      const auto makes_it = [&](const Step& step) {
        return step.into.received && step.into.index == values[j].index;
      };
      const auto last = std::find_if(steps.rbegin(), steps.rend(), makes_it);
      if (last != steps.rend()) {
        last->into = buffer;
      } else {
        steps.push_back({.into = buffer, .left = values[j], .right = {}, .copy = true});
      }
      values[j] = buffer;
    }
    plan.num_buffers = std::max(plan.num_buffers, stack.depth());
    plan.turns.push_back(std::move(steps));
  }
  plan.nodes = stack.nodes();
  return plan;
}

OwnerReducePlan PlanOwner(int64_t num_leaves, int64_t num_ranks, int64_t num_parts) {
  CAROUSEL_CHECK_GE(num_parts, int64_t{1});
  OwnerReducePlan plan;
  for (int64_t part = 0; part < num_parts; ++part) {
    TreeStack stack(num_leaves);
    std::vector<OwnerReducePlan::Source> sources;  // where each entry of the stack has its value
    for (int64_t rank = 0; rank < num_ranks; ++rank) {
      const std::vector<TreeNode> nodes = PlanRank(num_leaves, num_ranks, rank).nodes;
      plan.num_rounds = std::max(plan.num_rounds, static_cast<int64_t>(nodes.size()));
      for (size_t round = 0; round < nodes.size(); ++round) {
        sources.push_back({rank * num_parts + part, static_cast<int64_t>(round)});
        for (int64_t merges = stack.Push(nodes[round]); merges > 0; --merges) {
          const OwnerReducePlan::Source from = sources.back();
          sources.pop_back();
          plan.additions.push_back({.into = sources.back(), .from = from});
        }
      }
    }
    CAROUSEL_CHECK_EQ(stack.depth(), 1);
    if (part > 0) plan.additions.push_back({.into = {.rank = 0, .round = 0}, .from = sources[0]});
  }
  return plan;
}
}  // namespace carousel
