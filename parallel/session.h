// Session: the ranks of a job as processes, from their meeting to their end. Made by launcher/environment,
// over MPI (mpi_communicator.h) or TCP (tcp_communicator.h).
#pragma once
#include <string>

#include "core/comm/communicator.h"

namespace carousel {

class Session {
 public:
  // Finish(kExitFailure), if it was not called.
  virtual ~Session() = default;

  virtual Communicator& world() = 0;
  virtual Communicator& local() = 0;        // the ranks on this machine, in the world's order
  virtual std::string library() const = 0;  // "Open MPI v4.1.4" (one line)
  // Call once at the end of the program. When all ranks arrive here, the session ends and exit_code is
  // returned. A rank that failed (exit_code != 0) waits two seconds for the others, then ends all of them:
  // they may be waiting for it in a collective.
  virtual int Finish(int exit_code) = 0;
};
}  // namespace carousel
