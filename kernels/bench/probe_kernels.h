// The kernels of probes.cu: what a multiprocessor of compute capability 9.0 does per cycle, one thing at a
// time. Every kernel writes the cycles that the work took to cycles[blockIdx.x], measured by its own thread
// 0.
#pragma once
#include "kernels/cuda/device.h"

namespace carousel::probes {

#if CAROUSEL_DEVICE_HAS_WGMMA
// Small bf16 numbers that differ: what is multiplied decides about power, and power about the clock.
__device__ __forceinline__ void FillOperands(unsigned char* to, int bytes) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x)) {
    const uint32_t random = static_cast<uint32_t>(i) * 2654435761u;
    reinterpret_cast<uint32_t*>(to)[i] = (random & 0x807f807fu) | 0x3c003c00u;
  }
  gpu::fence_proxy_async();
  __syncthreads();
}
#endif

// wgmma m64nNk16. Block: two warpgroups; both operands in shared memory (one box of a per group, b of both),
// or a in registers; b K-major or MN-major. FLOP per turn and warpgroup: 32 products of 2 * 64 * N * 16.
constexpr int kProductsPerTurn = 32;
template <int N, bool kRegisters, bool kTransposeB>
__global__ void __launch_bounds__(256, 1) WgmmaKernel(int turns, long long* cycles, float* sink) {
#if CAROUSEL_DEVICE_HAS_WGMMA
  unsigned char* const smem = gpu::dyn_shared<unsigned char>();
  FillOperands(smem, (2 * 64 + N) * 128);
  const unsigned a_at = gpu::smem_addr(smem) + threadIdx.x / 128 * 64 * 128,
                 b_at = gpu::smem_addr(smem) + 2 * 64 * 128;
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = 0x3c003c00u + threadIdx.x + static_cast<unsigned>(i) * 257;
  float d[N / 2] = {};
  const long long start = clock64();
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    gpu::wgmma_settled(d);
    gpu::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kProductsPerTurn; ++i) {
      const unsigned k = static_cast<unsigned>(i) % 4;
      const uint64_t b = gpu::make_smem_desc(b_at + k * (kTransposeB ? 2048 : 32), 64 * 128, 1024, 1);
      if constexpr (kRegisters) {
        gpu::wgmma_bf16_ra<N, kTransposeB>(d, a, b);
      } else {
        gpu::wgmma_bf16<N, false, kTransposeB>(d, gpu::make_smem_desc(a_at + k * 32, 64 * 128, 1024, 1), b);
      }
    }
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>();
    gpu::wgmma_registers(d);
  }
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  float sum = 0;
  for (int i = 0; i < N / 2; ++i) sum += d[i];
  if (sum == 12345.0f) *sink = sum;
#endif
}

// mma.sync m16n8k16. Block: 8 warps, 8 accumulators each. FLOP per turn and warp: 8 products of 2 * 16 * 8
// * 16.
__global__ void __launch_bounds__(256, 1) MmaKernel(int turns, long long* cycles, float* sink) {
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = 0x3c003c00u + threadIdx.x + static_cast<unsigned>(i) * 257;
  float d[8][4] = {};
  __syncthreads();  // all warps begin together
  const long long start = clock64();
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int i = 0; i < 8; ++i) gpu::mma_bf16_m16n8k16(d[i], a, a[i % 4], a[(i + 1) % 4]);
  }
  __syncthreads();  // all warps have ended
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  if (sum == 12345.0f) *sink = sum;
}

// Special functions: 4 independent chains per thread, 1024 threads.
enum class Special { kExp2, kReciprocal, kTanh };
template <Special kFunction>
__global__ void __launch_bounds__(1024, 1) SpecialKernel(int turns, long long* cycles, float* sink) {
  float x[4];
  for (int i = 0; i < 4; ++i)
    x[i] = 0.5f + 0.001f * static_cast<float>(threadIdx.x + static_cast<unsigned>(i));
  __syncthreads();  // all warps begin together
  const long long start = clock64();
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = kFunction == Special::kExp2         ? gpu::exp2_fast(x[i])
             : kFunction == Special::kReciprocal ? gpu::rcp_fast(x[i])
                                                 : gpu::tanh_fast(x[i]);
    }
  }
  __syncthreads();  // all warps have ended
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  if (x[0] + x[1] + x[2] + x[3] == 12345.0f) *sink = x[0];
}

