// The sum of M leaves (the gradients of the M micro-batches of a step) over one fixed binary tree, planned
// for any number of ranks: pure functions of integers, no data.
//
// Floating-point addition does not associate, so a sum that is to have the same bits on 1, 2, 3 ... ranks
// needs one order for all of them. Node (level, index) of the tree covers the leaves
//     [index * 2^level, min((index + 1) * 2^level, M)),
// and its value is left + right, or left where right is empty. Rank r of P holds the consecutive leaves
// [r M/P, (r+1) M/P) and adds up what lies in its range, as a binary counter does: pushing a leaf merges
// complete siblings, and what remains is a short stack of nodes (one node where M/P is a power of two, and
// never more than 2 log2(M/P) + 1). The ranks' stacks in rank order are again leaves in order, with gaps
// filled: the owner of a shard receives them all and finishes the same tree.
//
// Ranks that take turns in a rank's leaves (the shard axis: F consecutive leaves per turn) each own a part of
// the elements: the owner receives the F leaves of a turn and pushes them in order, on the same stack. Ranks
// that share every leaf (the sequence axis) each have a tree of their own over their parts of the leaves; the
// values of the S roots are then added in order.
#pragma once
#include <cstdint>
#include <vector>

namespace carousel {

struct TreeNode {
  int64_t level = 0, index = 0;
  bool operator==(const TreeNode&) const = default;
};

// The stack of complete nodes while leaves arrive in order. Entry j of the stack lives in buffer j: a new
// leaf is put into buffer depth(), and every merge is buffer[j] += buffer[j + 1].
class TreeStack {
 public:
  // The tree over num_leaves leaves, starting with `first_leaf`.
  explicit TreeStack(int64_t num_leaves, int64_t first_leaf = 0);

  int64_t depth() const { return static_cast<int64_t>(nodes_.size()); }
  int64_t next_leaf() const { return next_leaf_; }
  const std::vector<TreeNode>& nodes() const { return nodes_; }

  // Puts the next node on the stack (its first leaf is next_leaf()) and merges. Returns how many merges
  // follow: each adds the top buffer into the one below it.
  int64_t Push(TreeNode node);
  int64_t PushLeaf() { return Push({0, next_leaf_}); }

 private:
  int64_t num_leaves_, next_leaf_, root_level_;
  std::vector<TreeNode> nodes_;
};

// One rank's part.
struct RankReducePlan {
  int64_t first_leaf = 0, num_leaves = 0;
  int64_t num_buffers = 0;      // the most that are in use at one time
  std::vector<TreeNode> nodes;  // what remains; node j is in buffer j
};

// The same where the leaves arrive in turns of `turn_size`, in memory of their own: value i of a turn is leaf
// i of it, until it is overwritten. Only what a turn leaves behind needs a buffer.
struct TurnReducePlan {
  struct Operand {
    bool received = false;  // value `index` of the turn, or buffer `index`
    int64_t index = 0;
  };
  // into = left + right, or a copy of left
  struct Step {
    Operand into, left, right;
    bool copy = false;
  };
  std::vector<std::vector<Step>> turns;
  int64_t num_buffers = 0;
  std::vector<TreeNode> nodes;  // what remains; node j is in buffer j
};

// The part between the ranks, the same on all of them. Rank r * num_parts + s has part s of the leaves of
// range r.
struct OwnerReducePlan {
  // Where an operand comes from: node `round` of rank `rank`.
  struct Source {
    int64_t rank = 0, round = 0;
  };
  // value(into) += value(from). Additions in order; the last one gives the root. None if P == 1.
  struct Addition {
    Source into, from;
  };
  int64_t num_rounds = 0;  // the longest list of nodes of any rank
  std::vector<Addition> additions;
};

// REQUIRES: num_ranks divides num_leaves, 0 <= rank < num_ranks; num_ranks * turn_size divides num_leaves.
RankReducePlan PlanRank(int64_t num_leaves, int64_t num_ranks, int64_t rank);
TurnReducePlan PlanTurns(int64_t num_leaves, int64_t num_ranks, int64_t rank, int64_t turn_size);
OwnerReducePlan PlanOwner(int64_t num_leaves, int64_t num_ranks, int64_t num_parts = 1);
}  // namespace carousel
