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

OwnerReducePlan PlanOwner(int64_t num_leaves, int64_t num_ranks) {
  OwnerReducePlan plan;
  TreeStack stack(num_leaves);
  std::vector<OwnerReducePlan::Source> sources;  // where each entry of the stack has its value
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    const std::vector<TreeNode> nodes = PlanRank(num_leaves, num_ranks, rank).nodes;
    plan.num_rounds = std::max(plan.num_rounds, static_cast<int64_t>(nodes.size()));
    for (size_t round = 0; round < nodes.size(); ++round) {
      sources.push_back({rank, static_cast<int64_t>(round)});
      for (int64_t merges = stack.Push(nodes[round]); merges > 0; --merges) {
        const OwnerReducePlan::Source from = sources.back();
        sources.pop_back();
        plan.additions.push_back({.into = sources.back(), .from = from});
      }
    }
  }
  CAROUSEL_CHECK_EQ(stack.depth(), 1);
  return plan;
}
}  // namespace carousel
