// The emulation of what needs compute capability 9.0: clusters, mbarriers, bulk copies, TMA and wgmma,
// against plain computations, and its reports.
#include <gtest/gtest.h>

#include <random>
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

// ---- clusters
__global__ void RotateInCluster(int* y) {
  SHARED_ARRAY(int, s, [32]);
  s[threadIdx.x] = static_cast<int>(blockIdx.x * 100 + threadIdx.x);
  gpu::cluster_sync();  // s of all blocks: written above, read below
  const unsigned next = (gpu::cluster_rank() + 1) % gpu::cluster_size();
  y[blockIdx.x * 32 + threadIdx.x] = gpu::map_shared(s, next)[threadIdx.x];
  gpu::cluster_sync();  // a block must not exit while another reads its memory
}
__global__ void MapOutside(int* y) {
  SHARED_ARRAY(int, s, [1]);
  y[0] = *gpu::map_shared(s, 2);
}
TEST(HopperEmulation, ReadsSharedMemoryOfOtherBlocksOfACluster) {
  DeviceArray<int> y(8 * 32);
  ASSERT_EQ(RunKernel(RotateInCluster, Config(32, 8, 4), y.get()), "");
  for (int b = 0; b < 8; ++b) {
    for (int t = 0; t < 32; ++t)
      EXPECT_EQ(y[static_cast<size_t>(b * 32 + t)], (b / 4 * 4 + (b + 1) % 4) * 100 + t);
  }
  EXPECT_REPORT("no block 2 in a cluster of 2", RunKernel(MapOutside, Config(1, 2, 2), y.get()));
}

// ---- a producer warp and consumers, three stages
template <bool kWaitsForEmpty>
__global__ void Pipeline(float* y, const float* x, int tiles) {
  constexpr int kStages = 3, kTile = 64;
  SHARED_ARRAY(float, s, [kStages][kTile]);
  SHARED_ARRAY(uint64_t, full, [kStages]);
  SHARED_ARRAY(uint64_t, empty, [kStages]);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      gpu::mbar_init(&full[i], 1);
      gpu::mbar_init(&empty[i], kTile);
    }
    gpu::fence_mbar_init();
  }
  __syncthreads();  // the barriers: initialised above, used below
  for (int i = 0; i < tiles; ++i) {
    const int stage = i % kStages;
    const unsigned phase = static_cast<unsigned>(i / kStages) & 1;
    if (threadIdx.x < kTile) {
      gpu::mbar_wait(&full[stage], phase);
      y[i * kTile + static_cast<int>(threadIdx.x)] = 2 * s[stage][kTile - 1 - threadIdx.x];
      gpu::mbar_arrive(&empty[stage]);
    } else if (threadIdx.x == kTile) {
      if (kWaitsForEmpty) gpu::mbar_wait(&empty[stage], phase ^ 1);
      gpu::mbar_arrive_expect_tx(&full[stage], kTile * 4);
      gpu::bulk_g2s(s[stage], x + i * kTile, kTile * 4, &full[stage]);
    }
  }
}
TEST(HopperEmulation, PipelinesBulkCopiesThroughMbarriers) {
  std::vector<float> x(10 * 64);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  DeviceArray<float> input(x), y(10 * 64);
  ASSERT_EQ(RunKernel(Pipeline<true>, Config(96), y.get(), static_cast<const float*>(input.get()), 10), "");
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], 2 * x[i / 64 * 64 + 63 - i % 64]);
  EXPECT_REPORT("more arrivals at the mbarrier than its count",
                RunKernel(Pipeline<false>, Config(96), y.get(), static_cast<const float*>(input.get()), 10));
}

