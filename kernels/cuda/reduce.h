// Sums and maxima over the lanes of a warp and the threads of a block. The order of every sum is fixed by the
// number of threads alone: equal inputs give equal bits, and every thread that receives a result receives the
// same bits.
//
// All 32 lanes of a warp (and all threads of a block) must call together; threads that have nothing to add
// bring 0. Element types: float, double, int32_t, uint32_t.
#pragma once
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

struct SumOf {
  template <class W>
  __device__ W operator()(W a, W b) const {
    return a + b;
  }
};
struct MaxOf {
  template <class W>
  __device__ W operator()(W a, W b) const {
    return a > b ? a : b;
  }
};

// Combines the values of groups of `lanes` neighbouring lanes (a power of two, at most 32); every lane gets
// its group's result. The exchange is a butterfly: both partners form the same sum of the same two numbers.
template <class Op, class W>
__device__ inline W GroupReduce(W value, int lanes, Op op) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    if (distance < lanes) value = op(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}
template <class W>
__device__ inline W WarpSum(W value) {
  return GroupReduce(value, kWarpSize, SumOf());
}
template <class W>
__device__ inline W WarpMax(W value) {
  return GroupReduce(value, kWarpSize, MaxOf());
}

// Shared memory that a reduction of kCount values over a block of at most kMaxThreads threads takes:
//   SHARED_ARRAY(float, room, [kReduceRoom<2, 256>]);
template <int kCount, int kMaxThreads>
constexpr int kReduceRoom = kCount*(kMaxThreads / kWarpSize);

// Combines kCount values over all threads of the block in two steps, within warps and then over warps in
// their order; every thread gets the results in place. The number of threads is a multiple of 32. Two
// barriers: `room` may be used again at once.
template <int kCount, class Op, class W>
__device__ inline void BlockReduce(W (&values)[kCount], W* room, Op op) {
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z) / kWarpSize;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = GroupReduce(values[i], kWarpSize, op);
  if (warps == 1) return;
  __syncthreads();  // room: the reads of an earlier reduction, then these writes
  if (thread % kWarpSize == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) room[thread / kWarpSize * kCount + i] = values[i];
  }
  __syncthreads();  // room: the warps' writes, then everybody's reads
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = room[i];
  for (int warp = 1; warp < warps; ++warp) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = op(values[i], room[warp * kCount + i]);
  }
}
// One value. `room` has kReduceRoom<1, threads> elements.
template <class W>
__device__ inline W BlockSum(W value, W* room) {
  W values[1] = {value};
  BlockReduce(values, room, SumOf());
  return values[0];
}
template <class W>
__device__ inline W BlockMax(W value, W* room) {
  W values[1] = {value};
  BlockReduce(values, room, MaxOf());
  return values[0];
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
