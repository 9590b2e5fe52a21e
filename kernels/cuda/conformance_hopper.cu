// conformance_hopper.cu - compute capability 9.0: clusters, mbarriers, bulk copies, TMA, stmatrix, elect_one.
// Grid: one block, or a cluster of two to eight. Shared memory: dynamic, up to 16 KB, and mbarriers.
#include "kernels/cuda/conformance.h"

namespace carousel::conformance {
namespace {

constexpr unsigned kThreads = 64;

#if CAROUSEL_DEVICE_HAS_HOPPER
__device__ void InitBarrier(uint64_t* bar, unsigned count) {
  if (threadIdx.x == 0) {
    gpu::mbar_init(bar, count);
    gpu::fence_mbar_init();
  }
  __syncthreads();  // the barrier: initialised above, used below
}
__device__ void CopyOut(uint32_t* y, const void* s, int num_words) {
  for (int i = static_cast<int>(threadIdx.x); i < num_words; i += static_cast<int>(blockDim.x))
    y[i] = static_cast<const uint32_t*>(s)[i];
}
#endif

__global__ void StmatrixKernel(uint32_t* y, const uint32_t* x) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  SHARED_ARRAY(uint32_t, s, [4][128]);
  const unsigned t = threadIdx.x, row = 4 * ((t * 5 + 3) % 32);
  const uint32_t a[4] = {x[t], x[32 + t], x[64 + t], x[96 + t]};
  const uint32_t b[2] = {a[0], a[1]};
  for (unsigned i = t; i < 128; i += 32) s[2][i] = s[3][i] = 0;
  __syncwarp();  // s: zeros above, matrices below
  gpu::stmatrix_x4(&s[0][row], a);
  gpu::stmatrix_x4_trans(&s[1][row], a);
  gpu::stmatrix_x2(&s[2][row], b);
  gpu::stmatrix_x2_trans(&s[3][row], b);
  __syncwarp();  // s: written by stmatrix, read below
  CopyOut(y, s, 512);
  // Which lane is elected is the hardware's choice.
  const unsigned elected = __ballot_sync(~0u, gpu::elect_one());
  const unsigned of_some = t >= 8 ? __ballot_sync(0xffffff00u, gpu::elect_one(0xffffff00u)) : 0;
  if (t == 31) {
    y[512] = static_cast<uint32_t>(__popc(elected));
    y[513] = static_cast<uint32_t>(__popc(of_some));
  }
  gpu::grid_dependency_wait();
  gpu::grid_dependency_launch();
#endif
}

// Two blocks: reads of the other's shared memory, arrivals at its mbarrier, st_async.
__global__ void ClusterKernel(uint32_t* y, const uint32_t* x) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  SHARED_ARRAY(uint32_t, s, [kThreads]);
  SHARED_ARRAY(uint32_t, words, [kThreads]);
  SHARED_ARRAY(float4, quads, [kThreads]);
  SHARED_ARRAY(uint64_t, bar, [2]);
  const unsigned t = threadIdx.x, rank = gpu::cluster_rank(), other = rank ^ 1;
  s[t] = x[rank * kThreads + t];
  InitBarrier(&bar[0], kThreads);
  InitBarrier(&bar[1], 1);
  gpu::cluster_sync();  // s and the barriers of both blocks
  y += rank * 6 * kThreads;
  y[t] = gpu::map_shared(s, other)[kThreads - 1 - t] + gpu::cluster_size();
  gpu::mbar_arrive_remote(&bar[0], other);
  gpu::mbar_wait_cluster(&bar[0], 0);
  if (t == 0) gpu::mbar_arrive_expect_tx(&bar[1], kThreads * 20);
  gpu::st_async(&words[t], s[t] * 5, &bar[1], other);
  gpu::st_async(&quads[t], make_float4(static_cast<float>(t), 1, 2, static_cast<float>(rank)), &bar[1],
                other);
  gpu::mbar_wait_cluster(&bar[1], 0);
  y[kThreads + t] = words[t];
  CopyOut(y + 2 * kThreads, quads, 4 * static_cast<int>(kThreads));
  gpu::cluster_sync();  // a block must not exit while the other may still write into it
#endif
}

