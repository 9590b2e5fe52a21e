// The CUDA runtime without a GPU: what it runs, what it refuses and which mistakes of a program it makes
// visible.
#include "kernels/simt/fake_cudart.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "tests/fake_cuda_testing.h"

namespace carousel::testing {
namespace {

__global__ void DivergentKernel() {
  if (threadIdx.x < 32) __syncthreads();  // wrong: the other threads of the block never come here
}

using FakeCudart = FakeCudaTest;

// ---- streams and events

TEST_F(FakeCudart, FreshDeviceMemoryReadsAsNaN) {
  for (const float v : Read(DeviceMemory())) ASSERT_TRUE(std::isnan(v));
}

TEST_F(FakeCudart, WorkRunsWhenTheHostWaitsAndNotBefore) {
  const cudaStream_t stream = Stream();
  float *x = DeviceMemory(), *host = Pinned();
  host[0] = 0;
  EXPECT_OK(Fill(x, 3, stream));
  EXPECT_OK(cudaMemcpyAsync(host, x, kBytes, cudaMemcpyDeviceToHost, stream));
  EXPECT_EQ(host[0], 0);
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(host[0], 3);
}

TEST_F(FakeCudart, WorkRunsAtOnceInEagerMode) {
  SetOptions({.eager = true});
  const cudaStream_t stream = Stream();
  float *x = DeviceMemory(), *host = Pinned();
  EXPECT_OK(Fill(x, 3, stream));
  EXPECT_OK(cudaMemcpyAsync(host, x, kBytes, cudaMemcpyDeviceToHost, stream));
  EXPECT_EQ(host[0], 3);
}

TEST_F(FakeCudart, AStreamKeepsItsOrderInEverySeed) {
  const cudaStream_t a = Stream(), b = Stream();
  float *x = DeviceMemory(), *y = DeviceMemory();
  EXPECT_EQ(CountSeeds([&] {
              EXPECT_OK(Fill(y, 7, b));
              EXPECT_OK(Fill(x, 1, a));
              EXPECT_OK(Add(x, x, a));
              EXPECT_OK(Add(x, x, a));
              EXPECT_OK(cudaStreamSynchronize(a));
              return Read(x) == AllOf(4) && Read(y) == AllOf(7);
            }),
            kNumSeeds);
}

// A kernel on one stream, its result copied on another.
class TwoStreams : public FakeCudaTest {
 protected:
  int CountRightResults(bool with_event, const Options& options = {}) {
    const cudaStream_t producer = Stream(), consumer = Stream();
    const cudaEvent_t event = Event();
    float *x = DeviceMemory(), *host = Pinned();
    return CountSeeds(
        [&] {
          EXPECT_OK(cudaMemset(x, 0, kBytes));
          EXPECT_OK(cudaDeviceSynchronize());
          EXPECT_OK(Fill(x, 5, producer));
          if (with_event) {
            EXPECT_OK(cudaEventRecord(event, producer));
            EXPECT_OK(cudaStreamWaitEvent(consumer, event, 0));
          }
          EXPECT_OK(cudaMemcpyAsync(host, x, kBytes, cudaMemcpyDeviceToHost, consumer));
          EXPECT_OK(cudaStreamSynchronize(consumer));
          const bool right = host[0] == 5 && host[kElems - 1] == 5;
          EXPECT_OK(cudaDeviceSynchronize());
          return right;
        },
        options);
  }
};
TEST_F(TwoStreams, AnEventOrdersThemInEverySeed) { EXPECT_EQ(CountRightResults(true), kNumSeeds); }
TEST_F(TwoStreams, AMissingEventGivesWrongDataInSomeSeeds) {
  const int right = CountRightResults(false);
  EXPECT_GT(right, 0);
  EXPECT_LT(right, kNumSeeds);
}
TEST_F(TwoStreams, AnEventWaitDroppedByOptionGivesWrongDataInSomeSeeds) {
  EXPECT_LT(CountRightResults(true, {.drop_event_wait = 0}), kNumSeeds);
  EXPECT_EQ(CountRightResults(true, {.drop_event_wait = 1}), kNumSeeds);  // there is no second wait
}

TEST_F(FakeCudart, TheSameSeedGivesTheSameInterleaving) {
  const cudaStream_t a = Stream(), b = Stream();
  float* x = DeviceMemory();
  const auto run = [&](uint64_t seed) {
    SetOptions({.seed = seed});
    EXPECT_OK(Fill(x, 0, a));
    EXPECT_OK(cudaStreamSynchronize(a));
    for (int i = 1; i <= 10; ++i) {
      EXPECT_OK(Fill(x, static_cast<float>(i), a));
      EXPECT_OK(Add(x, x, b));
    }
    return Read(x)[0];
  };
  bool differs = false;
  for (uint64_t seed = 1; seed <= kNumSeeds; ++seed) {
    EXPECT_EQ(run(seed), run(seed)) << seed;
    differs |= run(seed) != run(seed + 1);
  }
  EXPECT_TRUE(differs);
}

TEST_F(FakeCudart, TheDefaultStreamWaitsForBlockingStreamsOnly) {
  float* x = DeviceMemory();
  const auto count_right = [&](cudaStream_t stream) {
    return CountSeeds([&] {
      EXPECT_OK(Fill(x, 1, stream));
      EXPECT_OK(Add(x, x, nullptr));  // the default stream
      EXPECT_OK(Add(x, x, stream));
      EXPECT_OK(cudaDeviceSynchronize());
      return Read(x) == AllOf(4);
    });
  };
  EXPECT_EQ(count_right(Stream(cudaStreamDefault)), kNumSeeds);
  EXPECT_LT(count_right(Stream(cudaStreamNonBlocking)), kNumSeeds);
}

TEST_F(FakeCudart, EventsTellWhetherAndWhenTheyWereReached) {
  const cudaStream_t stream = Stream();
  const cudaEvent_t start = Event(cudaEventDefault), end = Event(cudaEventDefault), untimed = Event();
  float *x = DeviceMemory(), ms = -1;
  EXPECT_OK(cudaEventQuery(start));  // never recorded
  EXPECT_OK(cudaEventRecord(start, stream));
  for (int i = 0; i < 10; ++i) EXPECT_OK(Fill(x, 1, stream));
  EXPECT_OK(cudaEventRecord(end, stream));
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaErrorNotReady);
  EXPECT_EQ(cudaEventQuery(end), cudaErrorNotReady);
  EXPECT_OK(cudaEventSynchronize(end));
  EXPECT_OK(cudaEventQuery(end));
  EXPECT_OK(cudaEventElapsedTime(&ms, start, end));
  EXPECT_GE(ms, 0);
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, untimed), cudaErrorInvalidResourceHandle);
}

