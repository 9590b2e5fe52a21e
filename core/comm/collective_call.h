// What every Communicator checks of its arguments, and the one description of a call that all of them use in
// messages.
#pragma once
#include <string>

#include "core/tensor.h"

namespace carousel {

enum class CollectiveOp : uint8_t {
  kAllReduceSum,
  kAllGather,
  kReduceScatterSum,
  kAllToAll,
  kBroadcast,
  kSend,
  kRecv,
  kSendRecv,
  kBarrier,
  kSplit
};
const char* NameOf(CollectiveOp op);

// A call as its peers must see it: every rank's description of one collective is equal.
struct CollectiveCall {
  CollectiveOp op = CollectiveOp::kBarrier;
  DType dtype = DType::kU8;
  int64_t num_elems = 0;  // of the larger tensor: x, all, in
  int peer = -1;          // root of a broadcast, the other end of a send or receive; -1 for the rest
  int source = -1;        // of a SendRecv, whose destination is `peer`
  bool operator==(const CollectiveCall&) const = default;
};
// "AllReduceSum(1024 x f32)", "Broadcast(3 x i64, root 1)".
std::string Describe(const CollectiveCall& call);

// These CHECK dtypes, contiguity, block sizes, overlap of memory and the range of the other rank, for a
// communicator of `size` ranks in which the caller is `rank`. Tensors may lack data.
CollectiveCall CheckAllReduceSum(Tensor x);
CollectiveCall CheckAllGather(Tensor all, Tensor mine, int rank, int size);
CollectiveCall CheckReduceScatterSum(Tensor mine, Tensor all, int rank, int size);
CollectiveCall CheckAllToAll(Tensor out, Tensor in, int size);
CollectiveCall CheckBroadcast(Tensor x, int root, int size);
CollectiveCall CheckSend(Tensor x, int destination, int rank, int size);
CollectiveCall CheckRecv(Tensor x, int source, int rank, int size);
// Both are defined; the count is of `out`.
CollectiveCall CheckSendRecv(Tensor out, int destination, Tensor in, int source, int rank, int size);

// out[j] = ((in[0][j] + in[1][j]) + ...) + in[num_ranks - 1][j], j < count: the sum in rank order that every
// host communicator takes. out may be one of the inputs. f32, f64, i32, i64 (integers wrap around); bf16: the
// sum is taken in f32 and rounded once.
void SumInRankOrder(void* out, const void* const* in, int num_ranks, int64_t count, DType dtype);
}  // namespace carousel
