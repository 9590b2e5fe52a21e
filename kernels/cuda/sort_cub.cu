// The sort of kernels/cuda/sort.h on a GPU: CUB's radix sort, which is stable. Its result does not depend on
// the order in which blocks run.
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/sort.h"

namespace carousel::CAROUSEL_DEVICE_NS {

int64_t SortPairsWorkspaceBytes(int64_t n, int num_bits) {
  size_t bytes = 0;
  const int32_t* in = nullptr;
  int32_t* out = nullptr;
  CheckCuda(cub::DeviceRadixSort::SortPairs(nullptr, bytes, in, out, in, out, n, 0, num_bits),
            "cub::DeviceRadixSort::SortPairs (its workspace)");
  return static_cast<int64_t>(bytes);
}

void SortPairs(const SortPairsArgs& args) {
  size_t bytes = static_cast<size_t>(SortPairsWorkspaceBytes(args.n, args.num_bits));
  CheckCuda(cub::DeviceRadixSort::SortPairs(args.workspace, bytes, args.keys, args.keys_out, args.values,
                                            args.values_out, args.n, 0, args.num_bits, args.stream),
            "cub::DeviceRadixSort::SortPairs");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
