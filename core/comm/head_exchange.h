// HeadExchange: from tokens to heads and back. Ranks of an axis of size P that hold consecutive tokens of the
// same B sequences exchange them for all tokens of a part of the columns: one AllToAll of (P-1)/P of the
// tensor, P times less than gathering all tokens of all columns.
//   tokens: (B*T/P, W): T/P tokens of each sequence, all columns
//   heads:  (B*T, W/P): all tokens, in order, of this rank's columns
// Each is the other's inverse and, for gradients, the other's conjugate.
#pragma once
#include "core/comm/mesh.h"
#include "core/ops.h"

namespace carousel {

class HeadExchange {
 public:
  explicit HeadExchange(const Axis& axis) : axis_(axis) {}
  int64_t size() const { return axis_.size; }

  // Elements of the dtype that is exchanged, for one call on (rows, W) of tokens; 0 with one rank.
  int64_t WorkspaceElems(int64_t rows, int64_t W) const;
  // With one rank nothing is done: `heads` must be `tokens` itself. The tensors may be strided; workspace:
  // (WorkspaceElems) of the same dtype. P divides W.
  void ToHeads(Ops& ops, Tensor heads, Tensor tokens, int64_t B, Tensor workspace,
               CallSite site = CallSite::Here()) const;
  void ToTokens(Ops& ops, Tensor tokens, Tensor heads, int64_t B, Tensor workspace,
                CallSite site = CallSite::Here()) const;

 private:
  Axis axis_;
};
}  // namespace carousel
