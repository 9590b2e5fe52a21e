// Ranks as MPI processes, tensors in host memory. The only MPI code of the project (no_mpi.cc stands in where
// MPI was not found or CAROUSEL_MPI=OFF; then MpiSession::Start returns an error). MPI-3 calls only.
//
// - Sums are taken by us in rank order from every rank's values (peer_communicator.h), never by MPI_Reduce,
//   whose order is the library's choice.
// - Every message arrives whole or the job ends: a rank that sent more or less than this one expected has
// made
//   another call.
// - A tensor of any size: messages above max_message_bytes are split (MPI counts are 32-bit).
// - Waiting polls and then sleeps, so that ranks that share a core do not starve the one that computes.
// - An error of MPI prints operation, rank and MPI's text and ends the job with exit code 1.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/peer_communicator.h"
#include "parallel/session.h"

namespace carousel {

struct MpiOptions {
  int64_t max_message_bytes = int64_t{1} << 30;  // larger messages go in pieces
  PeerOptions peer = {};
};

// MPI from MPI_Init to MPI_Finalize: one per process and only once in its life.
class MpiSession : public Session {
 public:
  // Calls MPI_Init_thread(SERIALIZED): any thread may communicate, one at a time.
  static absl::StatusOr<std::unique_ptr<MpiSession>> Start(const MpiOptions& options = {});
  // Another communicator over all ranks, with options of its own; every rank must call this. Ends before the
  // session.
  virtual std::unique_ptr<Communicator> Duplicate(const MpiOptions& options) = 0;
};

// True if the program was built with MPI.
bool HasMpi();
}  // namespace carousel
