// PeerCommunicator: the collectives as messages between two ranks each, for transports that have nothing more
// (MPI's messages, TCP connections). One algorithm each, so that all such transports give the same bits and
// send the same bytes:
//
// - AllReduceSum: rank r gets slice r of everybody's tensor, sums in rank order, and sends the result to all;
//   a small tensor goes to everybody whole, which takes one round instead of two.
// - ReduceScatterSum: block r goes to rank r, who sums in rank order.
// - Broadcast: a binomial tree. Barrier: log2(size) rounds of one byte.
//
// Waiting for a message is where a rank notices that others have died or call something else: it must not
// last for ever (WaitLimits), and what it prints names the call, its place in the code, the step and the
// ranks that were waited for.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/exit_code.h"
#include "core/comm/communicator.h"

namespace carousel {

struct PeerOptions {
  int64_t staging_bytes = int64_t{16} << 20;  // at most so much memory for the pieces of a sum
  double timeout_seconds = 1800;              // a call that waits longer ends the job
  // True once this process was told to end (a launcher does that to all when one rank has died). A call that
  // then gets no message for half a second says what it waits for, and after five seconds ends the job: time
  // for a rank that only was busy. Null: never. Asked by the thread that waits.
  std::function<bool()> interrupted = nullptr;
  // Told about once a second by a call that waits: what it is, and the ranks of the world that it waits for;
  // none when it waits no longer. For whoever watches over the process. Null: nobody.
  std::function<void(const std::string& call, const std::vector<int>& ranks)> waiting = nullptr;
};

class PeerCommunicator : public Communicator {
 public:
  explicit PeerCommunicator(const PeerOptions& options) : options_(options) {}

 protected:
  using Clock = std::chrono::steady_clock;
  // Messages of one kind between two ranks arrive in the order in which they were sent.
  enum class Kind : uint8_t { kCollective, kPair };

  // Start a message; `data` stays as it is until Wait. Zero bytes are not sent.
  virtual void Post(const void* data, int64_t bytes, int destination, Kind kind) = 0;
  virtual void Receive(void* data, int64_t bytes, int source, Kind kind) = 0;
  // Completes every message that was started. Fails if a message has another size than its receive. Calls
  // Limits::Check now and then.
  virtual void Wait() = 0;
  // Ends all ranks.
  [[noreturn]] virtual void EndJob(int exit_code) = 0;

  // Prints "[rank 1] [step 12] AllReduceSum(...) on 'world' at ... failed: problem" with the calls before it,
  // and ends the job.
  [[noreturn]] void Fail(const std::string& problem, int exit_code = kExitTransport);

  // How long one Wait lasts.
  class WaitLimits {
   public:
    explicit WaitLimits(PeerCommunicator& communicator)
        : communicator_(communicator), start_(Clock::now()), last_message_(start_), told_waiting_(start_) {}
    ~WaitLimits();
    WaitLimits(const WaitLimits&) = delete;
    WaitLimits& operator=(const WaitLimits&) = delete;
    // Some message has come.
    void Progress() { last_message_ = Clock::now(); }
    // Cheap enough for every few milliseconds. `missing` gives the ranks of the world that are still waited
    // for.
    void Check(const std::function<std::vector<int>()>& missing);

   private:
    PeerCommunicator& communicator_;
    const Clock::time_point start_;
    Clock::time_point last_message_, told_waiting_, interrupted_since_;
    size_t num_missing_ = SIZE_MAX;  // when last asked for
    bool interrupted_ = false, told_ = false, waits_ = false;
  };

  // Barrier for the end of a job: if the others do not come within `limit`, all ranks end with this code.
  void BarrierOrEnd(Clock::duration limit, int exit_code);

  const PeerOptions& options() const { return options_; }

  void DoAllReduceSum(Tensor x) override;
  void DoAllGather(Tensor all, Tensor mine) override;
  void DoReduceScatterSum(Tensor mine, Tensor all) override;
  void DoAllToAll(Tensor out, Tensor in) override;
  void DoBroadcast(Tensor x, int root) override;
  void DoSend(Tensor x, int destination) override;
  void DoRecv(Tensor x, int source) override;
  void DoSendRecv(Tensor out, int destination, Tensor in, int source) override;
  void DoBarrier() override;
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override;

 private:
  std::byte* Staging(int64_t bytes);
  void SumStaged(void* out, const void* own, int64_t slice_bytes, int64_t count, DType dtype);
  // Block r of `in` goes to rank r, which puts it into place rank() of its `out`. Blocks of this rank are
  // left alone. Returns with the messages under way.
  template <class In, class Out>
  void StartExchange(const In& in, const Out& out);

  PeerOptions options_;
  // Of BarrierOrEnd.
  Clock::time_point end_time_ = Clock::time_point::max();
  int end_code_ = 0;
  std::vector<std::byte> staging_;
  std::vector<const void*> slices_;
};

// "rank 2", "ranks 0, 2 and 3".
std::string RankList(const std::vector<int>& ranks);
}  // namespace carousel
