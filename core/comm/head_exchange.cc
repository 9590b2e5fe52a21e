#include "core/comm/head_exchange.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {
namespace {
using Fused = HeadExchange::Fused;
using Columns = HeadExchange::Columns;

// Where a part begins in a block, and the block's size.
struct BlockLayout {
  std::vector<int64_t> offsets;
  int64_t bytes = 0;
};
BlockLayout LayOut(int64_t P, int64_t rows, const std::vector<Columns>& parts) {
  BlockLayout block;
  int64_t largest = 1;
  for (const Columns& part : parts) {
    const int64_t size = SizeOf(part.dtype);
    largest = std::max(largest, size);
    block.bytes = RoundUp(block.bytes, size);
    block.offsets.push_back(block.bytes);
    block.bytes += rows * DivExact(part.width, P) * size;
  }
  block.bytes = RoundUp(block.bytes, largest);
  return block;
}

// The parts of one call, seen as the exchange sees them: a block per rank.
class Packing {
 public:
  Packing(int64_t P, const std::vector<Fused>& parts, int64_t B) : P_(P), B_(B), parts_(parts) {
    CAROUSEL_CHECK(!parts.empty() && !parts[0].tokens.empty() && B > 0);
    rows_ = parts[0].tokens[0].dim[0];
    CAROUSEL_CHECK_EQ(rows_ % B, int64_t{0});
    std::vector<Columns> columns;
    for (const Fused& part : parts) {
      int64_t width = 0;
      for (const Tensor& tokens : part.tokens) {
        CAROUSEL_CHECK(tokens.rank == 2 && tokens.dtype == part.heads.dtype);
        CAROUSEL_CHECK_EQ(tokens.dim[0], rows_);
        CAROUSEL_CHECK_EQ(tokens.dim[1] % P, int64_t{0});
        width += tokens.dim[1];
      }
      CAROUSEL_CHECK_SHAPE(part.heads, {rows_ * P, width / P});
      columns.push_back({.dtype = part.heads.dtype, .width = width});
    }
    block_ = LayOut(P, rows_, columns);
  }
  int64_t buffer_bytes() const { return P_ * block_.bytes; }
  // The blocks of one sequence of one part are its tokens in order: they can go from or arrive where they
  // belong.
  bool heads_are_blocks() const { return parts_.size() == 1 && B_ == 1 && parts_[0].heads.contiguous(); }
  // A half of the workspace, or such heads, as the call has it.
  Tensor Whole(Tensor buffer) const {
    if (parts_.size() > 1) return buffer.Rows(0, buffer_bytes());
    const DType dtype = parts_[0].heads.dtype;
    return Tensor(buffer.data, dtype, {buffer_bytes() / SizeOf(dtype)});
  }

  // copy(columns of tokens, the same in the buffer), of equal shapes: block r has the columns of rank r.
  template <class Copy>
  void ForEachOfTokens(Tensor buffer, const Copy& copy) const {
    for (size_t p = 0; p < parts_.size(); ++p) {
      for (int64_t r = 0; r < P_; ++r) {
        const Tensor rows = Part(buffer, p, r);
        int64_t first = 0;
        for (const Tensor& tokens : parts_[p].tokens) {
          const int64_t width = tokens.dim[1] / P_;
          copy(tokens.Columns(r * width, width), rows.Columns(first, width));
          first += width;
        }
      }
    }
  }
  // copy(rows of heads, the same in the buffer), of equal shapes: block r has the tokens of rank r.
  template <class Copy>
  void ForEachOfHeads(Tensor buffer, const Copy& copy) const {
    const int64_t tokens = rows_ / B_;  // of one sequence
    for (size_t p = 0; p < parts_.size(); ++p) {
      const Tensor heads = parts_[p].heads;
      const int64_t run = tokens * heads.dim[1];
      for (int64_t r = 0; r < P_; ++r) {
        const Tensor rows = Part(buffer, p, r);
        if (heads.contiguous()) {
          // A rank's tokens of one sequence lie in one piece: P pieces to a sequence.
          copy(heads.Reshape({B_, P_ * run}).Columns(r * run, run), rows.Reshape({B_, run}));
          continue;
        }
        for (int64_t b = 0; b < B_; ++b) {
          copy(heads.Rows((b * P_ + r) * tokens, tokens), rows.Rows(b * tokens, tokens));
        }
      }
    }
  }

 private:
  // Part p of block r: (rows, W/P).
  Tensor Part(Tensor buffer, size_t p, int64_t r) const {
    const Tensor& heads = parts_[p].heads;
    const int64_t bytes = rows_ * heads.dim[1] * SizeOf(heads.dtype);
    const Tensor part = buffer.Rows(r * block_.bytes + block_.offsets[p], bytes);
    return Tensor(part.data, heads.dtype, {rows_, heads.dim[1]});
  }

  int64_t P_, B_, rows_ = 0;
  const std::vector<Fused>& parts_;
  BlockLayout block_;
};

void CheckOneRank(const std::vector<Fused>& parts) {
  for (const Fused& part : parts) {
    CAROUSEL_CHECK(part.tokens.size() == 1 && part.heads.data == part.tokens[0].data &&
                   part.heads.row_stride == part.tokens[0].row_stride);
  }
}
}  // namespace

int64_t HeadExchange::BlockBytes(int64_t P, int64_t rows, const std::vector<Columns>& parts) {
  return LayOut(P, rows, parts).bytes;
}

int64_t HeadExchange::BufferBytes(int64_t rows, const std::vector<Columns>& parts) const {
  return axis_.size == 1 ? 0 : axis_.size * BlockBytes(axis_.size, rows, parts);
}

void HeadExchange::ToHeads(Ops& ops, const std::vector<Fused>& parts, int64_t B, const Workspace& workspace,
                           CallSite site) const {
  if (axis_.size == 1) return CheckOneRank(parts);
  const Packing packing(axis_.size, parts, B);
  packing.ForEachOfTokens(workspace.sent,
                          [&](Tensor tokens, Tensor sent) { ops.Cast({.y = sent, .x = tokens}); });
  const bool in_place = packing.heads_are_blocks();
  axis_.communicator->AllToAll(packing.Whole(in_place ? parts[0].heads : workspace.received),
                               packing.Whole(workspace.sent), site);
  if (in_place) return;
  packing.ForEachOfHeads(workspace.received,
                         [&](Tensor heads, Tensor received) { ops.Cast({.y = heads, .x = received}); });
}

void HeadExchange::ToTokens(Ops& ops, const std::vector<Fused>& parts, int64_t B, const Workspace& workspace,
                            CallSite site) const {
  if (axis_.size == 1) return CheckOneRank(parts);
  const Packing packing(axis_.size, parts, B);
  const bool in_place = packing.heads_are_blocks();
  if (!in_place) {
    packing.ForEachOfHeads(workspace.sent,
                           [&](Tensor heads, Tensor sent) { ops.Cast({.y = sent, .x = heads}); });
  }
  axis_.communicator->AllToAll(packing.Whole(workspace.received),
                               packing.Whole(in_place ? parts[0].heads : workspace.sent), site);
  packing.ForEachOfTokens(workspace.received,
                          [&](Tensor tokens, Tensor received) { ops.Cast({.y = tokens, .x = received}); });
}
}  // namespace carousel