enum class Wrong { kNothing, kNoInit, kNoFence, kNoTma };
template <Wrong kWrong>
__global__ void LoadOnce(float* y, const float* x) {
  SHARED_ARRAY(float, s, [4]);
  SHARED_ARRAY(uint64_t, bar, [1]);
  if (kWrong != Wrong::kNoInit) gpu::mbar_init(bar, 1);
  if (kWrong != Wrong::kNoFence) gpu::fence_mbar_init();
  gpu::mbar_arrive_expect_tx(bar, 16);
  if (kWrong != Wrong::kNoTma) gpu::bulk_g2s(s, x, 16, bar);
  gpu::mbar_wait(bar, 0);
  y[0] = s[3];
}
TEST(HopperEmulation, ReportsWrongUseOfMbarriers) {
  DeviceArray<float> x(std::vector<float>{1, 2, 3, 4}), y(1);
  const float* input = x.get();
  EXPECT_EQ(RunKernel(LoadOnce<Wrong::kNothing>, Config(1), y.get(), input), "");
  EXPECT_EQ(y[0], 4);
  EXPECT_REPORT("the mbarrier has not been initialised",
                RunKernel(LoadOnce<Wrong::kNoInit>, Config(1), y.get(), input));
  EXPECT_REPORT("no fence_mbar_init after mbar_init",
                RunKernel(LoadOnce<Wrong::kNoFence>, Config(1), y.get(), input));
  EXPECT_REPORT("threads wait in mbar_wait at simt_hopper_test.cc",
                RunKernel(LoadOnce<Wrong::kNoTma>, Config(1), y.get(), input));
}

// ---- blocks that pass their parts of a tile on to all of a cluster, two tiles in turn
enum class Flaw { kNone, kMoreBytes, kFewerBytes, kLeaves };
template <Flaw kFlaw>
__global__ void PassAround(uint32_t* y, int items) {
  constexpr unsigned kBlocks = 4, kThreads = 64, kParts = kBlocks * kThreads;
  constexpr unsigned kBytes =
      kParts * 16 + (kFlaw == Flaw::kMoreBytes ? 16 : 0) - (kFlaw == Flaw::kFewerBytes ? 16 : 0);
  SHARED_ARRAY(uint4, tiles, [2][kParts]);
  SHARED_ARRAY(uint64_t, full, [2]);
  const unsigned rank = gpu::cluster_rank(), part = rank * kThreads + threadIdx.x;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) gpu::mbar_init(&full[i], 1);
    gpu::fence_mbar_init();
    for (int i = 0; i < 2; ++i) gpu::mbar_arrive_expect_tx(&full[i], kBytes);
  }
  gpu::cluster_sync();  // the barriers: initialised above, used by all blocks below
  uint4 own = make_uint4(part, 1, 2, 3);
  for (int i = 0; i < items; ++i) {
    for (unsigned r = 0; r < kBlocks; ++r) gpu::st_async(&tiles[i % 2][part], own, &full[i % 2], r);
    if (kFlaw == Flaw::kLeaves && rank == 2 && i + 1 == items) return;
    gpu::mbar_wait(&full[i % 2], static_cast<unsigned>(i / 2) & 1);
    if (threadIdx.x == 0) gpu::mbar_arrive_expect_tx(&full[i % 2], kBytes);
    uint32_t sum = 0;
    for (unsigned p = 0; p < kParts; ++p) sum = sum * 31 + tiles[i % 2][p].x + tiles[i % 2][p].w;
    own = make_uint4(sum + part, own.x, own.y, own.z);
  }
  y[part] = own.x;
}
std::vector<uint32_t> PassedAround(int items) {
  std::vector<uint4> own;
  for (unsigned part = 0; part < 256; ++part) own.push_back(make_uint4(part, 1, 2, 3));
  for (int i = 0; i < items; ++i) {
    uint32_t sum = 0;
    for (const uint4& p : own) sum = sum * 31 + p.x + p.w;
    for (unsigned part = 0; part < 256; ++part)
      own[part] = make_uint4(sum + part, own[part].x, own[part].y, own[part].z);
  }
  std::vector<uint32_t> x;
  for (const uint4& p : own) x.push_back(p.x);
  return x;
}
TEST(HopperEmulation, PassesTilesAroundAClusterWithoutABarrierOfIt) {
  DeviceArray<uint32_t> y(256);
  const auto result = [&] {
    std::vector<uint32_t> x;
    for (size_t i = 0; i < 256; ++i) x.push_back(y[i]);
    return x;
  };
  for (const int items : {0, 1, 2, 7}) {
    ASSERT_EQ(RunKernel(PassAround<Flaw::kNone>, Config(64, 4, 4), y.get(), items), "");
    EXPECT_EQ(result(), PassedAround(items)) << items;
  }
  EXPECT_REPORT("threads wait in mbar_wait at simt_hopper_test.cc",
                RunKernel(PassAround<Flaw::kMoreBytes>, Config(64, 4, 4), y.get(), 7));
  // A wait that ends too early sees what has not landed.
  const std::string report = RunKernel(PassAround<Flaw::kFewerBytes>, Config(64, 4, 4), y.get(), 7);
  EXPECT_TRUE(!report.empty() || result() != PassedAround(7));
  EXPECT_REPORT("into its shared memory is under way",
                RunKernel(PassAround<Flaw::kLeaves>, Config(64, 4, 4), y.get(), 1));
}

