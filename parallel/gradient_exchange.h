// GradientExchange: block q of every rank's tensors goes to rank q, in pieces that fit the staging memory.
#pragma once
#include <functional>
#include <vector>

#include "core/arena.h"
#include "parallel/comm_lane.h"

namespace carousel {

class GradientExchange {
 public:
  // num_rounds: how many tensors a rank sends in one Run. wire: what crosses ranks; tensors of another dtype
  // are rounded to it.
  GradientExchange(CommLane& lane, const Axis& axis, int64_t num_rounds, DType tensors, DType wire);

  // Sizes the pieces for blocks of at most `largest_block` elements: whole blocks if staging_bytes hold the
  // received ones, otherwise pieces that are packed before they are sent.
  void Plan(int64_t largest_block, int64_t staging_bytes);
  int64_t staging_elems() const;  // of the wire's dtype
  // staging: (at least staging_elems()) in the wire's dtype. Exchanges of one lane may share it.
  void SetStaging(Tensor staging) { staging_ = staging; }

  // A piece: elements [begin, begin + count) of every rank's block of this rank, where each tensor's block q
  // is rank q's.
  struct Piece {
    int64_t begin = 0, count = 0, num_ranks = 0;
    Tensor received;  // (num_rounds * num_ranks * count)
    // The values of one rank's tensor `round`.
    Tensor From(int64_t rank, int64_t round = 0) const {
      return received.Rows((round * num_ranks + rank) * count, count);
    }
  };
  // tensors: 1 to num_rounds of P * block elements each; a rank with fewer sends its last one again.
  // combine is called for every piece after its exchange was enqueued, and may overwrite this rank's block of
  // what was sent.
  void Run(const std::vector<Tensor>& tensors, const std::function<void(const Piece&)>& combine);

 private:
  bool packs() const { return !whole_ || tensors_ != wire_; }

  CommLane& lane_;
  Axis axis_;
  int64_t num_rounds_;
  DType tensors_, wire_;
  int64_t piece_ = 0;
  bool whole_ = true;
  Tensor staging_;
};
}  // namespace carousel
