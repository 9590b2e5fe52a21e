// The emulation: every function of kernels/cuda/device.h against plain computations, and the reports of what
// CUDA leaves undefined. Clusters, copies and wgmma: simt_hopper_test.cc.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/simt_testing.h"

namespace carousel {
namespace {

using testing::DeviceArray;
using testing::RunKernel;

gpu::LaunchCfg Config(dim3 threads, dim3 blocks = 1, size_t smem = 0) {
  return {.grid = blocks, .block = threads, .smem = smem, .name = "TestKernel"};
}
// ---- launches and threads
__global__ void WriteIndices(int* y, int base) {
  const dim3 n = blockDim;
  const unsigned thread = (threadIdx.z * n.y + threadIdx.y) * n.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  y[block * n.x * n.y * n.z + thread] = base + static_cast<int>(block * 1000 + thread);
  if (gpu::lane_id() != thread % warpSize) y[0] = -1;
}
TEST(Emulator, RunsEveryThreadOfEveryBlockOnceUnderEverySchedule) {
  const emulator::Options before = emulator::options();
  for (const char* schedule : {"lifo", "fifo", "random", "random:7"}) {
    for (int workers : {1, 3}) {
      ASSERT_TRUE(emulator::SetSchedule(schedule));
      emulator::options().workers = workers;
      DeviceArray<int> y(24 * 30);
      ASSERT_EQ(RunKernel(WriteIndices, Config(dim3(5, 3, 2), dim3(2, 3, 4)), y.get(), 7), "");
      for (int i = 0; i < 24 * 30; ++i)
        ASSERT_EQ(y[static_cast<size_t>(i)], 7 + i / 30 * 1000 + i % 30) << schedule;
    }
  }
  emulator::options() = before;
}
TEST(Emulator, RefusesUnknownSchedules) {
  for (const char* name : {"", "Lifo", "random:", "random:x", "random:-1", "fifo "}) {
    EXPECT_FALSE(emulator::SetSchedule(name)) << name;
  }
}
TEST(Emulator, RefusesLaunchesThatAGpuRefuses) {
  DeviceArray<int> y(1);
  EXPECT_REPORT("a block of 1025 x 1 x 1 threads", RunKernel(WriteIndices, Config(1025), y.get(), 0));
  EXPECT_REPORT("a block of 0 x 1 x 1 threads", RunKernel(WriteIndices, Config(0), y.get(), 0));
  EXPECT_REPORT("a grid of 0 x 1 x 1 blocks", RunKernel(WriteIndices, Config(1, 0), y.get(), 0));
  EXPECT_REPORT("a grid of 1 x 65536 x 1 blocks",
                RunKernel(WriteIndices, Config(1, dim3(1, 65536)), y.get(), 0));
  EXPECT_REPORT("bytes of dynamic shared memory",
                RunKernel(WriteIndices, Config(1, 1, 228 << 10), y.get(), 0));
  gpu::LaunchCfg c = Config(1, 3);
  c.cluster = 2;
  EXPECT_REPORT("clusters of 2 x 1 x 1 blocks do not fit", RunKernel(WriteIndices, c, y.get(), 0));
}

__global__ void WriteOneFarElement(char* y, int64_t stride) { y[blockIdx.x * stride] = 1; }
TEST(Emulator, RunsOneBlockOfAHugeGridAlone) {
  const emulator::Options before = emulator::options();
  const int64_t stride = 60000, blocks = 80000;  // 4.8 GB, of which one page is touched
  emulator::options().only_block = blocks - 1;
  char* const y = static_cast<char*>(emulator::device_alloc(static_cast<size_t>(stride * blocks)));
  EXPECT_EQ(RunKernel(WriteOneFarElement, Config(1, static_cast<unsigned>(blocks)), y, stride), "");
  EXPECT_EQ(y[stride * (blocks - 1)], 1);
  emulator::device_free(y);
  emulator::options() = before;
}

TEST(Emulator, KnowsItsDeviceMemory) {
  DeviceArray<float> a(100), b(100);
  EXPECT_TRUE(std::isnan(a[0]) && std::isnan(a[99]));
  EXPECT_TRUE(emulator::device_owns(a.get(), 400));
  EXPECT_FALSE(emulator::device_owns(a.get(), 401));
  EXPECT_FALSE(emulator::device_owns(a.get() - 1, 4));
  int host = 0;
  EXPECT_FALSE(emulator::device_owns(&host, 4));
  EXPECT_THROW(emulator::device_free(a.get() + 1), emulator::KernelError);
}

// ---- shared memory
__global__ void ReadSharedMemory(float* y) {
  SHARED_ARRAY(float, a, [2][32]);
  SHARED_ARRAY(float, b, [32]);
  float* c = gpu::dyn_shared<float>();
  y[threadIdx.x] = a[1][threadIdx.x] + b[threadIdx.x] + c[threadIdx.x];
}
TEST(Emulator, FillsSharedMemoryWithNan) {
  DeviceArray<float> y(std::vector<float>(32));
  EXPECT_EQ(RunKernel(ReadSharedMemory, Config(32, 1, 128), y.get()), "");
  for (float v : y.values()) EXPECT_TRUE(std::isnan(v));
}

template <class T>
__global__ void ReverseThroughShared(T* y, const T* x) {
  SHARED_ARRAY(T, s, [256]);
  s[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
  __syncthreads();  // s written above, read below
  y[blockIdx.x * 256 + threadIdx.x] = s[255 - threadIdx.x];
}
TEST(Emulator, ExchangesThroughSharedMemory) {
  std::vector<int> x(512);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i);
  DeviceArray<int> input(x), y(512);
  EXPECT_EQ(
      RunKernel(ReverseThroughShared<int>, Config(256, 2), y.get(), static_cast<const int*>(input.get())),
      "");
  for (size_t i = 0; i < 512; ++i) EXPECT_EQ(y[i], x[i / 256 * 256 + 255 - i % 256]);
}

// ---- barriers
__global__ void VoteInBlock(int* y) {
  const int p = threadIdx.x % 3 == 0;
  y[threadIdx.x] = __syncthreads_count(p) * 100 + __syncthreads_or(p) * 10 + __syncthreads_and(p);
}
TEST(Emulator, CountsVotesOfABlock) {
  DeviceArray<int> y(70);
  EXPECT_EQ(RunKernel(VoteInBlock, Config(70), y.get()), "");
  for (int v : y.values()) EXPECT_EQ(v, 24 * 100 + 10);
}
__global__ void PassThroughNamedBarriers(int* y, int rounds) {  // warp 0 produces, warp 1 consumes
  SHARED_ARRAY(int, s, [32]);
  const int lane = static_cast<int>(gpu::lane_id());
  for (int i = 0; i < rounds; ++i) {
    if (threadIdx.x < 32) {
      if (i > 0) gpu::bar_sync(2, 64);
      s[lane] = 100 * i + lane;
      gpu::bar_arrive(1, 64);
    } else {
      gpu::bar_sync(1, 64);
      y[32 * i + lane] = s[31 - lane];
      if (i + 1 < rounds) gpu::bar_arrive(2, 64);
    }
  }
}
TEST(Emulator, PassesDataThroughNamedBarriers) {
  DeviceArray<int> y(32 * 5);
  EXPECT_EQ(RunKernel(PassThroughNamedBarriers, Config(64), y.get(), 5), "");
  for (int i = 0; i < 160; ++i) EXPECT_EQ(y[static_cast<size_t>(i)], i / 32 * 100 + 31 - i % 32);
}
__global__ void SumOverGrid(int* partial, int* y) {
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) partial[blockIdx.x] = static_cast<int>(blockIdx.x) + round;
    gpu::grid_sync();
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b];
    if (threadIdx.x == 1) y[blockIdx.x * 3 + static_cast<unsigned>(round)] = sum;
    gpu::grid_sync();
  }
}
TEST(Emulator, SynchronisesCooperativeGrids) {
  DeviceArray<int> partial(5), y(15);
  gpu::LaunchCfg config = Config(40, 5);
  EXPECT_REPORT("not cooperative", RunKernel(SumOverGrid, config, partial.get(), y.get()));
  config.cooperative = true;
  EXPECT_EQ(RunKernel(SumOverGrid, config, partial.get(), y.get()), "");
  for (int i = 0; i < 15; ++i) EXPECT_EQ(y[static_cast<size_t>(i)], 10 + 5 * (i % 3));
}
__global__ void TakeTickets(int* ticket, int* order) {
  if (threadIdx.x == 0) {
    order[gpu::atomic_add_acq_rel(ticket, 1)] = static_cast<int>(blockIdx.x);
    gpu::st_release(&ticket[1], gpu::ld_acquire(&ticket[0]));
  }
}
TEST(Emulator, GivesEveryBlockATicket) {
  DeviceArray<int> ticket(std::vector<int>{0, 0}), order(9);
  EXPECT_EQ(RunKernel(TakeTickets, Config(32, 9), ticket.get(), order.get()), "");
  std::vector<int> blocks = order.values();
  std::sort(blocks.begin(), blocks.end());
  for (int i = 0; i < 9; ++i) EXPECT_EQ(blocks[static_cast<size_t>(i)], i);
  EXPECT_EQ(ticket[1], 9);
}

