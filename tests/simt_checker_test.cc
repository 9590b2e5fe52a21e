// The checker itself: pairs of kernels, one right, one with a single thing wrong. The right ones must give no
// report under any schedule, the wrong ones always the expected one.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/simt_testing.h"

namespace carousel {
namespace {

using testing::DeviceArray;
using testing::RunKernel;

gpu::LaunchCfg Config(unsigned threads, unsigned blocks = 1, unsigned cluster = 1, size_t smem = 0) {
  return {.grid = blocks, .block = threads, .smem = smem, .cluster = cluster, .name = "TestKernel"};
}
// Runs the right and the wrong kernel under several schedules.
template <class... P, class... A>
void ExpectPair(const std::string& report, void (*right)(P...), void (*wrong)(P...), gpu::LaunchCfg config,
                A... args) {
  const emulator::Options before = emulator::options();
  for (const char* schedule : {"lifo", "fifo", "random:1", "random:2", "random:3"}) {
    ASSERT_TRUE(emulator::SetSchedule(schedule));
    EXPECT_EQ(RunKernel(right, config, args...), "") << schedule;
    const std::string found = RunKernel(wrong, config, args...);
    EXPECT_NE(found.find(report), std::string::npos) << schedule << ": " << found;
    EXPECT_EQ(found.rfind("TestKernel: ", 0), 0u) << found;
  }
  emulator::options() = before;
}

// ---- order
template <bool kRight>
__global__ void ExchangeInWarp(float* y) {
  SHARED_ARRAY(float, s, [32]);
  s[threadIdx.x] = 1;
  if (kRight) __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x];
}
TEST(Checker, ReportsAMissingSyncwarp) {
  DeviceArray<float> y(32);
  ExpectPair("uninitialised", ExchangeInWarp<true>, ExchangeInWarp<false>, Config(32), y.get());
}

template <bool kRight>
__global__ void ExchangeAfterShuffle(float* y) {
  SHARED_ARRAY(float, s, [32]);
  s[threadIdx.x] = 1;
  __shfl_xor_sync(~0u, 1, 1);
  if (kRight) __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x];
}
TEST(Checker, KnowsThatAShuffleOrdersNoMemory) {
  DeviceArray<float> y(32);
  ExpectPair("data race on shared array s", ExchangeAfterShuffle<true>, ExchangeAfterShuffle<false>,
             Config(32), y.get());
}

template <bool kRight>
__global__ void ExchangeInHalfWarps(float* y) {
  SHARED_ARRAY(float, s, [32]);
  s[threadIdx.x] = 1;
  const unsigned mask = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  __syncwarp(mask);
  y[threadIdx.x] = s[threadIdx.x ^ (kRight ? 15 : 31)];
}
TEST(Checker, KnowsWhichLanesASyncwarpOrders) {
  DeviceArray<float> y(32);
  ExpectPair(" of ", ExchangeInHalfWarps<true>, ExchangeInHalfWarps<false>, Config(32), y.get());
}

template <bool kRight>
__global__ void ExchangeBetweenWarps(float* y) {
  SHARED_ARRAY(float, s, [64]);
  s[threadIdx.x] = 1;
  if (kRight) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  y[threadIdx.x] = s[63 - threadIdx.x];
}
TEST(Checker, KnowsThatASyncwarpOrdersOneWarp) {
  DeviceArray<float> y(64);
  ExpectPair("uninitialised", ExchangeBetweenWarps<true>, ExchangeBetweenWarps<false>, Config(64), y.get());
}

// The second round overwrites what slower threads of the first still read.
template <bool kRight>
__global__ void ReuseOfABuffer(float* y) {
  SHARED_ARRAY(float, s, [1]);
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) s[0] = static_cast<float>(round);
    __syncthreads();
    y[2 * threadIdx.x + static_cast<unsigned>(round)] = s[0];
    if (kRight) __syncthreads();
  }
}
TEST(Checker, ReportsABufferOverwrittenWhileItIsRead) {
  DeviceArray<float> y(256);
  ExpectPair("data race", ReuseOfABuffer<true>, ReuseOfABuffer<false>, Config(128), y.get());
}

