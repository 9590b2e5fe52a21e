// HeadExchange: from tokens to heads and back. Ranks of an axis of size P that hold consecutive tokens of the
// same B sequences exchange them for all tokens of a part of the columns: one AllToAll of (P-1)/P of the
// tensor, P times less than gathering all tokens of all columns.
//   tokens: (B*T/P, W): T/P tokens of each sequence, all columns
//   heads:  (B*T, W/P): all tokens, in order, of this rank's columns
// Each is the other's inverse and, for gradients, the other's conjugate. Several tensors, also of different
// dtypes, cross in one call: a layer has one exchange for all that its cell reads and one for what it gives.
#pragma once
#include <cstdint>
#include <vector>

#include "core/comm/mesh.h"
#include "core/ops.h"

namespace carousel {

class HeadExchange {
 public:
  explicit HeadExchange(const Axis& axis) : axis_(axis) {}
  int64_t size() const { return axis_.size; }

  // Tensors of one dtype that lie side by side in `heads`: W/P columns of each, in this order. All of them
  // may be strided.
  struct Fused {
    Tensor heads;                // (B*T, sum of W_j / P)
    std::vector<Tensor> tokens;  // (B*T/P, W_j), P divides every W_j
  };
  struct Columns {
    DType dtype;
    int64_t width;  // the sum of W_j
  };
  // What one rank sends to one other for `rows` of tokens: the parts one after the other, each from a
  // multiple of its element's size on and the whole rounded up to the largest one. With parts of falling
  // element sizes only the end is padded, by less than an element.
  static int64_t BlockBytes(int64_t P, int64_t rows, const std::vector<Columns>& parts);
  // Bytes of each half of a Workspace; 0 with one rank.
  int64_t BufferBytes(int64_t rows, const std::vector<Columns>& parts) const;

  // u8, each at least BufferBytes; not touched with one rank. `heads` of ToTokens may lie in `received` if
  // there are several parts: it has been read when that is written.
  struct Workspace {
    Tensor sent, received;
  };
  // One AllToAll: of the parts' dtype if there is one part, of bytes otherwise. With one rank nothing is
  // done: every `heads` must be its one `tokens` itself.
  void ToHeads(Ops& ops, const std::vector<Fused>& parts, int64_t B, const Workspace& workspace,
               CallSite site = CallSite::Here()) const;
  void ToTokens(Ops& ops, const std::vector<Fused>& parts, int64_t B, const Workspace& workspace,
                CallSite site = CallSite::Here()) const;
  // The same of one tensor.
  void ToHeads(Ops& ops, Tensor heads, Tensor tokens, int64_t B, const Workspace& workspace,
               CallSite site = CallSite::Here()) const {
    ToHeads(ops, {{.heads = heads, .tokens = {tokens}}}, B, workspace, site);
  }
  void ToTokens(Ops& ops, Tensor tokens, Tensor heads, int64_t B, const Workspace& workspace,
                CallSite site = CallSite::Here()) const {
    ToTokens(ops, {{.heads = heads, .tokens = {tokens}}}, B, workspace, site);
  }

 private:
  Axis axis_;
};
}  // namespace carousel
