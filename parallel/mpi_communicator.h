// Ranks as MPI processes, tensors in host memory. The only MPI code of the project (no_mpi.cc stands in where
// MPI was not found or CAROUSEL_MPI=OFF; then MpiSession::Start returns an error). MPI-3 calls only.
//
// - Sums are taken by us in rank order from every rank's values, never by MPI_Reduce, whose order is the
//   library's choice: an AllReduceSum exchanges blocks, sums its own and gathers the results.
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
#include "core/comm/communicator.h"

namespace carousel {

struct MpiOptions {
  int64_t max_message_bytes = int64_t{1} << 30;  // larger messages go in pieces
  int64_t staging_bytes = int64_t{16} << 20;     // at most so much memory for the pieces of a sum
  // Compares operation, count, dtype and root over all ranks before each collective: a difference ends the
  // job with a message instead of a hang or wrong data. Costs one small message per rank and call.
  bool verify_calls = false;
};

// MPI from MPI_Init to MPI_Finalize: one per process and only once in its life. Made by launcher/environment.
class MpiSession {
 public:
  // Calls MPI_Init_thread(SERIALIZED): any thread may communicate, one at a time.
  static absl::StatusOr<std::unique_ptr<MpiSession>> Start(const MpiOptions& options = {});
  // Finish(1), if it was not called.
  virtual ~MpiSession() = default;

  virtual Communicator& world() = 0;
  virtual Communicator& local() = 0;  // the ranks that share this machine's memory, in the world's order
  // Another communicator over all ranks, with options of its own; every rank must call this. Ends before the
  // session.
  virtual std::unique_ptr<Communicator> Duplicate(const MpiOptions& options) = 0;
  virtual std::string library() const = 0;  // "Open MPI v4.1.4, ..." (one line)
  // Call once at the end of the program. When all ranks arrive here, MPI ends and exit_code is returned. A
  // rank that failed (exit_code != 0) waits two seconds for the others, then ends all of them: they may be
  // waiting for it in a collective.
  virtual int Finish(int exit_code) = 0;
};

// True if the program was built with MPI.
bool HasMpi();
}  // namespace carousel