template <bool kRight>
__global__ void WriteAfterWrite(float* y) {
  SHARED_ARRAY(float, s, [1]);
  if (threadIdx.x == 0) s[0] = 1;
  if (kRight) __syncthreads();
  if (threadIdx.x == 63) s[0] = 2;
  __syncthreads();
  y[threadIdx.x] = s[0];
}
TEST(Checker, ReportsTwoWritesWithoutOrder) {
  DeviceArray<float> y(64);
  ExpectPair("data race", WriteAfterWrite<true>, WriteAfterWrite<false>, Config(64), y.get());
}

// The count is right either way, but a barrier that only counts would not order the write and the read.
template <bool kRight>
__global__ void ReduceOfVotes(int* y) {
  SHARED_ARRAY(int, s, [64]);
  if (kRight) s[threadIdx.x] = 1;
  const int votes = __syncthreads_count(1);
  if (!kRight) s[threadIdx.x] = 1;
  y[threadIdx.x] = votes + s[63 - threadIdx.x];
}
TEST(Checker, KnowsThatACountingBarrierOrdersMemory) {
  DeviceArray<int> y(64);
  ExpectPair("uninitialised", ReduceOfVotes<true>, ReduceOfVotes<false>, Config(64), y.get());
}

template <bool kRight>
__global__ void NamedBarriers(float* y) {
  SHARED_ARRAY(float, s, [32]);
  if (threadIdx.x < 32) {
    s[threadIdx.x] = 2;
    gpu::bar_arrive(1, 64);
  } else {
    if (kRight) gpu::bar_sync(1, 64);
    y[threadIdx.x] = s[63 - threadIdx.x];
    if (!kRight) gpu::bar_sync(1, 64);
  }
}
TEST(Checker, FollowsArrivalAndWaitAtNamedBarriers) {
  DeviceArray<float> y(64);
  ExpectPair(" of ", NamedBarriers<true>, NamedBarriers<false>, Config(64), y.get());
}

template <bool kRight>
__global__ void ArriveForTheWarp(float* y) {
  SHARED_ARRAY(float, s, [32]);
  SHARED_ARRAY(uint64_t, bar, [1]);
  if (threadIdx.x == 0) gpu::mbar_init(bar, 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    s[threadIdx.x] = 3;
    if (kRight) __syncwarp();
    if (threadIdx.x == 0) gpu::mbar_arrive(bar);
  } else {
    gpu::mbar_wait(bar, 0);
    y[threadIdx.x] = s[63 - threadIdx.x];
  }
}
TEST(Checker, FollowsArrivalAndWaitAtMbarriers) {
  DeviceArray<float> y(64);
  // The report depends on who runs first: a read of what was never written, or a race.
  ExpectPair("", ArriveForTheWarp<true>, ArriveForTheWarp<false>, Config(64), y.get());
}

// Thread 32 learns of an asynchronous store by thread 0: of what that read before, but not of what it wrote.
template <bool kRight>
__global__ void SignalByStore(float* y) {
  SHARED_ARRAY(float, s, [64]);
  SHARED_ARRAY(uint32_t, word, [1]);
  SHARED_ARRAY(uint64_t, bar, [1]);
  s[threadIdx.x] = 1;
  if (threadIdx.x == 0) {
    gpu::mbar_init(bar, 1);
    gpu::fence_mbar_init();
    gpu::mbar_arrive_expect_tx(bar, 4);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (!kRight) s[0] = 2;
    gpu::st_async(word, gpu::float_to_bits(s[0]), bar, 0);
  } else if (threadIdx.x == 32) {
    gpu::mbar_wait(bar, 0);
    y[0] = gpu::bits_to_float(word[0]);
    if (kRight) {
      s[0] = 3;
    } else {
      y[1] = s[0];
    }
  }
}
TEST(Checker, KnowsThatAnAsynchronousStoreReleasesNoWrites) {
  DeviceArray<float> y(2);
  ExpectPair("data race on shared array s, byte 0", SignalByStore<true>, SignalByStore<false>, Config(64),
             y.get());
}