// ---- TMA
__global__ void LoadBox(uint16_t* y, const __grid_constant__ gpu::TensorMap map, int col, int row) {
  uint16_t* s = gpu::dyn_shared<uint16_t>();
  SHARED_ARRAY(uint64_t, bar, [1]);
  if (threadIdx.x == 0) {
    gpu::mbar_init(bar, 1);
    gpu::fence_mbar_init();
    gpu::mbar_arrive_expect_tx(bar, 4 * 128);
    gpu::tma_load_2d(s, map, col, row, bar);
  }
  __syncthreads();  // the barrier: initialised above, waited for below
  gpu::mbar_wait(bar, 0);
  for (unsigned r = 0; r < 4; ++r) {  // 16-byte pieces are permuted by the row
    for (unsigned c = threadIdx.x; c < 64; c += 32)
      y[r * 64 + c] = s[r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8];
  }
}
TEST(HopperEmulation, LoadsSwizzledBoxesWithZerosOutside) {
  constexpr int kCols = 80, kRows = 6;
  std::vector<uint16_t> x(kCols * kRows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i + 1);
  DeviceArray<uint16_t> input(x);
  const gpu::TensorMap map = gpu::make_tensor_map_2d(input.get(), kCols, kRows, kCols * 2, 64, 4);
  for (const auto& [col, row] : {std::pair<int, int>{0, 0}, {32, 3}, {-5, -2}, {100, 0}}) {
    DeviceArray<uint16_t> y(256);
    ASSERT_EQ(RunKernel(LoadBox, Config(32, 1, 1, 512), y.get(), map, col, row), "");
    for (int r = 0; r < 4; ++r) {
      for (int c = 0; c < 64; ++c) {
        const bool inside = row + r >= 0 && row + r < kRows && col + c >= 0 && col + c < kCols;
        const int want = inside ? (row + r) * kCols + col + c + 1 : 0;
        ASSERT_EQ(y[static_cast<size_t>(r * 64 + c)], want) << col << "," << row << ": " << r << "," << c;
      }
    }
  }
  const gpu::TensorMap too_large = gpu::make_tensor_map_2d(input.get(), kCols, kRows + 1, kCols * 2, 64, 4);
  DeviceArray<uint16_t> y(256);
  EXPECT_REPORT("the tensor map is not valid",
                RunKernel(LoadBox, Config(32, 1, 1, 512), y.get(), too_large, 0, 0));
}

