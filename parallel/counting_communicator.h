// A communicator that moves nothing and records every call: how `carousel plan` and the tests know what a
// step sends, for any number of ranks, without them. Tensors may lack data; where they have it, it is not
// touched. It cannot be split, because nobody answers which colors the other ranks give: make one for each
// group.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "core/comm/collective_call.h"
#include "core/comm/communicator.h"

namespace carousel {

// Bytes that one rank of `size` puts on the wire for one call, by the algorithms that need the least:
//   AllReduceSum 2 (P-1)/P x   AllGather (P-1)/P all   ReduceScatterSum (P-1)/P all   AllToAll (P-1)/P in
//   Broadcast: the root sends (P-1) x, the others nothing   Send x   Recv, Barrier 0.  Rounded up to a byte.
int64_t WireBytes(const CollectiveCall& call, int rank, int size);

struct RecordedCall {
  CollectiveCall call;
  int64_t wire_bytes = 0;  // sent by this rank
  std::string tag;         // what SetTag said last
};

struct CommTotals {
  struct Row {
    int64_t num_calls = 0;
    int64_t wire_bytes = 0;  // sent per rank
  };
  std::map<std::string, Row> by_op;   // "AllToAll" -> ...
  std::map<std::string, Row> by_tag;  // "gradients" -> ...
  Row total;
};

class CountingCommunicator : public Communicator {
 public:
  CountingCommunicator(int rank, int size);

  // Labels the calls that follow.
  void SetTag(const std::string& tag) { tag_ = tag; }
  const std::vector<RecordedCall>& calls() const { return calls_; }
  CommTotals Totals() const;
  void Clear() { calls_.clear(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  [[noreturn]] void Abort(int exit_code) override;

 protected:
  void DoAllReduceSum(Tensor) override { Record(); }
  void DoAllGather(Tensor, Tensor) override { Record(); }
  void DoReduceScatterSum(Tensor, Tensor) override { Record(); }
  void DoAllToAll(Tensor, Tensor) override { Record(); }
  void DoBroadcast(Tensor, int) override { Record(); }
  void DoSend(Tensor, int) override { Record(); }
  void DoRecv(Tensor, int) override { Record(); }
  void DoSendRecv(Tensor, int, Tensor, int) override { Record(); }
  void DoBarrier() override { Record(); }
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override;

 private:
  void Record();  // the call in progress
  int rank_, size_;
  std::string tag_;
  std::vector<RecordedCall> calls_;
};
}  // namespace carousel
