// What the files of the NCCL communicator share (nccl_communicator.h).
#pragma once
#include <nccl.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "parallel/nccl_communicator.h"
#include "parallel/nccl_communicator_watch.h"

namespace carousel {

// How far one rank is with what NCCL does in the background, and why it failed.
struct NcclProgress {
  enum class State : int32_t { kPending, kDone, kFailed };
  State state = State::kPending;
  std::string problem;
};
// Collective over `host`: asks `poll` until every rank is done. The same error on all ranks if one has
// failed, or is not done in time: it names `what` and the ranks. Ends the process where another rank does not
// answer.
absl::Status WaitForAllRanks(Communicator& host, const std::string& what, double timeout_seconds,
                             const std::function<NcclProgress()>& poll);

// "unhandled system error: the text of ncclGetLastError". The communicator may be null.
std::string NcclErrorText(ncclResult_t result, ncclComm_t communicator);
// ncclCommAbort, not waited for if it takes long.
void AbandonNccl(ncclComm_t communicator);

// A communicator whose calls do not block in NCCL either (ncclConfig_t::blocking is 0): each is waited for
// until it has been enqueued.
class NcclCommunicator final : public Communicator {
 public:
  // Owns `communicator`, whose ranks are those of `host`, and `own_host`, which may be null.
  NcclCommunicator(Communicator& host, std::unique_ptr<Communicator> own_host, Device& device,
                   ncclComm_t communicator, const NcclOptions& options);
  ~NcclCommunicator() override;

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  int WorldRank(int rank) const override { return host_.WorldRank(rank); }
  [[noreturn]] void Abort(int exit_code) override;
  // AbandonNcclCalls.
  void Abandon();
  // What the next part split off will be ordered with.
  void set_part_stream(Stream* stream) { part_stream_ = stream; }
  Stream* stream_option() const { return options_.stream; }

 protected:
  void DoAllReduceSum(Tensor x) override;
  void DoAllGather(Tensor all, Tensor mine) override;
  void DoReduceScatterSum(Tensor mine, Tensor all) override;
  void DoAllToAll(Tensor out, Tensor in) override;
  void DoBroadcast(Tensor x, int root) override;
  void DoSend(Tensor x, int destination) override;
  void DoRecv(Tensor x, int source) override;
  void DoSendRecv(Tensor out, int destination, Tensor in, int source) override;
  void DoBarrier() override;
  std::unique_ptr<Communicator> DoSplit(int color) override;
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override;

 private:
  struct Block {
    std::byte* data;
    int64_t bytes;
  };

  // `calls` calls NCCL and nothing that could wait; waits until what it did has been enqueued.
  void Issue(const std::function<ncclResult_t()>& calls);
  void Settle(ncclResult_t result, bool leaves = false);  // REQUIRES: nccl_mutex_ held, or no other thread
  // Sends block `out(r)` to every other rank r and takes `in(r)` from it.
  void Exchange(const std::function<Block(int)>& out, const std::function<Block(int)>& in);
  void Copy(void* to, const void* from, int64_t bytes);
  void End();  // of an enqueued call: from now on its end is looked for

  // ---- sums of floating-point numbers
  int64_t ElemsPerPiece(DType dtype) const;     // of one rank's block
  void TakeStaging();                           // enough for the terms of a piece
  std::byte* Term(int r, int64_t bytes) const;  // staging memory for rank r's term of so many bytes
  void SumTerms(Tensor out, Tensor own);        // out: in rank order, of own and the staged terms; may be own

  [[noreturn]] void Fail(const std::string& call, const std::string& text, bool holds_mutex);
  // " (ranks 0 to 1 of 'tensor' are ranks 2, 3 of the job)"; empty where the numbers are the same.
  std::string WhoseRanks();
  void CheckRuntime(cudaError_t status, const char* what);

  const std::unique_ptr<Communicator> own_host_;
  Communicator& host_;
  Device& device_;
  const ncclComm_t communicator_;
  const NcclOptions options_;
  const std::unique_ptr<Stream> compute_;  // where options_.stream is null
  Stream& stream_;
  const cudaStream_t native_stream_;
  Stream* part_stream_;
  std::byte* staging_ = nullptr;
  std::atomic<bool> fails_ = false;
  // NCCL's communicators are not made for several threads: held while it is called. Who holds it for long
  // asks for errors himself: the watching thread does not then.
  std::timed_mutex nccl_mutex_;
  std::unique_ptr<NcclWatch> watch_;
};
}  // namespace carousel