// ---- wgmma: one product of 16; a (64 x 16) and b (16 x N) with the 128-byte swizzle
template <int N, bool kTransposeA, bool kTransposeB, bool kFence = true, bool kWait = true>
__global__ void Multiply(float* d_out, const float* a, const float* b) {
  unsigned char* const sa = gpu::dyn_shared<unsigned char>();
  unsigned char* const sb = sa + 8192;
  const auto store = [](unsigned char* to, int row, int col,
                        float v) {  // rows of 64 elements, boxes of 64 rows
    const unsigned at = static_cast<unsigned>(row * 128 + col * 2);
    *reinterpret_cast<bfloat16*>(to + (at ^ ((at >> 7 & 7) << 4))) = gpu::to_bf16(v);
  };
  for (int i = static_cast<int>(threadIdx.x); i < 64 * 16; i += 128) {
    const int m = i / 16, k = i % 16;
    kTransposeA ? store(sa, k, m, a[i]) : store(sa, m, k, a[i]);
  }
  for (int i = static_cast<int>(threadIdx.x); i < 16 * N; i += 128) {
    const int k = i / N, n = i % N;
    kTransposeB ? store(sb + n / 64 * 8192, k, n % 64, b[i]) : store(sb, n, k, b[i]);
  }
  gpu::fence_proxy_async();
  __syncthreads();  // a and b: written above, read by wgmma
  float d[N / 2];
  for (float& v : d) v = 1;
  if (kFence) gpu::wgmma_fence();
  gpu::wgmma_bf16<N, kTransposeA, kTransposeB>(d, gpu::make_smem_desc(gpu::smem_addr(sa), 8192, 1024, 1),
                                               gpu::make_smem_desc(gpu::smem_addr(sb), 8192, 1024, 1));
  gpu::wgmma_commit();
  if (kWait) gpu::wgmma_wait<0>();
  const int lane = static_cast<int>(threadIdx.x) % 32, row0 = static_cast<int>(threadIdx.x) / 32 * 16;
  for (int i = 0; i < N / 2; ++i) {
    const int row = row0 + lane / 4 + i / 2 % 2 * 8, col = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d_out[row * N + col] = d[i];
  }
}
template <int N, bool kTransposeA, bool kTransposeB>
void TestMultiply() {
  std::mt19937 random(N);
  std::vector<float> a(64 * 16), b(16 * N);  // small integers: exact
  for (float& v : a) v = static_cast<float>(static_cast<int>(random() % 17) - 8);
  for (float& v : b) v = static_cast<float>(static_cast<int>(random() % 17) - 8);
  DeviceArray<float> da(a), db(b), d(64 * N);
  ASSERT_EQ(RunKernel(Multiply<N, kTransposeA, kTransposeB>, Config(128, 1, 1, 8192 * (1 + (N + 63) / 64)),
                      d.get(), static_cast<const float*>(da.get()), static_cast<const float*>(db.get())),
            "");
  for (size_t i = 0; i < 64; ++i) {
    for (size_t j = 0; j < N; ++j) {
      float sum = 1;
      for (size_t k = 0; k < 16; ++k) sum += a[i * 16 + k] * b[k * N + j];
      ASSERT_EQ(d[i * N + j], sum) << N << kTransposeA << kTransposeB << ": " << i << ", " << j;
    }
  }
}
TEST(HopperEmulation, MultipliesOperandsOfEitherOrderInSharedMemory) {
  TestMultiply<64, false, false>();
  TestMultiply<64, true, false>();
  TestMultiply<64, false, true>();
  TestMultiply<72, false, false>();
  TestMultiply<128, true, true>();
  TestMultiply<256, false, true>();
}
__global__ void MultiplyOutside() {
  float d[32] = {};
  gpu::wgmma_fence();
  gpu::wgmma_bf16<64>(d, gpu::make_smem_desc(0, 0, 1024, 1), gpu::make_smem_desc(8192, 0, 1024, 1));
  gpu::wgmma_commit();
  gpu::wgmma_wait<0>();
}
TEST(HopperEmulation, ReportsWgmmaWithoutFenceWaitOrWarpgroup) {
  DeviceArray<float> a(std::vector<float>(64 * 16)), b(std::vector<float>(16 * 64)), d(64 * 64);
  const float *pa = a.get(), *pb = b.get();
  EXPECT_REPORT("without wgmma_fence",
                RunKernel(Multiply<64, false, false, false>, Config(128, 1, 1, 16384), d.get(), pa, pb));
  EXPECT_REPORT("with wgmma from simt_hopper_test.cc", RunKernel(Multiply<64, false, false, true, false>,
                                                                 Config(128, 1, 1, 16384), d.get(), pa, pb));
  EXPECT_REPORT("needs a whole warpgroup",
                RunKernel(Multiply<64, false, false>, Config(96, 1, 1, 16384), d.get(), pa, pb));
  EXPECT_REPORT("an operand at shared offset 8192 is outside",
                RunKernel(MultiplyOutside, Config(128, 1, 1, 8192)));
}
}  // namespace
}  // namespace carousel
