// Ranks with a GPU each, tensors in the memory of those GPUs: NCCL. The only NCCL code of the project
// (no_nccl.cc stands in where the program is built without it).
//
// - Every call is enqueued on the device's compute stream and returns at once: its result is ordered with the
// ops.
// - Floating-point sums are taken by us in rank order, never by NCCL, whose order is its own choice: blocks
// are
//   exchanged, summed by the device's Add and gathered. So results have the bits of the other communicators.
// - NCCL waits for ever for a rank that has died or calls something else. A thread of the communicator asks
// NCCL
//   for errors and looks how long calls have been under way; either prints call, rank, step and NCCL's text,
//   and ends the job with exit code 1.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/comm/communicator.h"
#include "core/device.h"

namespace carousel {

struct NcclOptions {
  int64_t staging_bytes = int64_t{16} << 20;  // at most so much device memory for the pieces of a sum
  double timeout_seconds = 1800;              // a call that takes longer ends the job
  // Compares operation, count, dtype and root over all ranks before each collective, through the host
  // communicator: a difference ends the job with both descriptions.
  bool verify_calls = false;
};

// Collective over `host`, whose ranks and numbering it takes. Each rank needs a GPU of its own. The error is
// the same on all ranks. Host and device must outlive the communicator, and a run over several ranks must end
// with all of them destroying it.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(Communicator& host, Device& device,
                                                                   const NcclOptions& options = {});

// True if the program was built with NCCL.
bool HasNccl();
}  // namespace carousel
