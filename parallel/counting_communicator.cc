#include "parallel/counting_communicator.h"

#include <cstring>

#include "core/base/int_math.h"

namespace carousel {

int64_t WireBytes(const CollectiveCall& call, int rank, int size) {
  const int64_t bytes = call.num_elems * SizeOf(call.dtype);
  const int64_t others = size - 1;
  switch (call.op) {
    case CollectiveOp::kAllReduceSum:
      return CeilDiv(2 * others * bytes, size);
    case CollectiveOp::kAllGather:
    case CollectiveOp::kReduceScatterSum:
    case CollectiveOp::kAllToAll:
      return CeilDiv(others * bytes, size);
    case CollectiveOp::kBroadcast:
      return call.peer == rank ? others * bytes : 0;
    case CollectiveOp::kSend:
    case CollectiveOp::kSendRecv:
      return bytes;
    case CollectiveOp::kRecv:
    case CollectiveOp::kBarrier:
    case CollectiveOp::kSplit:
      return 0;
  }
  return 0;
}

CountingCommunicator::CountingCommunicator(int rank, int size) : rank_(rank), size_(size) {
  CAROUSEL_CHECK(size >= 1 && rank >= 0 && rank < size);
}

void CountingCommunicator::Record() {
  calls_.push_back({.call = call(), .wire_bytes = WireBytes(call(), rank_, size_), .tag = tag_});
}

CommTotals CountingCommunicator::Totals() const {
  CommTotals totals;
  for (const RecordedCall& recorded : calls_) {
    for (CommTotals::Row* row :
         {&totals.by_op[NameOf(recorded.call.op)], &totals.by_tag[recorded.tag], &totals.total}) {
      ++row->num_calls;
      row->wire_bytes += recorded.wire_bytes;
    }
  }
  return totals;
}

// The others are taken to call the same.
void CountingCommunicator::DoExchangeForVerify(void* all, const void* mine, int64_t bytes) {
  for (int r = 0; r < size_; ++r) {
    std::memcpy(static_cast<std::byte*>(all) + r * bytes, mine, static_cast<size_t>(bytes));
  }
}

void CountingCommunicator::Abort(int exit_code) {
  CheckFailed(__FILE__, __LINE__, "Abort(" + std::to_string(exit_code) + ") while counting communication");
}
}  // namespace carousel
