// Communicator: how ranks talk. Implemented in parallel/ (threads of one process, MPI, TCP, NCCL, staged,
// counting) by the Do... methods; what all of them share is here: arguments are checked, every call is noted
// in a flight recorder with its place in our code, and, if asked for, compared with the other ranks' calls.
//
// Collectives: every rank of the communicator must make the same calls in the same order with tensors of the
// same element count and dtype. Tensors are contiguous. A call blocks until its result may be used (on a
// device: is ordered with the communicator's stream). Sums are taken in rank order in the tensor's own type
// (bf16: in f32, rounded once), so they are deterministic. A rank that fails aborts the whole job (exit code
// through the launcher): collectives return void.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/comm/call_site.h"
#include "core/comm/collective_call.h"
#include "core/comm/flight_recorder.h"
#include "core/tensor.h"

namespace carousel {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // The number of one of this communicator's ranks among all ranks of the job, for messages.
  virtual int WorldRank(int rank) const { return rank; }

  // x = sum over ranks of x. f32, bf16, f64, i32, i64.
  void AllReduceSum(Tensor x, CallSite site = CallSite::Here());
  // all = concatenation in rank order of every rank's `mine`; all has size() * mine elements. `mine` may be
  // the block of `all` that belongs to this rank (in place). Any dtype.
  void AllGather(Tensor all, Tensor mine, CallSite site = CallSite::Here());
  // mine = block rank() of the sum over ranks of `all`. Dtypes as AllReduceSum. `mine` may lie inside `all`
  // at this rank's block.
  void ReduceScatterSum(Tensor mine, Tensor all, CallSite site = CallSite::Here());
  // Block r of `in` goes to rank r; block r of `out` comes from rank r. Equal blocks; in and out do not
  // overlap. Any dtype.
  void AllToAll(Tensor out, Tensor in, CallSite site = CallSite::Here());
  void Broadcast(Tensor x, int root, CallSite site = CallSite::Here());
  void Send(Tensor x, int destination, CallSite site = CallSite::Here());
  void Recv(Tensor x, int source, CallSite site = CallSite::Here());
  // Sends `out` and receives `in` at once, so that ranks that exchange cannot wait for each other's receive.
  // An undefined tensor leaves its half out: along a chain the first rank receives nothing, the last sends
  // nothing. The other ends may use Send, Recv or SendRecv. in and out do not overlap.
  void SendRecv(Tensor out, int destination, Tensor in, int source, CallSite site = CallSite::Here());
  void Barrier(CallSite site = CallSite::Here());

  // Collective. The ranks that give the same color form a new communicator, in the order of their ranks; a
  // rank that gives a negative color gets null. The new one ends before this one.
  std::unique_ptr<Communicator> Split(int color, CallSite site = CallSite::Here());

  // Ends all ranks of the job at once with this exit code. For a failure that the others cannot see.
  [[noreturn]] virtual void Abort(int exit_code) = 0;

  // What this rank called last, for a report of a hang. May be read by any thread at any time.
  FlightRecorder& recorder() { return recorder_; }
  // A name for messages and reports: "tensor", "replicas", ... Set before use.
  virtual void set_name(const std::string& name) { recorder_.set_name(name); }

  // Debugging: before each collective, compare operation, element count, dtype and root of all ranks; a
  // difference ends the job with an error that names both ranks' calls and their places in the code, where
  // otherwise they would hang or exchange wrong data. Costs a small message per rank and call. Set alike on
  // all ranks; communicators split off inherit it.
  void set_verify_calls(bool verify) { verify_calls_ = verify; }
  bool verify_calls() const { return verify_calls_; }

 protected:
  virtual void DoAllReduceSum(Tensor x) = 0;
  virtual void DoAllGather(Tensor all, Tensor mine) = 0;
  virtual void DoReduceScatterSum(Tensor mine, Tensor all) = 0;
  virtual void DoAllToAll(Tensor out, Tensor in) = 0;
  virtual void DoBroadcast(Tensor x, int root) = 0;
  virtual void DoSend(Tensor x, int destination) = 0;
  virtual void DoRecv(Tensor x, int source) = 0;
  virtual void DoBarrier() = 0;
  // A communicator that lacks one of these ends the process when it is asked for it.
  virtual void DoSendRecv(Tensor out, int destination, Tensor in, int source);  // both are defined
  virtual std::unique_ptr<Communicator> DoSplit(int color);
  // All ranks' `mine`, `bytes` each, into `all` in rank order, in host memory; not recorded. For
  // verify_calls.
  virtual void DoExchangeForVerify(void* all, const void* mine, int64_t bytes);

  // The call in progress, and where it was made.
  const CollectiveCall& call() const { return call_; }
  const CallSite& site() const { return site_; }
  // "[step 12] AllToAll(4096 x f32) on 'replicas' at parallel/sharded_sync.cc:120".
  std::string DescribeCurrent() const;

 private:
  class Scope;  // of one call
  void Verify();

  FlightRecorder recorder_;
  bool verify_calls_ = false;
  CollectiveCall call_;
  CallSite site_;
};

// Control messages: every rank's bytes, in rank order. Blocks.
std::vector<std::string> AllGatherBytes(Communicator& communicator, const std::string& mine,
                                        CallSite site = CallSite::Here());
// The root's bytes on every rank.
std::string BroadcastBytes(Communicator& communicator, const std::string& bytes, int root,
                           CallSite site = CallSite::Here());

// Collective. values[i] = sum over ranks of values[i], mod 2^64: exact and the same for every number of
// ranks. The same length everywhere.
void SumOverRanks(Communicator& communicator, std::vector<uint64_t>* values,
                  CallSite site = CallSite::Here());
// The sum of one value each, mod 2^64.
uint64_t SumOverRanks(Communicator& communicator, uint64_t mine, CallSite site = CallSite::Here());
}  // namespace carousel