template <bool kRight>
__global__ void MbarrierUninitialised(float* y) {
  SHARED_ARRAY(uint64_t, bar, [1]);
  if (threadIdx.x == 0) gpu::mbar_init(bar, 64);
  if (kRight) __syncthreads();
  gpu::mbar_arrive(bar);
  gpu::mbar_wait(bar, 0);
  y[threadIdx.x] = 1;
}
TEST(Checker, ReportsAnMbarrierUsedBeforeItsInitialisation) {
  DeviceArray<float> y(64);
  ExpectPair("", MbarrierUninitialised<true>, MbarrierUninitialised<false>, Config(64), y.get());
}

// ---- clusters and grids
template <bool kRight>
__global__ void ReadOtherBlock(float* y) {
  SHARED_ARRAY(float, s, [32]);
  s[threadIdx.x] = static_cast<float>(gpu::cluster_rank());
  if (kRight) {
    gpu::cluster_sync();
  } else {
    __syncthreads();
  }
  y[gpu::cluster_rank() * 32 + threadIdx.x] = gpu::map_shared(s, gpu::cluster_rank() ^ 1)[threadIdx.x];
  gpu::cluster_sync();
}
TEST(Checker, ReportsAMissingClusterSync) {
  DeviceArray<float> y(64);
  ExpectPair("", ReadOtherBlock<true>, ReadOtherBlock<false>, Config(32, 2, 2), y.get());
}

// Block 0 learns from an arrival of block 1 that this has read, but not what it wrote.
template <bool kRight>
__global__ void ArriveAtOtherBlock(float* y) {
  SHARED_ARRAY(float, s, [32]);
  SHARED_ARRAY(uint64_t, bar, [1]);
  s[threadIdx.x] = 1;
  if (threadIdx.x == 0) {
    gpu::mbar_init(bar, 32);
    gpu::fence_mbar_init();
  }
  gpu::cluster_sync();
  if (gpu::cluster_rank() == 1) {
    float& theirs = gpu::map_shared(s, 0)[threadIdx.x];
    if (kRight) {
      y[threadIdx.x] = theirs;
    } else {
      theirs = 2;
    }
    gpu::mbar_arrive_remote(bar, 0);
  } else {
    gpu::mbar_wait(bar, 0);
    if (kRight) {
      s[threadIdx.x] = 3;
    } else {
      y[threadIdx.x] = s[threadIdx.x];
    }
  }
  gpu::cluster_sync();
}
TEST(Checker, KnowsThatArrivalsAtOtherBlocksReleaseNoWrites) {
  DeviceArray<float> y(32);
  ExpectPair("data race on shared array s", ArriveAtOtherBlock<true>, ArriveAtOtherBlock<false>,
             Config(32, 2, 2), y.get());
}

template <bool kRight>
__global__ void ExchangeBetweenBlocks(float* x, float* y) {
  x[blockIdx.x] = 1;
  if (kRight) gpu::grid_sync();
  y[blockIdx.x] = x[gridDim.x - 1 - blockIdx.x];
}
TEST(Checker, ReportsAMissingGridSync) {
  gpu::LaunchCfg config = Config(1, 4);
  config.cooperative = true;
  const emulator::Options before = emulator::options();
  for (const char* schedule : {"lifo", "fifo", "random:5"}) {
    ASSERT_TRUE(emulator::SetSchedule(schedule));
    DeviceArray<float> x(4), y(4), x2(4);
    EXPECT_EQ(RunKernel(ExchangeBetweenBlocks<true>, config, x.get(), y.get()), "");
    EXPECT_NE(RunKernel(ExchangeBetweenBlocks<false>, config, x2.get(), y.get()), "");
  }
  emulator::options() = before;
}

template <bool kRight>
__global__ void DistinctAddresses(float* y) {
  y[kRight ? blockIdx.x : 0] = 1;
}
TEST(Checker, ReportsBlocksThatWriteOneAddress) {
  DeviceArray<float> y(2);
  ExpectPair("data race on global", DistinctAddresses<true>, DistinctAddresses<false>, Config(1, 2), y.get());
}

template <bool kRight>
__global__ void Count(int* y) {
  if (kRight) {
    atomicAdd(y, 1);
  } else {
    y[0] += 1;
  }
}
TEST(Checker, KnowsThatAtomicsDoNotRace) {
  DeviceArray<int> y(std::vector<int>{0});
  ExpectPair("data race", Count<true>, Count<false>, Config(64, 2), y.get());
}

