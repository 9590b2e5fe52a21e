// Stands in for mpi_communicator.cc where the program is built without MPI.
#include "absl/status/status.h"
#include "parallel/mpi_communicator.h"

namespace carousel {

bool HasMpi() { return false; }

absl::StatusOr<std::unique_ptr<MpiSession>> MpiSession::Start(const MpiOptions&) {
  return absl::FailedPreconditionError(
      "this program was built without MPI; install libopenmpi-dev and build again with -DCAROUSEL_MPI=ON");
}
}  // namespace carousel