// ---- latencies: one chain of dependent steps
__global__ void BlockBarrierKernel(int turns, long long* cycles) {
  const long long start = clock64();
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
}
__global__ void ClusterBarrierKernel(int turns, long long* cycles) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  gpu::cluster_sync();
  const long long start = clock64();
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) gpu::cluster_sync();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
#endif
}
__global__ void GridBarrierKernel(int turns, long long* cycles) {
  gpu::grid_sync();
  const long long start = clock64();
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) gpu::grid_sync();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
}
// Loads from the shared memory of the next block of a cluster of two, each of which says where the next one
// is.
__global__ void RemoteLoadKernel(int turns, long long* cycles, float* sink) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  SHARED_ARRAY(uint32_t, next, [32]);
  next[threadIdx.x] = (threadIdx.x + 1) % 32;
  gpu::cluster_sync();  // next of both blocks
  const uint32_t* const remote = gpu::map_shared(next, gpu::cluster_rank() ^ 1);
  if (threadIdx.x == 0) {
    uint32_t at = 0;
    const long long start = clock64();
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) at = *const_cast<const volatile uint32_t*>(remote + at);
    cycles[blockIdx.x] = clock64() - start;
    if (at == 12345) *sink = 1;
  }
  gpu::cluster_sync();  // a block must not exit while the other reads
#endif
}
// st.async to the other block of two and back: cycles are of a round trip.
__global__ void StoreAsyncKernel(int turns, long long* cycles) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  SHARED_ARRAY(uint32_t, word, [1]);
  SHARED_ARRAY(uint64_t, bar, [1]);
  const unsigned rank = gpu::cluster_rank();
  if (threadIdx.x == 0) {
    gpu::mbar_init(bar, 1);
    gpu::fence_mbar_init();
    gpu::mbar_arrive_expect_tx(bar, 4);
  }
  gpu::cluster_sync();  // both barriers expect a word
  if (threadIdx.x == 0) {
    const long long start = clock64();
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      if (rank == 0) gpu::st_async(word, static_cast<uint32_t>(turn), bar, 1);
      gpu::mbar_wait_cluster(bar, static_cast<unsigned>(turn) & 1);
      gpu::mbar_arrive_expect_tx(bar, 4);
      if (rank == 1) gpu::st_async(word, static_cast<uint32_t>(turn), bar, 0);
    }
    cycles[blockIdx.x] = clock64() - start;
  }
  gpu::cluster_sync();  // a block must not exit before the last word has come
#endif
}

// ---- copies. Pieces of 16 KB from a buffer that fits into the second-level cache, in a ring of kRing slots.
// kMulticast: the blocks of a cluster of four want the same pieces and fetch a quarter each for all;
// otherwise every block fetches them whole.
constexpr int kPiece = 16 << 10, kRing = 8, kCopyCluster = 4;
template <bool kMulticast>
__global__ void __launch_bounds__(32, 1)
    CopyInKernel(int turns, long long* cycles, const unsigned char* from, unsigned num_pieces) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  unsigned char* const ring = gpu::dyn_shared<unsigned char>();
  SHARED_ARRAY(uint64_t, full, [kRing]);
  SHARED_ARRAY(uint64_t, empty, [kRing]);
  const unsigned rank = gpu::cluster_rank(), cluster = blockIdx.x / kCopyCluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRing; ++i) {
      gpu::mbar_init(&full[i], 1);
      gpu::mbar_init(&empty[i], kMulticast ? kCopyCluster : 1);
    }
    gpu::fence_mbar_init();
  }
  gpu::cluster_sync();  // the barriers of all blocks
  if (threadIdx.x == 0) {
    const auto fetch = [&](int turn) {
      unsigned char* const to = ring + turn % kRing * kPiece;
      const unsigned char* const piece =
          from + static_cast<size_t>((static_cast<unsigned>(turn) * 37 + cluster * 61) % num_pieces) * kPiece;
      uint64_t* const bar = &full[turn % kRing];
      gpu::mbar_arrive_expect_tx(bar, kPiece);
      if constexpr (kMulticast) {
        constexpr unsigned kPart = kPiece / kCopyCluster;
        gpu::bulk_g2s_multicast(to + rank * kPart, piece + rank * kPart, kPart, bar, (1 << kCopyCluster) - 1);
      } else {
        gpu::bulk_g2s(to, piece, kPiece, bar);
      }
    };
    const long long start = clock64();
    for (int turn = 0; turn < kRing && turn < turns; ++turn) fetch(turn);
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      const unsigned phase = static_cast<unsigned>(turn / kRing) & 1;
      gpu::mbar_wait_cluster(&full[turn % kRing], phase);
      if constexpr (kMulticast) {
        for (unsigned r = 0; r < kCopyCluster; ++r) gpu::mbar_arrive_remote(&empty[turn % kRing], r);
        gpu::mbar_wait_cluster(&empty[turn % kRing], phase);
      }
      if (turn + kRing < turns) fetch(turn + kRing);
    }
    cycles[blockIdx.x] = clock64() - start;
  }
  gpu::cluster_sync();  // a block must not exit while copies into it may be under way
#endif
}
__global__ void __launch_bounds__(512) CopyKernel(uint4* to, const uint4* from, size_t count) {
  for (size_t i = blockIdx.x * size_t{512} + threadIdx.x; i < count; i += gridDim.x * size_t{512})
    to[i] = from[i];
}
}  // namespace carousel::probes
