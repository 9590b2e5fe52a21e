// Communicator: how ranks talk. Implemented in parallel/ (threads of one process, MPI, counting; later NCCL).
//
// Collectives: every rank of the communicator must make the same calls in the same order with tensors of the
// same element count and dtype. Tensors are contiguous. A call blocks until its result may be used (on a
// device: is ordered with the compute stream). Sums are taken in rank order in the tensor's own type, so they
// are deterministic. A rank that fails aborts the whole job (exit code through the launcher): collectives
// return void.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace carousel {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // x = sum over ranks of x. f32, f64, i32, i64.
  virtual void AllReduceSum(Tensor x) = 0;
  // all = concatenation in rank order of every rank's `mine`; all has size() * mine elements. `mine` may be
  // the block of `all` that belongs to this rank (in place). Any dtype.
  virtual void AllGather(Tensor all, Tensor mine) = 0;
  // mine = block rank() of the sum over ranks of `all`. f32, f64, i64. `mine` may lie inside `all` at this
  // rank's block.
  virtual void ReduceScatterSum(Tensor mine, Tensor all) = 0;
  // Block r of `in` goes to rank r; block r of `out` comes from rank r. Equal blocks; in and out do not
  // overlap. Any dtype.
  virtual void AllToAll(Tensor out, Tensor in) = 0;
  virtual void Broadcast(Tensor x, int root) = 0;
  virtual void Send(Tensor x, int destination) = 0;
  virtual void Recv(Tensor x, int source) = 0;
  virtual void Barrier() = 0;
  // Ends all ranks of the job at once with this exit code. For a failure that the others cannot see.
  [[noreturn]] virtual void Abort(int exit_code) = 0;
};

// Control messages: every rank's bytes, in rank order. Blocks.
std::vector<std::string> AllGatherBytes(Communicator& communicator, const std::string& mine);
// The root's bytes on every rank.
std::string BroadcastBytes(Communicator& communicator, const std::string& bytes, int root);

// Collective. values[i] = sum over ranks of values[i], mod 2^64: exact and the same for every number of
// ranks. The same length everywhere.
void SumOverRanks(Communicator& communicator, std::vector<uint64_t>* values);
// The sum of one value each, mod 2^64.
uint64_t SumOverRanks(Communicator& communicator, uint64_t mine);
}  // namespace carousel