// ---- warp collectives
template <class T>
__global__ void Shuffles(T* y, const T* x, int arg, int width) {
  const T v = x[threadIdx.x];
  T* row = y + 4 * threadIdx.x;
  row[0] = __shfl_sync(~0u, v, arg, width);
  row[1] = __shfl_up_sync(~0u, v, static_cast<unsigned>(arg), width);
  row[2] = __shfl_down_sync(~0u, v, static_cast<unsigned>(arg), width);
  row[3] = __shfl_xor_sync(~0u, v, arg, width);
}
template <class T>
void TestShuffles() {
  std::vector<T> x(32);
  for (int i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = static_cast<T>(i * 3 + 1);
  DeviceArray<T> input(x);
  for (int width : {32, 16, 8, 2}) {
    for (int arg : {0, 1, 3, 7}) {
      DeviceArray<T> y(128);
      ASSERT_EQ(RunKernel(Shuffles<T>, Config(32), y.get(), static_cast<const T*>(input.get()), arg, width),
                "");
      for (int l = 0; l < 32; ++l) {
        const int low = l / width * width, high = low + width;
        const int source[4] = {low + arg % width, l - arg >= low ? l - arg : l, l + arg < high ? l + arg : l,
                               (l ^ arg) < high ? l ^ arg : l};
        for (int k = 0; k < 4; ++k) {
          ASSERT_EQ(y[static_cast<size_t>(4 * l + k)], x[static_cast<size_t>(source[k])])
              << "lane " << l << " kind " << k << " arg " << arg << " width " << width;
        }
      }
    }
  }
}
TEST(Emulator, ShufflesWithinSegmentsOfAWarp) {
  TestShuffles<int>();
  TestShuffles<float>();
  TestShuffles<double>();
  TestShuffles<int64_t>();
}

__global__ void Votes(unsigned* y, const int* x) {
  const int v = x[threadIdx.x];
  unsigned* row = y + 12 * threadIdx.x;
  row[0] = __ballot_sync(~0u, v > 2);
  row[1] = static_cast<unsigned>(__any_sync(~0u, v == 5) * 2 + __all_sync(~0u, v >= -3));
  row[2] = __match_any_sync(~0u, v);
  int all = 7;
  row[3] = __match_all_sync(~0u, v, &all) + static_cast<unsigned>(all);
  row[4] = static_cast<unsigned>(__reduce_add_sync(~0u, v));
  row[5] = static_cast<unsigned>(__reduce_min_sync(~0u, v));
  row[6] = static_cast<unsigned>(__reduce_max_sync(~0u, v));
  row[7] = __reduce_min_sync(~0u, static_cast<unsigned>(v));
  row[8] = __reduce_and_sync(~0u, static_cast<unsigned>(v) | 0x100u);
  row[9] = __reduce_or_sync(~0u, static_cast<unsigned>(v));
  row[10] = __reduce_xor_sync(~0u, static_cast<unsigned>(v));
  row[11] = gpu::elect_one() ? 1u : 0u;
}
TEST(Emulator, VotesMatchesAndReducesInAWarp) {
  std::vector<int> x(32);
  for (int i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = i * 5 % 9 - 3;
  DeviceArray<int> input(x);
  DeviceArray<unsigned> y(32 * 12);
  ASSERT_EQ(RunKernel(Votes, Config(32), y.get(), static_cast<const int*>(input.get())), "");
  unsigned above = 0, all_and = ~0u, all_or = 0, all_xor = 0, least = ~0u;
  int sum = 0;
  for (int l = 0; l < 32; ++l) {
    const int v = x[static_cast<size_t>(l)];
    const unsigned u = static_cast<unsigned>(v);
    above |= (v > 2 ? 1u : 0u) << l;
    sum += v;
    all_and &= u | 0x100u;
    all_or |= u;
    all_xor ^= u;
    least = std::min(least, u);
  }
  for (size_t l = 0; l < 32; ++l) {
    unsigned equal = 0;
    for (size_t k = 0; k < 32; ++k) equal |= (x[k] == x[l] ? 1u : 0u) << k;
    const unsigned expected[12] = {above,
                                   3,
                                   equal,
                                   0,
                                   static_cast<unsigned>(sum),
                                   static_cast<unsigned>(-3),
                                   5,
                                   least,
                                   all_and,
                                   all_or,
                                   all_xor,
                                   l == 0 ? 1u : 0u};
    for (size_t k = 0; k < 12; ++k) EXPECT_EQ(y[12 * l + k], expected[k]) << "lane " << l << " column " << k;
  }
}

// ---- tensor core
// One warp: d (16 x 8) += a (16 x K) b (K x 8), the operands through ldmatrix; a and b^T are rows of K 16-bit
// elements.
template <bool kBf16>
__global__ void MmaTile(float* d, const uint16_t* a, const uint16_t* b) {
  SHARED_ARRAY(uint16_t, sa, [16][16]);
  SHARED_ARRAY(uint16_t, sb, [16][8]);  // k x n
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
  for (unsigned i = lane; i < 128; i += 32) sb[i / 8][i % 8] = b[i];
  __syncwarp();  // sa, sb written above, read below
  uint32_t fa[4], fb[2];
  gpu::ldmatrix_x4(fa, &sa[lane % 16][lane / 16 * 8]);
  gpu::ldmatrix_x2_trans(fb, &sb[lane % 16][0]);
  float acc[4];
  for (unsigned r = 0; r < 4; ++r) acc[r] = d[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2];
  if (kBf16) {
    gpu::mma_bf16_m16n8k16(acc, fa, fb[0], fb[1]);
  } else {
    gpu::mma_f16_m16n8k16(acc, fa, fb[0], fb[1]);
  }
  for (unsigned r = 0; r < 4; ++r) d[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2] = acc[r];
}
// Small integers and halves: exact in every format.
uint16_t HalfBits(int v) {  // of v / 2, |v| < 1024
  if (v == 0) return 0;
  const int magnitude = std::abs(v), exponent = 31 - __builtin_clz(static_cast<unsigned>(magnitude));
  return static_cast<uint16_t>((v < 0 ? 0x8000 : 0) | ((exponent - 1 + 15) << 10) |
                               ((magnitude << (10 - exponent)) & 0x3ff));
}
template <bool kBf16>
void TestMma() {
  std::mt19937 random(3);
  const auto draw = [&] { return static_cast<int>(random() % 33) - 16; };
  std::vector<int> a(256), b(128), c(128);
  for (int& v : a) v = draw();
  for (int& v : b) v = draw();
  for (int& v : c) v = draw();
  const auto bits = [](const std::vector<int>& values) {
    std::vector<uint16_t> r;
    for (int v : values) r.push_back(kBf16 ? gpu::to_bf16(static_cast<float>(v) / 2).bits : HalfBits(v));
    return r;
  };
  std::vector<float> start;
  for (int v : c) start.push_back(static_cast<float>(v));
  DeviceArray<uint16_t> da(bits(a)), db(bits(b));
  DeviceArray<float> d(start);
  ASSERT_EQ(RunKernel(MmaTile<kBf16>, Config(32), d.get(), static_cast<const uint16_t*>(da.get()),
                      static_cast<const uint16_t*>(db.get())),
            "");
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 8; ++j) {
      int sum = 4 * c[i * 8 + j];
      for (size_t k = 0; k < 16; ++k) sum += a[i * 16 + k] * b[k * 8 + j];
      EXPECT_EQ(d[i * 8 + j], static_cast<float>(sum) / 4) << i << ", " << j;
    }
  }
}
TEST(Emulator, MultipliesBf16AndF16Tiles) {
  TestMma<true>();
  TestMma<false>();
}
__global__ void Tf32Tile(float* d, const float* a, const float* b) {  // a 16 x 8, b 8 x 8 row-major
  const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const uint32_t fa[4] = {gpu::float_to_bits(a[g * 8 + t]), gpu::float_to_bits(a[(g + 8) * 8 + t]),
                          gpu::float_to_bits(a[g * 8 + t + 4]), gpu::float_to_bits(a[(g + 8) * 8 + t + 4])};
  float acc[4] = {};
  gpu::mma_tf32_m16n8k8(acc, fa, gpu::float_to_bits(b[t * 8 + g]), gpu::float_to_bits(b[(t + 4) * 8 + g]));
  for (unsigned r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + t * 2 + r % 2] = acc[r];
}
TEST(Emulator, MultipliesTf32TilesAndDropsTheLowBits) {
  std::mt19937 random(4);
  std::vector<float> a(128), b(64);
  for (float& v : a) v = static_cast<float>(random() % 64) + 0x1p-20f;  // the fraction does not fit into tf32
  for (float& v : b) v = static_cast<float>(random() % 64) - 32;
  DeviceArray<float> da(a), db(b), d(128);
  ASSERT_EQ(RunKernel(Tf32Tile, Config(32), d.get(), static_cast<const float*>(da.get()),
                      static_cast<const float*>(db.get())),
            "");
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 8; ++j) {
      float sum = 0;
      for (size_t k = 0; k < 8; ++k) sum += std::floor(a[i * 8 + k]) * b[k * 8 + j];
      EXPECT_EQ(d[i * 8 + j], sum);
    }
  }
}
template <bool kTransposed>
__global__ void StoreTile(uint16_t* y) {  // registers hold the element's number
  SHARED_ARRAY(uint16_t, s, [32][8]);
  const unsigned lane = threadIdx.x;
  uint32_t r[4];
  for (unsigned j = 0; j < 4; ++j) {
    const unsigned first = j * 64 + lane * 2;
    r[j] = first | (first + 1) << 16;
  }
  if (kTransposed) {
    gpu::stmatrix_x4_trans(&s[lane][0], r);
  } else {
    gpu::stmatrix_x4(&s[lane][0], r);
  }
  __syncwarp();  // s written by stmatrix, read below
  for (unsigned i = 0; i < 8; ++i) y[lane * 8 + i] = s[lane][i];
}
TEST(Emulator, StoresMatricesAsLdmatrixLoadsThem) {
  DeviceArray<uint16_t> plain(256), transposed(256);
  ASSERT_EQ(RunKernel(StoreTile<false>, Config(32), plain.get()), "");
  ASSERT_EQ(RunKernel(StoreTile<true>, Config(32), transposed.get()), "");
  for (size_t m = 0; m < 4; ++m) {
    for (size_t i = 0; i < 8; ++i) {
      for (size_t j = 0; j < 8; ++j) {
        EXPECT_EQ(plain[m * 64 + i * 8 + j], m * 64 + i * 8 + j);
        EXPECT_EQ(transposed[m * 64 + j * 8 + i], m * 64 + i * 8 + j);
      }
    }
  }
}

