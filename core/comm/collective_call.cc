#include "core/comm/collective_call.h"

#include <algorithm>

namespace carousel {
namespace {
// Additions in blocks that stay in the first-level cache: the inputs are streamed once each.
constexpr int64_t kSumBlock = 1024;

bool IsSummable(DType dtype) { return dtype != DType::kU8; }

void CheckTensor(CollectiveOp op, Tensor x, const char* name) {
  CAROUSEL_CHECK_MSG(x.defined(), std::string(NameOf(op)) + ": " + name + " is undefined");
  CAROUSEL_CHECK_MSG(x.contiguous(), std::string(NameOf(op)) + ": " + name + " must be contiguous");
}

void CheckSum(CollectiveOp op, DType dtype) {
  CAROUSEL_CHECK_MSG(IsSummable(dtype), std::string(NameOf(op)) + ": there is no sum of " + NameOf(dtype));
}

void CheckRank(CollectiveOp op, int peer, int size, const char* name) {
  CAROUSEL_CHECK_MSG(peer >= 0 && peer < size, std::string(NameOf(op)) + ": " + name + " is rank " +
                                                   std::to_string(peer) + " of " + std::to_string(size));
}

bool Overlap(Tensor a, Tensor b) {
  if (a.data == nullptr || b.data == nullptr || a.num_bytes() == 0 || b.num_bytes() == 0) return false;
  const std::byte* a_begin = static_cast<const std::byte*>(a.data);
  const std::byte* b_begin = static_cast<const std::byte*>(b.data);
  return a_begin < b_begin + b.num_bytes() && b_begin < a_begin + a.num_bytes();
}

// One block of `all` per rank; `block` apart from all, or exactly this rank's block of it.
void CheckBlocks(CollectiveOp op, Tensor all, Tensor block, int rank, int size) {
  CheckTensor(op, all, "all");
  CheckTensor(op, block, "mine");
  CAROUSEL_CHECK_MSG(all.dtype == block.dtype, std::string(NameOf(op)) + ": all is " + NameOf(all.dtype) +
                                                   ", mine is " + NameOf(block.dtype));
  CAROUSEL_CHECK_MSG(all.num_elems() == size * block.num_elems(),
                     std::string(NameOf(op)) + ": all has " + std::to_string(all.num_elems()) +
                         " elements, which is not " + std::to_string(size) + " ranks x " +
                         std::to_string(block.num_elems()));
  if (!Overlap(all, block)) return;
  const std::byte* own = static_cast<const std::byte*>(all.data) + rank * block.num_bytes();
  CAROUSEL_CHECK_MSG(own == block.data, std::string(NameOf(op)) + ": mine may lie in all only at block " +
                                            std::to_string(rank) + ", this rank's");
}

// Added up in Sum.
template <class T, class Sum = T>
void SumTyped(void* out_memory, const void* const* in, int num_ranks, int64_t count) {
  T* out = static_cast<T*>(out_memory);
  Sum sum[kSumBlock];
  for (int64_t begin = 0; begin < count; begin += kSumBlock) {
    const int64_t n = std::min(kSumBlock, count - begin);
    const T* first = static_cast<const T*>(in[0]) + begin;
    for (int64_t j = 0; j < n; ++j) sum[j] = static_cast<Sum>(first[j]);
    for (int r = 1; r < num_ranks; ++r) {
      const T* x = static_cast<const T*>(in[r]) + begin;
      for (int64_t j = 0; j < n; ++j) sum[j] += static_cast<Sum>(x[j]);
    }
    for (int64_t j = 0; j < n; ++j) out[begin + j] = static_cast<T>(sum[j]);
  }
}
}  // namespace

const char* NameOf(CollectiveOp op) {
  switch (op) {
    case CollectiveOp::kAllReduceSum:
      return "AllReduceSum";
    case CollectiveOp::kAllGather:
      return "AllGather";
    case CollectiveOp::kReduceScatterSum:
      return "ReduceScatterSum";
    case CollectiveOp::kAllToAll:
      return "AllToAll";
    case CollectiveOp::kBroadcast:
      return "Broadcast";
    case CollectiveOp::kSend:
      return "Send";
    case CollectiveOp::kRecv:
      return "Recv";
    case CollectiveOp::kSendRecv:
      return "SendRecv";
    case CollectiveOp::kBarrier:
      return "Barrier";
    case CollectiveOp::kSplit:
      return "Split";
  }
  return "?";
}

std::string Describe(const CollectiveCall& call) {
  std::string text = NameOf(call.op);
  if (call.op == CollectiveOp::kBarrier || call.op == CollectiveOp::kSplit) return text + "()";
  text += "(" + std::to_string(call.num_elems) + " x " + NameOf(call.dtype);
  if (call.op == CollectiveOp::kBroadcast) text += ", root " + std::to_string(call.peer);
  if (call.op == CollectiveOp::kSend) text += " to rank " + std::to_string(call.peer);
  if (call.op == CollectiveOp::kRecv) text += " from rank " + std::to_string(call.peer);
  if (call.op == CollectiveOp::kSendRecv) {
    text += " to rank " + std::to_string(call.peer) + ", from rank " + std::to_string(call.source);
  }
  return text + ")";
}

CollectiveCall CheckAllReduceSum(Tensor x) {
  CheckTensor(CollectiveOp::kAllReduceSum, x, "x");
  CheckSum(CollectiveOp::kAllReduceSum, x.dtype);
  return {.op = CollectiveOp::kAllReduceSum, .dtype = x.dtype, .num_elems = x.num_elems()};
}

CollectiveCall CheckAllGather(Tensor all, Tensor mine, int rank, int size) {
  CheckBlocks(CollectiveOp::kAllGather, all, mine, rank, size);
  return {.op = CollectiveOp::kAllGather, .dtype = all.dtype, .num_elems = all.num_elems()};
}

CollectiveCall CheckReduceScatterSum(Tensor mine, Tensor all, int rank, int size) {
  CheckBlocks(CollectiveOp::kReduceScatterSum, all, mine, rank, size);
  CheckSum(CollectiveOp::kReduceScatterSum, all.dtype);
  return {.op = CollectiveOp::kReduceScatterSum, .dtype = all.dtype, .num_elems = all.num_elems()};
}

CollectiveCall CheckAllToAll(Tensor out, Tensor in, int size) {
  constexpr CollectiveOp kOp = CollectiveOp::kAllToAll;
  CheckTensor(kOp, out, "out");
  CheckTensor(kOp, in, "in");
  CAROUSEL_CHECK_MSG(out.dtype == in.dtype && out.num_elems() == in.num_elems(),
                     "AllToAll: out is " + std::to_string(out.num_elems()) + " x " + NameOf(out.dtype) +
                         ", in is " + std::to_string(in.num_elems()) + " x " + NameOf(in.dtype));
  CAROUSEL_CHECK_MSG(in.num_elems() % size == 0, "AllToAll: " + std::to_string(in.num_elems()) +
                                                     " elements do not split into " + std::to_string(size) +
                                                     " equal blocks");
  CAROUSEL_CHECK_MSG(!Overlap(out, in), "AllToAll: in and out overlap");
  return {.op = kOp, .dtype = in.dtype, .num_elems = in.num_elems()};
}

CollectiveCall CheckBroadcast(Tensor x, int root, int size) {
  CheckTensor(CollectiveOp::kBroadcast, x, "x");
  CheckRank(CollectiveOp::kBroadcast, root, size, "root");
  return {.op = CollectiveOp::kBroadcast, .dtype = x.dtype, .num_elems = x.num_elems(), .peer = root};
}

CollectiveCall CheckSend(Tensor x, int destination, int rank, int size) {
  CheckTensor(CollectiveOp::kSend, x, "x");
  CheckRank(CollectiveOp::kSend, destination, size, "destination");
  CAROUSEL_CHECK_MSG(destination != rank, "Send: a rank cannot send to itself");
  return {.op = CollectiveOp::kSend, .dtype = x.dtype, .num_elems = x.num_elems(), .peer = destination};
}

CollectiveCall CheckRecv(Tensor x, int source, int rank, int size) {
  CheckTensor(CollectiveOp::kRecv, x, "x");
  CheckRank(CollectiveOp::kRecv, source, size, "source");
  CAROUSEL_CHECK_MSG(source != rank, "Recv: a rank cannot receive from itself");
  return {.op = CollectiveOp::kRecv, .dtype = x.dtype, .num_elems = x.num_elems(), .peer = source};
}

CollectiveCall CheckSendRecv(Tensor out, int destination, Tensor in, int source, int rank, int size) {
  CheckSend(out, destination, rank, size);
  CheckRecv(in, source, rank, size);
  CAROUSEL_CHECK_MSG(!Overlap(out, in), "SendRecv: in and out overlap");
  return {.op = CollectiveOp::kSendRecv,
          .dtype = out.dtype,
          .num_elems = out.num_elems(),
          .peer = destination,
          .source = source};
}

void SumInRankOrder(void* out, const void* const* in, int num_ranks, int64_t count, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return SumTyped<float>(out, in, num_ranks, count);
    case DType::kBF16:
      return SumTyped<bfloat16, float>(out, in, num_ranks, count);
    case DType::kF64:
      return SumTyped<double>(out, in, num_ranks, count);
    case DType::kI32:  // unsigned: wraps around, where int32_t would be undefined
      return SumTyped<uint32_t>(out, in, num_ranks, count);
    case DType::kI64:
      return SumTyped<uint64_t>(out, in, num_ranks, count);
    default:
      CheckFailed(__FILE__, __LINE__, std::string("no sum of ") + NameOf(dtype));
  }
}
}  // namespace carousel