// The last block to finish adds up what all have written.
template <bool kRight>
__global__ void LastBlockSums(int* partial, int* ticket, int* y) {
  SHARED_ARRAY(int, last, [1]);
  partial[blockIdx.x * 32 + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    const int before = kRight ? gpu::atomic_add_acq_rel(ticket, 1) : atomicAdd(ticket, 1);
    last[0] = before % static_cast<int>(gridDim.x) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last[0] && threadIdx.x < 32) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b * 32 + (31 - threadIdx.x)];
    y[threadIdx.x] = sum;
  }
}
TEST(Checker, FollowsReleaseAndAcquireBetweenBlocks) {
  DeviceArray<int> partial(3 * 32), y(32), ticket(std::vector<int>{0});
  ExpectPair("data race on global", LastBlockSums<true>, LastBlockSums<false>, Config(32, 3), partial.get(),
             ticket.get(), y.get());
}

// ---- memory
template <bool kRight>
__global__ void ReadUnwritten(float* y, const float* x) {
  y[threadIdx.x] = kRight ? 0 : x[threadIdx.x];
}
TEST(Checker, ReportsReadsOfUnwrittenGlobalMemory) {
  DeviceArray<float> y(32), x(32);
  ExpectPair("uninitialised global", ReadUnwritten<true>, ReadUnwritten<false>, Config(32), y.get(),
             static_cast<const float*>(x.get()));
}

template <bool kRight>
__global__ void CopyPieces(uint4* y, const uint4* x, int pieces) {  // 16 bytes at once
  for (int i = static_cast<int>(threadIdx.x); i < pieces + (kRight ? 0 : 1); i += 32) y[i] = x[i];
}
TEST(Checker, ReportsVectorAccessesPastTheEnd) {
  DeviceArray<uint4> y(33), x(std::vector<uint4>(33));
  ExpectPair("out-of-bounds", CopyPieces<true>, CopyPieces<false>, Config(32), y.get(),
             static_cast<const uint4*>(x.get()), 33);
}

template <bool kRight>
__global__ void ReadPairs(uint32_t* y, const bfloat16* x) {
  y[threadIdx.x] = *reinterpret_cast<const uint32_t*>(x + 2 * threadIdx.x + (kRight ? 2 : 1));
}
TEST(Checker, ReportsMisalignedAccesses) {
  DeviceArray<uint32_t> y(32);
  DeviceArray<bfloat16> x(std::vector<bfloat16>(66));
  ExpectPair("misaligned access of 4 bytes", ReadPairs<true>, ReadPairs<false>, Config(32), y.get(),
             static_cast<const bfloat16*>(x.get()));
}

template <bool kRight>
__global__ void OverrunShared(float* y) {
  SHARED_ARRAY(float, s, [32]);
  s[threadIdx.x + (kRight ? 0 : 1)] = 1;
  y[threadIdx.x] = 1;
}
TEST(Checker, ReportsSharedArraysOverrun) {
  DeviceArray<float> y(32);
  ExpectPair("out-of-bounds write of 4 bytes, shared array s, byte 128 of 128", OverrunShared<true>,
             OverrunShared<false>, Config(32), y.get());
}

template <bool kRight>
__global__ void OverrunDynamic(float* y) {
  float* s = gpu::dyn_shared<float>();
  s[threadIdx.x * (kRight ? 1 : 2)] = 1;
  y[threadIdx.x] = s[threadIdx.x * (kRight ? 1 : 2)];
}
TEST(Checker, ReportsDynamicSharedMemoryOverrun) {
  DeviceArray<float> y(32);
  ExpectPair("out-of-bounds write", OverrunDynamic<true>, OverrunDynamic<false>, Config(32, 1, 1, 128),
             y.get());
}

__global__ void ReadFirst(float* y, const float* x) { y[0] = x[0]; }
TEST(Checker, ReportsHostMemoryAndFreedMemory) {
  DeviceArray<float> y(1);
  const std::vector<float> host(1);
  EXPECT_NE(RunKernel(ReadFirst, Config(1), y.get(), host.data()).find("host or wild address"),
            std::string::npos);
  const float* freed;
  {
    DeviceArray<float> x(std::vector<float>(1));
    freed = x.get();
    EXPECT_EQ(RunKernel(ReadFirst, Config(1), y.get(), freed), "");
  }
  EXPECT_NE(RunKernel(ReadFirst, Config(1), y.get(), freed).find("out-of-bounds"), std::string::npos);
}

