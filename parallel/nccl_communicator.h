// Ranks with a GPU each, tensors in the memory of those GPUs: NCCL. The only NCCL code of the project
// (no_nccl.cc stands in where the program is built without it).
//
// - Every call is enqueued on the communicator's stream and returns at once: its result is ordered with what
//   that stream does before and after. Other streams are ordered with it by events (core/device.h).
// - Floating-point sums are taken by us in rank order, never by NCCL, whose order is its own choice: blocks
//   are exchanged, summed by the stream's Add and gathered. So results have the bits of the other
//   communicators; terms of bf16 cross as bf16, are summed in f32 and rounded once.
// - NCCL waits for ever for a rank that has died or calls something else. A thread of the communicator asks
//   NCCL for errors and looks how long calls have been under way; either prints call, place, rank, step,
//   NCCL's text and the last calls of the flight recorder, and ends the job with exit code 1.
// - Communicators of one device that work on different streams run side by side. Their ranks must still issue
//   all of their calls in one order, as NCCL demands of every program.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/comm/communicator.h"
#include "core/device.h"

namespace carousel {

struct NcclOptions {
  // That the calls are enqueued on, of the device; must outlive the communicator. Null: the compute stream.
  Stream* stream = nullptr;
  // Device memory for the pieces of a floating-point sum, taken at the first one and kept.
  int64_t staging_bytes = int64_t{16} << 20;
  double timeout_seconds = 1800;      // a call that takes longer ends the job
  double init_timeout_seconds = 300;  // for all ranks to meet
  // NCCL refuses two ranks on one GPU, and so does this, in words that help. With NCCL_HOSTID different in
  // the environment of every rank NCCL takes them for separate hosts and talks over sockets: then set this.
  bool ranks_may_share_gpu = false;
};

// Collective over `host`, whose ranks, numbering and verify_calls it takes and over which control messages
// go. The error is the same on all ranks: one without a GPU, two on one GPU, different versions of NCCL, a
// rank whose set-up failed or did not end in time. A rank that does not even answer over `host` cannot be
// told so: the others print which one it is and end. Host, device and stream must outlive the communicator,
// and a run over several ranks must end with all of them destroying it, and several of them in one order.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(Communicator& host, Device& device,
                                                                   const NcclOptions& options = {});

// Split of a communicator that MakeNcclCommunicator or a split of it made, with a stream of its own for the
// part (null: the compute stream); Communicator::Split keeps that of the whole. Null for a negative color.
std::unique_ptr<Communicator> SplitNcclCommunicator(Communicator& whole, int color, Stream* stream,
                                                    CallSite site = CallSite::Here());

// For a process that is about to end: gives up what such a communicator has under way, so that a device that
// waits for another rank comes free. Returns within seconds. Any thread may call it, also while others are in
// a call, which then fails or returns with wrong results; nothing else may be called afterwards. Does nothing
// for other communicators.
void AbandonNcclCalls(Communicator& communicator);

// True if the program was built with NCCL.
bool HasNccl();
}  // namespace carousel