// Two blocks pass 16-byte parts of two alternating tiles to both; the bytes of an item may come before they
// are expected.
__global__ void ExchangeKernel(uint32_t* y, const uint32_t* x) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  constexpr unsigned kItems = 7;
  SHARED_ARRAY(uint4, tiles, [2][2 * kThreads]);
  SHARED_ARRAY(uint64_t, full, [2]);
  const unsigned t = threadIdx.x, rank = gpu::cluster_rank(), part = rank * kThreads + t;
  InitBarrier(&full[0], 1);
  InitBarrier(&full[1], 1);
  gpu::cluster_sync();  // the barriers of both blocks
  uint4 own = make_uint4(x[4 * part], x[4 * part + 1], x[4 * part + 2], x[4 * part + 3]);
  for (unsigned i = 0; i < kItems; ++i) {
    for (unsigned r = 0; r < 2; ++r) gpu::st_async(&tiles[i % 2][part], own, &full[i % 2], (rank + r) % 2);
    if (t == 0) gpu::mbar_arrive_expect_tx(&full[i % 2], 2 * kThreads * 16);
    gpu::mbar_wait(&full[i % 2], i / 2 & 1);
    const uint4 a = tiles[i % 2][(part * 5 + 3 * i) % (2 * kThreads)], b = tiles[i % 2][part ^ kThreads];
    own = make_uint4(a.x + 3 * b.w, a.y ^ b.x, a.z + own.x, a.w - own.y);
  }
  // Both blocks have waited for all that is sent to them: they may exit.
  y[4 * part] = own.x;
  y[4 * part + 1] = own.y;
  y[4 * part + 2] = own.z;
  y[4 * part + 3] = own.w;
#endif
}

// The blocks of a cluster fetch a part each of what all of them read, into a ring of two slots; every warp
// says to every block that it has left a slot.
template <unsigned kBlocks>
__global__ void RingKernel(uint32_t* y, const uint32_t* x) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  constexpr unsigned kItems = 9, kPart = kThreads, kSlot = kBlocks * kPart;  // words
  SHARED_ARRAY(uint4, slots, [2][kSlot / 4]);
  SHARED_ARRAY(uint64_t, full, [2]);
  SHARED_ARRAY(uint64_t, empty, [2]);
  const unsigned t = threadIdx.x, rank = gpu::cluster_rank();
  for (unsigned i = 0; i < 2; ++i) {
    InitBarrier(&full[i], 1);
    InitBarrier(&empty[i], kBlocks * kThreads / 32);
  }
  gpu::cluster_sync();  // the barriers of all blocks
  const auto fetch = [&](unsigned item) {
    gpu::mbar_arrive_expect_tx(&full[item % 2], kSlot * 4);
    gpu::bulk_g2s_multicast(&slots[item % 2][rank * kPart / 4], x + item * kSlot + rank * kPart, kPart * 4,
                            &full[item % 2], (1u << kBlocks) - 1);
  };
  if (t == 0) {
    fetch(0);
    fetch(1);
  }
  uint32_t sum = 0;
  for (unsigned item = 0; item < kItems; ++item) {
    const unsigned parity = item / 2 & 1;
    gpu::mbar_wait(&full[item % 2], parity);
    const auto* const words = reinterpret_cast<const uint32_t*>(slots[item % 2]);
    for (unsigned i = 0; i < kBlocks; ++i) sum = sum * 5 + words[(i * kPart + t * 7 + rank) % kSlot];
    __syncwarp();  // the warp's reads -> its arrivals
    if (t % 32 < kBlocks) gpu::mbar_arrive_remote(&empty[item % 2], t % 32);
    if (t == 0 && item + 2 < kItems) {
      gpu::mbar_wait(&empty[item % 2], parity);
      fetch(item + 2);
    }
  }
  y[rank * kThreads + t] = sum;
  gpu::cluster_sync();  // a block must not exit while others may arrive at its barriers
#endif
}

// mbarriers: phases, arrivals by all, mbar_test, expect_tx apart from the arrival; bulk copies both ways.
__global__ void BulkKernel(uint32_t* y, const uint32_t* x) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  SHARED_ARRAY(uint32_t, s, [256]);
  SHARED_ARRAY(uint64_t, bar, [1]);
  InitBarrier(bar, kThreads);
  for (unsigned phase = 0; phase < 3; ++phase) {
    if (threadIdx.x == 0) {
      gpu::mbar_expect_tx(bar, 256);
      gpu::bulk_g2s(&s[64 * phase], x + 64 * phase, 256, bar);
    }
    gpu::mbar_arrive(bar);
    if (phase == 1) {
      while (!gpu::mbar_test(bar, phase & 1)) {
      }
    } else {
      gpu::mbar_wait(bar, phase & 1);
    }
    s[192 + threadIdx.x] = s[64 * phase + (63 - threadIdx.x)] + (phase == 0 ? 0 : s[192 + threadIdx.x]);
  }
  gpu::fence_proxy_async();
  __syncthreads();  // s: written above, read by the bulk store
  if (threadIdx.x == 0) {
    gpu::bulk_s2g(y, s, 1024);
    gpu::bulk_commit();
    gpu::bulk_wait_read<0>();
    gpu::bulk_wait<0>();
  }
