// NCCL without GPUs: the part of nccl.h that is used, with host bodies, linked in place of libnccl beside the
// fake CUDA runtime (fake_cudart.h). A rank is a process or a thread of this machine; data goes through
// shared memory.
//
// - An operation is work on a stream that never blocks the host: communicators and streams go on side by
//   side, in the seeded interleaving of the runtime.
// - A communicator made with blocking = 0 answers ncclInProgress, and has to be asked a seeded number of
// times
//   until it is done. Operations may so be enqueued late: a program that goes on without asking finds the
//   work that it gives its stream next before them, and its next call refused.
// - Sums are taken in the tensor's type, for every element in another order of the ranks, as a ring does: who
//   relies on the order of ranks is found.
// - What NCCL lets hang or does wrongly is an asynchronous error here: ranks that call different collectives,
//   or with other counts, types or roots. So is a rank that has died or left, while a communicator is made,
//   in a call and while it is left. As with NCCL, the operation then never ends until the communicator is
//   aborted.
// - Buffers must be live device memory of the right size, and what is read must have been written.
// - Shared memory has a name only while a communicator is made. What ranks that died meanwhile left is
// removed
//   by the next program.
// - Unlike NCCL it does not look whether ranks share a GPU.
#pragma once
#include <nccl.h>

#include <cstdint>

namespace carousel::fake_nccl {

struct Options {
  // The k-th (from 0) operation of this process fails with ncclSystemError, as an asynchronous error.
  int64_t fail_operation = -1;
  // The k-th making of a communicator, by ncclCommInitRank... or ncclCommSplit, fails so, ...
  int64_t fail_setup = -1;
  // ... or never ends. The other ranks wait for this one.
  int64_t stall_setup = -1;
  uint64_t seed = 1;  // of how often a communicator has to be asked
};
// Counts from 0 again.
void SetOptions(const Options& options);
}  // namespace carousel::fake_nccl
