// Digest: a number that tells tensors apart, bit for bit. A sum of integers, whose order does not matter:
// every thread adds up every gridDim-th piece of x, a warp joins its sums, one thread of it adds them to the
// result.
#include <algorithm>

#include "core/base/int_math.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksPerSm = 8;

// DigestTerm of core/ops.h.
__device__ inline uint64_t Term(uint64_t place, uint64_t bits) {
  uint64_t x = bits ^ place * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    DigestKernel(unsigned long long* result, const Bits* x, int64_t n, uint64_t salt) {
  unsigned long long sum = 0;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < n;
       e += static_cast<int64_t>(gridDim.x) * kThreads) {
    sum += Term(salt + static_cast<uint64_t>(e), x[e]);
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, distance);
  }
  if (threadIdx.x % kWarpSize == 0) atomicAdd(result, sum);
}
}  // namespace

void DeviceOps::Digest(const DigestArgs& a) {
  CheckArgs(a);
  const int64_t n = a.x.num_elems();
  if (n == 0) return;
  auto* result = reinterpret_cast<unsigned long long*>(a.digest.as<int64_t>());
  const gpu::LaunchCfg config = {.grid = dim3(GridExtent(std::min<int64_t>(
                                     CeilDiv(n, int64_t{kThreads}), kBlocksPerSm * context_.info().num_sms))),
                                 .block = kThreads,
                                 .name = "DigestKernel"};
  if (SizeOf(a.x.dtype) == 4) {
    context_.Launch(DigestKernel<uint32_t>, config, result, static_cast<const uint32_t*>(a.x.data), n,
                    a.salt);
  } else {
    context_.Launch(DigestKernel<uint64_t>, config, result, static_cast<const uint64_t*>(a.x.data), n,
                    a.salt);
  }
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