#endif
}

// One block of two asks for copies into both.
__global__ void MulticastKernel(uint32_t* y, const uint32_t* x, const __grid_constant__ gpu::TensorMap map) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  uint32_t* s = gpu::dyn_shared<uint32_t>();  // 8 x 64 bf16, then 64 words
  SHARED_ARRAY(uint64_t, bar, [1]);
  InitBarrier(bar, 1);
  if (threadIdx.x == 0) gpu::mbar_arrive_expect_tx(bar, 1024 + 256);
  gpu::cluster_sync();  // the barriers of both blocks expect the bytes
  if (gpu::cluster_rank() == 1 && threadIdx.x == 0) {
    gpu::tma_load_2d_multicast(s, map, 16, 3, bar, 3);
    gpu::bulk_g2s_multicast(s + 256, x, 256, bar, 3);
  }
  gpu::mbar_wait_cluster(bar, 0);
  CopyOut(y + gpu::cluster_rank() * 320, s, 320);
  gpu::cluster_sync();  // a block must not exit while copies into it may be under way
#endif
}

__global__ void Multicast4dKernel(uint32_t* y, const __grid_constant__ gpu::TensorMap map) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  uint32_t* s = gpu::dyn_shared<uint32_t>();  // a box for each block of the cluster
  SHARED_ARRAY(uint64_t, bar, [1]);
  InitBarrier(bar, 1);
  if (threadIdx.x == 0) gpu::mbar_arrive_expect_tx(bar, 2 * 1024);
  gpu::cluster_sync();  // the barriers of both blocks expect the bytes
  const int rank = static_cast<int>(gpu::cluster_rank());
  if (threadIdx.x == 0) gpu::tma_load_4d_multicast(s + rank * 256, map, 0, 1, 3 - rank, rank, bar, 3);
  gpu::mbar_wait_cluster(bar, 0);
  CopyOut(y + rank * 512, s, 512);
  gpu::cluster_sync();  // a block must not exit while copies into it may be under way
#endif
}

// Boxes inside, across every edge and outside; each goes back to its place in a second tensor.
constexpr int kCols = 100, kRows = 20, kPitch = 104;  // elements
struct Corner {
  int x, y;
};
constexpr int kBoxes = 5;
__global__ void Tma2dKernel(uint32_t* y, const __grid_constant__ gpu::TensorMap from,
                            const __grid_constant__ gpu::TensorMap to) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  uint32_t* s = gpu::dyn_shared<uint32_t>();
  SHARED_ARRAY(uint64_t, bar, [1]);
  const Corner corners[kBoxes] = {{0, 0}, {64, 8}, {-3, 14}, {37, -2}, {80, 30}};
  InitBarrier(bar, 1);
  for (int i = 0; i < kBoxes; ++i) {
    const int column = corners[i].x, row = corners[i].y;
    if (threadIdx.x == 0) {
      gpu::mbar_arrive_expect_tx(bar, 1024);
      gpu::tma_load_2d(s, from, column, row, bar);
    }
    gpu::mbar_wait(bar, static_cast<unsigned>(i) & 1);
    CopyOut(y + 256 * i, s, 256);
    __syncthreads();  // s: read above, stored and overwritten below
    if (threadIdx.x == 0) {
      if (i < 2) gpu::tma_store_2d(to, column, row, s);
      gpu::bulk_commit();
      gpu::bulk_wait<0>();
    }
  }
#endif
}
__global__ void Tma4dKernel(uint32_t* y, const __grid_constant__ gpu::TensorMap from,
                            const __grid_constant__ gpu::TensorMap to) {
#if CAROUSEL_DEVICE_HAS_HOPPER
  uint32_t* s = gpu::dyn_shared<uint32_t>();
  SHARED_ARRAY(uint64_t, bar, [1]);
  InitBarrier(bar, 1);
  if (threadIdx.x == 0) {
    gpu::mbar_arrive_expect_tx(bar, 8 * 128);
    gpu::tma_load_4d(s, from, 0, 2, 3, 1, bar);
  }
  gpu::mbar_wait(bar, 0);
  CopyOut(y, s, 256);
  __syncthreads();  // s: read above and, by the store, below
  if (threadIdx.x == 0) {
    gpu::tma_store_4d(to, 0, 2, 3, 1, s);
    gpu::bulk_commit();
    gpu::bulk_wait<0>();
  }
#endif
}

