#include "parallel/gradient_exchange.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {
namespace {
// Pieces are not made smaller than this, however many ranks share the staging memory.
constexpr int64_t kMinPieceElems = 1024;
constexpr int64_t kPieceAlignElems = 64;
}  // namespace

GradientExchange::GradientExchange(CommLane& lane, const Axis& axis, int64_t num_rounds, DType tensors,
                                   DType wire)
    : lane_(lane), axis_(axis), num_rounds_(num_rounds), tensors_(tensors), wire_(wire) {
  CAROUSEL_CHECK(axis.size > 1 && num_rounds >= 1);
}

void GradientExchange::Plan(int64_t largest_block, int64_t staging_bytes) {
  // One buffer of one block per rank, if it had all the memory.
  const int64_t round_elems = staging_bytes / (axis_.size * SizeOf(wire_));
  const int64_t rounds_if_whole = num_rounds_ + (tensors_ != wire_ ? 1 : 0);
  whole_ = largest_block <= round_elems / rounds_if_whole;
  const int64_t piece = round_elems / (num_rounds_ + 1) / kPieceAlignElems * kPieceAlignElems;
  piece_ = whole_ ? largest_block : std::min(largest_block, std::max(piece, kMinPieceElems));
}

int64_t GradientExchange::staging_elems() const {
  return (num_rounds_ + (packs() ? 1 : 0)) * axis_.size * piece_;
}

void GradientExchange::Run(const std::vector<Tensor>& tensors,
                           const std::function<void(const Piece&)>& combine) {
  const int64_t P = axis_.size, block = DivExact(tensors[0].num_elems(), P);
  CAROUSEL_CHECK(!tensors.empty() && static_cast<int64_t>(tensors.size()) <= num_rounds_);
  CAROUSEL_CHECK(piece_ > 0 && staging_.defined());
  for (int64_t begin = 0; begin < block; begin += piece_) {
    const int64_t count = std::min(piece_, block - begin);
    const Piece piece = {.begin = begin,
                         .count = count,
                         .num_ranks = P,
                         .received = staging_.Rows(0, num_rounds_ * P * count)};
    for (int64_t round = 0; round < num_rounds_; ++round) {
      const Tensor tensor = tensors[std::min(static_cast<size_t>(round), tensors.size() - 1)];
      Tensor sent = tensor;
      if (count < block || tensors_ != wire_) {
        sent = staging_.Rows(num_rounds_ * P * count, P * count);
        if (sent.data != nullptr) {
          lane_.ops()->Cast(
              {.y = sent.Reshape({P, count}), .x = tensor.Reshape({P, block}).Columns(begin, count)});
        }
      }
      lane_.of(axis_).AllToAll(piece.received.Rows(round * P * count, P * count), sent);
    }
    combine(piece);
  }
}
}  // namespace carousel
