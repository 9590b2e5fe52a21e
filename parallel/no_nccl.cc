// Stands in for nccl_communicator.cc where the program is built without NCCL.
#include "absl/status/status.h"
#include "core/base/check.h"
#include "parallel/nccl_communicator.h"

namespace carousel {

void AbandonNcclCalls(Communicator& /*communicator*/) {}

bool HasNccl() { return false; }

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(Communicator&, Device&,
                                                                   const NcclOptions&) {
  return absl::FailedPreconditionError(
      "this program was built without NCCL; build again with -DCAROUSEL_CUDA=ON -DCAROUSEL_NCCL=ON");
}

std::unique_ptr<Communicator> SplitNcclCommunicator(Communicator&, int, Stream*, CallSite) {
  CheckFailed(__FILE__, __LINE__, "no communicator of this program is one of NCCL");
}
}  // namespace carousel