// ---- launches
cudaError_t RunStmatrix(void* results, const void* operands) {
  return gpu::launch(StmatrixKernel, {.grid = 1, .block = 32, .name = "StmatrixKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}
cudaError_t RunCluster(void* results, const void* operands) {
  return gpu::launch(ClusterKernel, {.grid = 2, .block = kThreads, .cluster = 2, .name = "ClusterKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}
cudaError_t RunExchange(void* results, const void* operands) {
  return gpu::launch(ExchangeKernel, {.grid = 2, .block = kThreads, .cluster = 2, .name = "ExchangeKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}
template <unsigned kBlocks>
cudaError_t RunRing(void* results, const void* operands) {
  return gpu::launch(RingKernel<kBlocks>,
                     {.grid = kBlocks, .block = kThreads, .cluster = kBlocks, .name = "RingKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}
cudaError_t RunBulk(void* results, const void* operands) {
  return gpu::launch(BulkKernel, {.grid = 1, .block = kThreads, .name = "BulkKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}
cudaError_t RunMulticast(void* results, const void* operands) {
  return gpu::launch(MulticastKernel,
                     {.grid = 2, .block = kThreads, .smem = 1280, .cluster = 2, .name = "MulticastKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands),
                     gpu::make_tensor_map_2d(operands, kCols, kRows, kPitch * 2, 64, 8));
}
// Results: kBoxes boxes of 1 KB, then the second tensor.
cudaError_t RunTma2d(void* results, const void* operands) {
  char* const second = static_cast<char*>(results) + kBoxes * 1024;
  return gpu::launch(Tma2dKernel, {.grid = 1, .block = kThreads, .smem = 1024, .name = "Tma2dKernel"},
                     static_cast<uint32_t*>(results),
                     gpu::make_tensor_map_2d(operands, kCols, kRows, kPitch * 2, 64, 8),
                     gpu::make_tensor_map_2d(second, kCols, kRows, kPitch * 2, 64, 8));
}
// (64, 3, 7, 2), the box 1 x 8 x 1 rows: rows 3 to 6 of the 7 lie inside.
gpu::TensorMap Map4d(const void* base) {
  const uint64_t dim[4] = {64, 3, 7, 2}, stride_bytes[3] = {128, 3 * 128, 7 * 3 * 128};
  const uint32_t box[4] = {64, 1, 8, 1};
  return gpu::make_tensor_map_4d(base, dim, stride_bytes, box);
}
constexpr int kBytes4d = 2 * 7 * 3 * 128;
cudaError_t RunTma4d(void* results, const void* operands) {
  return gpu::launch(Tma4dKernel, {.grid = 1, .block = kThreads, .smem = 1024, .name = "Tma4dKernel"},
                     static_cast<uint32_t*>(results), Map4d(operands),
                     Map4d(static_cast<char*>(results) + 1024));
}
cudaError_t RunMulticast4d(void* results, const void* operands) {
  return gpu::launch(Multicast4dKernel,
                     {.grid = 2, .block = kThreads, .smem = 2048, .cluster = 2, .name = "Multicast4dKernel"},
                     static_cast<uint32_t*>(results), Map4d(operands));
}
}  // namespace

void AppendHopperCases(std::vector<Case>& cases) {
  constexpr int kTensorBytes = kRows * kPitch * 2;
  cases.push_back({"stmatrix", 128 * 4, 514 * 4, FillBits<128>, RunStmatrix, {}, true});
  cases.push_back(
      {"cluster", 2 * kThreads * 4, 2 * 6 * kThreads * 4, FillBits<2 * kThreads>, RunCluster, {}, true});
  cases.push_back(
      {"exchange", 8 * kThreads * 4, 8 * kThreads * 4, FillBits<8 * kThreads>, RunExchange, {}, true});
  // sizes that clusters of the kernels have, one of them no power of two
  cases.push_back(
      {"ring_3", 9 * 3 * kThreads * 4, 3 * kThreads * 4, FillBits<9 * 3 * kThreads>, RunRing<3>, {}, true});
  cases.push_back(
      {"ring_8", 9 * 8 * kThreads * 4, 8 * kThreads * 4, FillBits<9 * 8 * kThreads>, RunRing<8>, {}, true});
  cases.push_back({"bulk", 192 * 4, 1024, FillBits<192>, RunBulk, {}, true});
  cases.push_back(
      {"multicast", kTensorBytes, 2 * 320 * 4, FillBits<kTensorBytes / 4>, RunMulticast, {}, true});
  cases.push_back(
      {"tma_2d", kTensorBytes, kBoxes * 1024 + kTensorBytes, FillBits<kTensorBytes / 4>, RunTma2d, {}, true});
  cases.push_back({"multicast_4d", kBytes4d, 2 * 2048, FillBits<kBytes4d / 4>, RunMulticast4d, {}, true});
  cases.push_back({"tma_4d", kBytes4d, 1024 + kBytes4d, FillBits<kBytes4d / 4>, RunTma4d, {}, true});
}
}  // namespace carousel::conformance
