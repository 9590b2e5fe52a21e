// What makes the program carousel_emulated_gpus of the program carousel: its main() is launcher/main.cc, and
// before it runs, the emulated GPU of this process becomes the one with the rank's number, so that NCCL finds
// a GPU for each rank, and both emulations (kernels/simt) get the rank's own seed. Only for tests, which also
// plant faults:
//   EMULATED_NCCL_FAULT=RANK:KIND:K   on that rank the K-th (from 0) "operation" or "setup" of a communicator
//                                     fails, or its K-th "stall" never ends
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/simt/fake_cudart.h"
#include "kernels/simt/fake_nccl.h"

namespace carousel {
namespace {

// The rank that a launcher or whoever started the ranks announces; 0 for a process alone.
int AnnouncedRank() {
  for (const char* name : {"CAROUSEL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"}) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return 0;
}

struct SetUp {
  SetUp() {
    const int rank = AnnouncedRank();
    const uint64_t seed = 1 + static_cast<uint64_t>(rank);
    fake_cuda::SetOptions({.first_gpu = rank, .seed = seed});
    fake_nccl::Options options = {.seed = 100 * seed};
    if (const char* fault = std::getenv("EMULATED_NCCL_FAULT")) {
      int its_rank = 0;
      char kind[16];
      long long number = 0;
      int64_t* field = nullptr;
      if (std::sscanf(fault, "%d:%15[a-z]:%lld", &its_rank, kind, &number) == 3) {
        field = std::strcmp(kind, "operation") == 0 ? &options.fail_operation
                : std::strcmp(kind, "setup") == 0   ? &options.fail_setup
                : std::strcmp(kind, "stall") == 0   ? &options.stall_setup
                                                    : nullptr;
      }
      if (field == nullptr) {
        std::fprintf(stderr, "EMULATED_NCCL_FAULT='%s' is not RANK:operation|setup|stall:K\n", fault);
        std::exit(2);
      }
      if (its_rank == rank) *field = number;
    }
    fake_nccl::SetOptions(options);
  }
};
const SetUp set_up;
}  // namespace
}  // namespace carousel