TEST_F(FakeCudart, AProgramThatPollsSeesItsWorkFinish) {
  const cudaStream_t stream = Stream();
  float* x = DeviceMemory();
  for (int i = 0; i < 5; ++i) EXPECT_OK(Fill(x, 2, stream));
  int polls = 0;
  while (cudaStreamQuery(stream) == cudaErrorNotReady && polls < 100) ++polls;
  EXPECT_GT(polls, 0);
  EXPECT_LT(polls, 100);
  EXPECT_EQ(Read(x), AllOf(2));
}

TEST_F(FakeCudart, WorkOfADestroyedStreamIsStillDone) {
  cudaStream_t stream = nullptr;
  ASSERT_OK(cudaStreamCreate(&stream));
  float* x = DeviceMemory();
  EXPECT_OK(Fill(x, 2, stream));
  EXPECT_OK(cudaStreamDestroy(stream));
  EXPECT_EQ(Read(x), AllOf(2));
  EXPECT_EQ(Fill(x, 2, stream), cudaErrorInvalidResourceHandle);
}

TEST_F(FakeCudart, HostFunctionsRunInStreamOrderAndMayNotCallCuda) {
  const cudaStream_t stream = Stream();
  struct Seen {
    float* x;
    float value;
    cudaError_t status;
  } seen{DeviceMemory(), 0, cudaSuccess};
  EXPECT_OK(Fill(seen.x, 9, stream));
  EXPECT_OK(cudaLaunchHostFunc(
      stream,
      [](void* p) {
        auto* s = static_cast<Seen*>(p);
        s->value = s->x[0];
        s->status = cudaDeviceSynchronize();
      },
      &seen));
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(seen.value, 9);
  EXPECT_EQ(seen.status, cudaErrorNotPermitted);
  cudaGetLastError();
}

