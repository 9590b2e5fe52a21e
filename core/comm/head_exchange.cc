#include "core/comm/head_exchange.h"

namespace carousel {
namespace {

// One tensor seen as the exchange sees it: a block per rank.
struct Layout {
  int64_t P, B;
  int64_t tokens, columns;  // of one sequence and one rank: T/P and W/P
  int64_t rows() const { return B * tokens; }
  int64_t block() const { return rows() * columns; }
};

Layout LayoutOf(int64_t P, const Tensor& heads, const Tensor& tokens, int64_t B, const Tensor& workspace) {
  CAROUSEL_CHECK(tokens.rank == 2 && heads.rank == 2 && B > 0);
  CAROUSEL_CHECK_EQ(tokens.dim[1] % P, int64_t{0});
  CAROUSEL_CHECK_EQ(tokens.dim[0] % B, int64_t{0});
  CAROUSEL_CHECK_SHAPE(heads, {tokens.dim[0] * P, tokens.dim[1] / P});
  CAROUSEL_CHECK(heads.dtype == tokens.dtype && workspace.dtype == tokens.dtype);
  CAROUSEL_CHECK_GE(workspace.num_elems(), 2 * tokens.num_elems());
  return {.P = P, .B = B, .tokens = tokens.dim[0] / B, .columns = tokens.dim[1] / P};
}

// Block r of a buffer of P blocks.
Tensor Block(const Layout& layout, Tensor buffer, int64_t r) {
  return buffer.Rows(r * layout.block(), layout.block()).Reshape({layout.rows(), layout.columns});
}

// copy(part of `heads`, the same part of `blocks`), of equal shapes: block r holds the tokens of rank r.
template <class Copy>
void ForEachRunOfHeads(const Layout& layout, Tensor heads, Tensor blocks, const Copy& copy) {
  const int64_t P = layout.P, B = layout.B, run = layout.tokens * layout.columns;
  for (int64_t r = 0; r < P; ++r) {
    const Tensor block = Block(layout, blocks, r);
    if (heads.contiguous()) {
      // A rank's tokens of one sequence lie in one piece: P pieces to a sequence.
      copy(heads.Reshape({B, P * run}).Columns(r * run, run), block.Reshape({B, run}));
      continue;
    }
    for (int64_t b = 0; b < B; ++b) {
      copy(heads.Rows((b * P + r) * layout.tokens, layout.tokens),
           block.Rows(b * layout.tokens, layout.tokens));
    }
  }
}
}  // namespace

int64_t HeadExchange::WorkspaceElems(int64_t rows, int64_t W) const {
  return axis_.size == 1 ? 0 : 2 * rows * W;
}

void HeadExchange::ToHeads(Ops& ops, Tensor heads, Tensor tokens, int64_t B, Tensor workspace,
                           CallSite site) const {
  if (axis_.size == 1) {
    CAROUSEL_CHECK(heads.data == tokens.data && heads.row_stride == tokens.row_stride);
    return;
  }
  const Layout layout = LayoutOf(axis_.size, heads, tokens, B, workspace);
  const int64_t n = tokens.num_elems();
  const Tensor sent = workspace.Flatten().Rows(0, n);
  // The blocks of one sequence are its tokens in order: they can arrive where they belong.
  const bool in_place = B == 1 && heads.contiguous();
  const Tensor received = in_place ? heads.Flatten() : workspace.Flatten().Rows(n, n);
  for (int64_t r = 0; r < layout.P; ++r) {
    ops.Cast({.y = Block(layout, sent, r), .x = tokens.Columns(r * layout.columns, layout.columns)});
  }
  axis_.communicator->AllToAll(received, sent, site);
  if (in_place) return;
  ForEachRunOfHeads(layout, heads, received, [&](Tensor to, Tensor from) { ops.Cast({.y = to, .x = from}); });
}

void HeadExchange::ToTokens(Ops& ops, Tensor tokens, Tensor heads, int64_t B, Tensor workspace,
                            CallSite site) const {
  if (axis_.size == 1) {
    CAROUSEL_CHECK(heads.data == tokens.data && heads.row_stride == tokens.row_stride);
    return;
  }
  const Layout layout = LayoutOf(axis_.size, heads, tokens, B, workspace);
  const int64_t n = tokens.num_elems();
  const bool in_place = B == 1 && heads.contiguous();
  const Tensor sent = in_place ? heads.Flatten() : workspace.Flatten().Rows(0, n);
  const Tensor received = workspace.Flatten().Rows(n, n);
  if (!in_place) {
    ForEachRunOfHeads(layout, heads, sent, [&](Tensor from, Tensor to) { ops.Cast({.y = to, .x = from}); });
  }
  axis_.communicator->AllToAll(received, sent, site);
  for (int64_t r = 0; r < layout.P; ++r) {
    ops.Cast({.y = tokens.Columns(r * layout.columns, layout.columns), .x = Block(layout, received, r)});
  }
}
}  // namespace carousel
