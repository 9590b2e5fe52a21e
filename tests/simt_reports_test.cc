// What the emulation reports where CUDA leaves the result undefined, and synchronisations removed by a test.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/simt_testing.h"

namespace carousel {
namespace {

using testing::DeviceArray;
using testing::RunKernel;

gpu::LaunchCfg Config(unsigned threads) { return {.grid = 1, .block = threads, .name = "TestKernel"}; }

__global__ void WriteOne(int* y) { y[threadIdx.x] = 1; }

__global__ void CopyWithoutWait(float* y, const float* x) {
  SHARED_ARRAY(float, s, [128]);
  gpu::cp_async16(&s[4 * threadIdx.x], x + 4 * threadIdx.x);
  gpu::cp_async_commit();
  gpu::cp_async_wait<1>();
  y[threadIdx.x] = s[4 * threadIdx.x];
  gpu::cp_async_wait<0>();
}
__global__ void CopyAndExit(const float* x) {
  SHARED_ARRAY(float, s, [4]);
  gpu::cp_async16(s, x);
}
__global__ void CopyMisaligned(const float* x) {
  SHARED_ARRAY(float, s, [8]);
  gpu::cp_async16(s, x + 1);
}
TEST(EmulatorReports, MakesAMissingWaitVisible) {
  DeviceArray<float> x(std::vector<float>(128)), y(std::vector<float>(32));
  ASSERT_EQ(RunKernel(CopyWithoutWait, Config(32), y.get(), static_cast<const float*>(x.get())), "");
  for (float v : y.values()) EXPECT_TRUE(std::isnan(v));
  EXPECT_REPORT("never waited for", RunKernel(CopyAndExit, Config(1), static_cast<const float*>(x.get())));
  EXPECT_REPORT("is not a multiple of 16 bytes",
                RunKernel(CopyMisaligned, Config(1), static_cast<const float*>(x.get())));
}

// ---- what CUDA leaves undefined
__global__ void BarrierInBranch(int kind) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else if (kind == 0) {
    __syncthreads();
  }
}
__global__ void CollectiveInBranch(int kind) {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else if (kind == 0) {
    __shfl_sync(~0u, 1, 0);
  } else if (kind == 1) {
    __shfl_sync(0xffff0000u, 1, 0);
  } else if (kind == 2) {
    __shfl_sync(0x0000ffffu, 1, 0);
  }
}
__global__ void WaitForNobody() { gpu::bar_sync(3, 64); }
__global__ void Traps() { __trap(); }
__global__ void PollForever(const int* flag) {
  while (gpu::ld_acquire(flag) == 0) {
  }
}
TEST(EmulatorReports, ReportsBarriersInDivergentCode) {
  EXPECT_REPORT("divergent __syncthreads: this thread is at simt_reports_test.cc",
                RunKernel(BarrierInBranch, Config(64), 0));
  EXPECT_REPORT("thread exits while 32 threads wait in __syncthreads",
                RunKernel(BarrierInBranch, Config(64), 1));
}
TEST(EmulatorReports, ReportsDivergentWarps) {
  EXPECT_REPORT("divergent warp: this lane is in __shfl_sync(ffffffff)",
                RunKernel(CollectiveInBranch, Config(32), 0));
  EXPECT_REPORT("divergent warp: this lane is in __shfl_sync(ffff0000)",
                RunKernel(CollectiveInBranch, Config(32), 1));
  EXPECT_REPORT("the calling lane 16 is not in mask 0000ffff", RunKernel(CollectiveInBranch, Config(32), 2));
  EXPECT_REPORT("thread exits while other lanes wait for it in __syncwarp",
                RunKernel(CollectiveInBranch, Config(32), 3));
}
TEST(EmulatorReports, NamesThreadsOfADeadlock) {
  const std::string report = RunKernel(WaitForNobody, Config(32));
  EXPECT_REPORT("deadlock: no thread can run", report);
  EXPECT_REPORT("32 threads wait in named barrier at simt_reports_test.cc:", report);
}
TEST(EmulatorReports, ReportsTrapsAndEndlessPolling) {
  EXPECT_REPORT("__trap at simt_reports_test.cc", RunKernel(Traps, Config(1)));
  DeviceArray<int> flag(std::vector<int>{0});
  EXPECT_REPORT("polled", RunKernel(PollForever, Config(1), static_cast<const int*>(flag.get())));
}
TEST(EmulatorReports, RunsOnAfterAnError) {
  DeviceArray<int> y(32);
  EXPECT_NE(RunKernel(Traps, Config(1)), "");
  EXPECT_EQ(RunKernel(WriteOne, Config(32), y.get()), "");
  EXPECT_EQ(y[31], 1);
}

// ---- planted bugs
__global__ void ReverseThroughShared(int* y, const int* x) {
  SHARED_ARRAY(int, s, [256]);
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();  // s written above, read below
  y[threadIdx.x] = s[255 - threadIdx.x];
}
TEST(EmulatorReports, ListsAndRemovesSynchronisations) {
  std::vector<int> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i);
  DeviceArray<int> input(x);
  DeviceArray<int> y(256);
  const auto run = [&] {
    return RunKernel(ReverseThroughShared, Config(256), y.get(), static_cast<const int*>(input.get()));
  };
  emulator::RecordSites();
  ASSERT_EQ(run(), "");
  const std::vector<emulator::Site> sites = emulator::ListSites();
  ASSERT_EQ(sites.size(), 1u);
  EXPECT_EQ(sites[0].kernel, "TestKernel");
  EXPECT_EQ(sites[0].kind, "__syncthreads");
  EXPECT_NE(sites[0].file.find("simt_reports_test.cc"), std::string::npos);
  const std::vector<int> reversed(x.rbegin(), x.rend());
  EXPECT_EQ(y.values(), reversed);
  emulator::RemoveSite(sites[0]);
  EXPECT_EQ(run(), "");
  EXPECT_NE(y.values(), reversed);
  emulator::RestoreSites();
  EXPECT_EQ(run(), "");
  EXPECT_EQ(y.values(), reversed);
  EXPECT_TRUE(emulator::ListSites().empty());
}
}  // namespace
}  // namespace carousel