// ---- cp.async
__global__ void CopyPipeline(float* y, const float* x, int rows, int valid_rows) {
  SHARED_ARRAY(float, s, [2][128]);
  const unsigned i = 4 * threadIdx.x;
  const auto load = [&](int row) {
    gpu::cp_async16(&s[row % 2][i], x + static_cast<int64_t>(row) * 128 + i, row < valid_rows);
    gpu::cp_async_commit();
  };
  load(0);
  for (int row = 0; row < rows; ++row) {
    if (row + 1 < rows) load(row + 1);
    if (row + 1 < rows) {
      gpu::cp_async_wait<1>();
    } else {
      gpu::cp_async_wait<0>();
    }
    __syncthreads();  // s[row % 2] written by all copies, read below
    for (unsigned k = 0; k < 4; ++k)
      y[row * 128 + threadIdx.x + 32 * k] = s[row % 2][127 - threadIdx.x - 32 * k];
    __syncthreads();  // s[row % 2] read above, written by the next load
  }
}
TEST(Emulator, CopiesRowsInAPipelineAndZeroesInvalidOnes) {
  std::vector<float> x(5 * 128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) + 1;
  DeviceArray<float> input(x), y(5 * 128);
  ASSERT_EQ(RunKernel(CopyPipeline, Config(32), y.get(), static_cast<const float*>(input.get()), 5, 4), "");
  for (size_t r = 0; r < 5; ++r) {
    for (size_t c = 0; c < 128; ++c) EXPECT_EQ(y[r * 128 + c], r < 4 ? x[r * 128 + 127 - c] : 0.0f);
  }
}
}  // namespace
}  // namespace carousel
