// A stable sort of keys with their values. Two bodies: sort_cub.cu (GPUs) and simt/sort_host.cc (the
// emulation).
#pragma once
#include <cstdint>

#include "kernels/cuda/context.h"

namespace carousel::CAROUSEL_DEVICE_NS {

struct SortPairsArgs {
  int32_t* keys_out;  // (n) ascending
  int32_t* values_out;
  const int32_t* keys;  // (n), each in [0, 2^num_bits)
  const int32_t* values;
  int64_t n;
  int num_bits;         // 1 .. 31
  void* workspace;      // SortPairsWorkspaceBytes(n, num_bits) bytes, aligned to 256
  cudaStream_t stream;  // the call enqueues and returns
};
// A pure function of its arguments.
int64_t SortPairsWorkspaceBytes(int64_t n, int num_bits);
// Values of equal keys keep their order. In- and outputs share no memory.
void SortPairs(const SortPairsArgs& args);
}  // namespace carousel::CAROUSEL_DEVICE_NS