// ---- memory and copies

TEST_F(FakeCudart, APinnedSourceChangedTooEarlyIsSeenAndAPageableOneIsNot) {
  const cudaStream_t stream = Stream();
  float *x = DeviceMemory(), *pinned = Pinned();
  std::vector<float> pageable(kElems, 1);
  std::fill(pinned, pinned + kElems, 1.0f);
  EXPECT_OK(cudaMemcpyAsync(x, pinned, kBytes, cudaMemcpyHostToDevice, stream));
  std::fill(pinned, pinned + kElems, 2.0f);
  EXPECT_EQ(Read(x), AllOf(2));
  EXPECT_OK(cudaMemcpyAsync(x, pageable.data(), kBytes, cudaMemcpyHostToDevice, stream));
  std::fill(pageable.begin(), pageable.end(), 2.0f);
  EXPECT_EQ(Read(x), AllOf(1));
}

TEST_F(FakeCudart, ACopyToPageableMemoryIsCompleteWhenItReturns) {
  const cudaStream_t stream = Stream();
  float* x = DeviceMemory();
  std::vector<float> host(kElems);
  EXPECT_OK(Fill(x, 4, stream));
  EXPECT_OK(cudaMemcpyAsync(host.data(), x, kBytes, cudaMemcpyDeviceToHost, stream));
  EXPECT_EQ(host, AllOf(4));
}