template <bool kRight>
__global__ void OthersLocals(float* y) {
  SHARED_ARRAY(float*, p, [1]);
  float v = 4;
  if (threadIdx.x == 0) p[0] = &v;
  __syncthreads();
  y[threadIdx.x] = kRight ? v : *p[0];
  __syncthreads();
}
TEST(Checker, ReportsAnotherThreadsLocalVariables) {
  DeviceArray<float> y(32);
  ExpectPair("local memory", OthersLocals<true>, OthersLocals<false>, Config(32), y.get());
}

// ---- asynchronous copies
template <bool kRight>
__global__ void CopyAndRead(float* y, const float* x) {
  SHARED_ARRAY(float, s, [128]);
  gpu::cp_async16(&s[4 * threadIdx.x], &x[4 * threadIdx.x]);
  gpu::cp_async_commit();
  if (kRight) gpu::cp_async_wait<0>();
  y[threadIdx.x] = s[4 * threadIdx.x];
  gpu::cp_async_wait<0>();
}
TEST(Checker, ReportsAReadBeforeTheCopyIsWaitedFor) {
  DeviceArray<float> y(32), x(std::vector<float>(128));
  ExpectPair("in flight", CopyAndRead<true>, CopyAndRead<false>, Config(32), y.get(),
             static_cast<const float*>(x.get()));
}

// The wait is each thread's own: others need a barrier after it.
template <bool kRight>
__global__ void CopyForOthers(float* y, const float* x) {
  SHARED_ARRAY(float, s, [256]);
  gpu::cp_async16(&s[4 * threadIdx.x], &x[4 * threadIdx.x]);
  gpu::cp_async_commit();
  if (!kRight) __syncthreads();
  gpu::cp_async_wait<0>();
  if (kRight) __syncthreads();
  y[threadIdx.x] = s[4 * (63 - threadIdx.x)];
}
TEST(Checker, KnowsThatACopyIsWaitedForByItsThreadOnly) {
  DeviceArray<float> y(64), x(std::vector<float>(256));
  ExpectPair(" of shared array s", CopyForOthers<true>, CopyForOthers<false>, Config(64), y.get(),
             static_cast<const float*>(x.get()));
}

template <bool kRight>
__global__ void MultiplyGenericWrites(float* y) {
  char* s = gpu::dyn_shared<char>();
  for (unsigned i = threadIdx.x; i < 4096; i += 128) reinterpret_cast<uint32_t*>(s)[i] = 0x3f803f80;
  if (kRight) gpu::fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  gpu::wgmma_fence();
  gpu::wgmma_bf16_m64n64k16(d, gpu::make_smem_desc(gpu::smem_addr(s), 16, 1024, 1),
                            gpu::make_smem_desc(gpu::smem_addr(s) + 8192, 16, 1024, 1));
  gpu::wgmma_commit();
  gpu::wgmma_wait<0>();
  y[threadIdx.x] = d[0];
}
TEST(Checker, ReportsAMissingProxyFenceBeforeWgmma) {
  DeviceArray<float> y(128);
  ExpectPair("fence_proxy_async", MultiplyGenericWrites<true>, MultiplyGenericWrites<false>,
             Config(128, 1, 1, 16384), y.get());
}

template <bool kRight>
__global__ void StoreAndReuse(float* y) {
  SHARED_ARRAY(float, s, [32]);
  s[threadIdx.x] = 1;
  gpu::fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    gpu::bulk_s2g(y, s, 128);
    gpu::bulk_commit();
    if (kRight) gpu::bulk_wait_read<0>();
  }
  __syncwarp();
  s[threadIdx.x] = 2;
  if (threadIdx.x == 0) gpu::bulk_wait<0>();
}
TEST(Checker, ReportsASourceOverwrittenBeforeTheStoreHasReadIt) {
  DeviceArray<float> y(32);
  ExpectPair("while an asynchronous copy from it", StoreAndReuse<true>, StoreAndReuse<false>, Config(32),
             y.get());
}
}  // namespace
}  // namespace carousel
