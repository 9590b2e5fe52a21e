// Stands in for nccl_communicator.cc where the program is built without NCCL.
#include "absl/status/status.h"
#include "parallel/nccl_communicator.h"

namespace carousel {

bool HasNccl() { return false; }

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(Communicator&, Device&,
                                                                   const NcclOptions&) {
  return absl::FailedPreconditionError(
      "this program was built without NCCL; build again with -DCAROUSEL_CUDA=ON -DCAROUSEL_NCCL=ON");
}
}  // namespace carousel