TEST_F(FakeCudart, CopiesOfTheWrongSizeOrKindAreRefused) {
  float *x = DeviceMemory(), *y = DeviceMemory();
  std::vector<float> h(2 * kElems);
  const auto copy = [](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  };
  EXPECT_OK(copy(x, h.data(), kBytes, cudaMemcpyHostToDevice));
  EXPECT_OK(copy(x, y, kBytes, cudaMemcpyDefault));
  EXPECT_EQ(copy(x, h.data(), kBytes + 1, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(x + 1, h.data(), kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(h.data(), x, kBytes + 1, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(h.data(), x, kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(x, h.data(), kBytes, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(x, h.data(), kBytes, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(x, y, kBytes, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(x, 0, kBytes + 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(h.data(), 0, kBytes, nullptr), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_F(FakeCudart, FreedMemoryIsRefused) {
  void* memory = nullptr;
  ASSERT_OK(cudaMalloc(&memory, kBytes));
  EXPECT_OK(cudaFree(memory));
  std::vector<float> host(kElems);
  EXPECT_EQ(cudaMemcpy(host.data(), memory, kBytes, cudaMemcpyDefault), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(memory), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_F(FakeCudart, TwoDimensionalCopiesMoveRowsAndNothingElse) {
  float* x = DeviceMemory();
  std::vector<float> host(kElems, -1), source(12);
  std::iota(source.begin(), source.end(), 0.0f);
  EXPECT_OK(cudaMemset(x, 0, kBytes));
  // Three rows of two of four elements, to rows of eight.
  EXPECT_OK(cudaMemcpy2DAsync(x, 32, source.data(), 16, 8, 3, cudaMemcpyHostToDevice, nullptr));
  EXPECT_OK(cudaMemcpy(host.data(), x, kBytes, cudaMemcpyDeviceToHost));
  std::vector<float> want(kElems);
  for (size_t row = 0; row < 3; ++row) {
    for (size_t column = 0; column < 2; ++column) want[8 * row + column] = source[4 * row + column];
  }
  EXPECT_EQ(host, want);
  EXPECT_EQ(cudaMemcpy2DAsync(x, 4, source.data(), 16, 8, 3, cudaMemcpyHostToDevice, nullptr),
            cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_F(FakeCudart, MemoryEndsWhereTheOptionsSay) {
  SetOptions({.memory_bytes = 1000});
  void *a = nullptr, *b = nullptr;
  size_t free_bytes = 0, total_bytes = 0;
  ASSERT_OK(cudaMalloc(&a, 600));
  EXPECT_EQ(cudaMalloc(&b, 401), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);  // not a sticky one
  EXPECT_OK(cudaMemGetInfo(&free_bytes, &total_bytes));
  EXPECT_EQ(free_bytes, 400u);
  EXPECT_EQ(total_bytes, 1000u);
  EXPECT_OK(cudaMalloc(&b, 400));
  EXPECT_OK(cudaFree(a));
  EXPECT_OK(cudaFree(b));
}

TEST_F(FakeCudart, DevicesHaveTheirOwnMemoryAndStreams) {
  SetOptions({.num_devices = 2, .memory_bytes = 1000});
  const cudaStream_t on_0 = Stream();
  void *a = nullptr, *b = nullptr;
  ASSERT_OK(cudaMalloc(&a, 900));
  ASSERT_OK(cudaSetDevice(1));
  EXPECT_OK(cudaMalloc(&b, 900));
  cudaPointerAttributes attributes;
  EXPECT_OK(cudaPointerGetAttributes(&attributes, b));
  EXPECT_EQ(attributes.device, 1);
  EXPECT_EQ(Fill(static_cast<float*>(b), 1, on_0), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  ASSERT_OK(cudaSetDevice(0));
  EXPECT_OK(cudaFree(a));
  EXPECT_OK(cudaFree(b));
  cudaGetLastError();
}

// ---- errors

TEST_F(FakeCudart, AFailedKernelIsAnErrorOfEveryLaterCall) {
  const cudaStream_t stream = Stream();
  float* x = DeviceMemory();
  EXPECT_OK(gpu::launch(DivergentKernel, {.block = 64, .stream = stream, .name = "DivergentKernel"}));
  EXPECT_OK(Fill(x, 1, stream));  // nothing has run yet
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
  EXPECT_NE(std::string(cudaGetErrorString(cudaErrorLaunchFailure)).find("DivergentKernel"),
            std::string::npos);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(Fill(x, 1, stream), cudaErrorLaunchFailure);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 1), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaMemcpy(x, x, kBytes, cudaMemcpyDeviceToDevice), cudaErrorLaunchFailure);
}

TEST_F(FakeCudart, LaunchesThatNoGpuTakesAreRefused) {
  float* x = DeviceMemory();
  const auto launch = [&](gpu::LaunchCfg config) { return gpu::launch(FillKernel, config, x, 1.0f); };
  EXPECT_EQ(launch({.block = 1025}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch({.block = dim3(1, 1, 65)}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch({.grid = 0, .block = 32}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch({.grid = dim3(1, 65536), .block = 32}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch({.block = 32, .smem = (227 << 10) + 1}), cudaErrorInvalidValue);
  EXPECT_EQ(launch({.grid = 3, .block = 32, .cluster = 2}), cudaErrorInvalidClusterSize);
  // Four multiprocessors hold two blocks of 1024 threads each.
  EXPECT_EQ(launch({.grid = 9, .block = 1024, .cooperative = true}), cudaErrorCooperativeLaunchTooLarge);
  int blocks = 0;
  EXPECT_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nullptr, 1024, 0));
  EXPECT_EQ(blocks, 2);
  EXPECT_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nullptr, 128, 100 << 10));
  EXPECT_EQ(blocks, 2);
  EXPECT_EQ(fake_cuda::CountCalls("cudaLaunchKernel"), 7);
  cudaGetLastError();
}

TEST_F(FakeCudart, AChosenCallOfAChosenFunctionFails) {
  SetOptions({.fail_function = "cudaMalloc", .fail_call = 1, .fail_error = cudaErrorMemoryAllocation});
  DeviceMemory();
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 8), cudaErrorMemoryAllocation);
  DeviceMemory();
  EXPECT_EQ(fake_cuda::CountCalls("cudaMalloc"), 3);
  cudaGetLastError();
}

TEST_F(FakeCudart, AMachineWithoutDriverOrGpuSaysSo) {
  int count = -1, version = -1;
  SetOptions({.has_driver = false});
  EXPECT_OK(cudaDriverGetVersion(&version));
  EXPECT_EQ(version, 0);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  SetOptions({.driver_version = 12040});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  SetOptions({.num_devices = 0});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 8), cudaErrorNoDevice);
  cudaGetLastError();
}
}  // namespace
}  // namespace carousel::testing
