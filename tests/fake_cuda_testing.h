// For tests of the fake CUDA runtime: two kernels, and a fixture that makes memory, streams and events and
// finds what was not destroyed.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/simt/fake_cudart.h"

namespace carousel::testing {
using fake_cuda::CountLiveObjects;
using fake_cuda::LiveObjects;
using fake_cuda::Options;
using fake_cuda::SetOptions;

constexpr int kNumSeeds = 20;
constexpr int64_t kElems = 256;
constexpr size_t kBytes = kElems * sizeof(float);

#define EXPECT_OK(call) EXPECT_EQ(call, cudaSuccess)
#define ASSERT_OK(call) ASSERT_EQ(call, cudaSuccess)

inline __global__ void FillKernel(float* x, float value) { x[blockIdx.x * blockDim.x + threadIdx.x] = value; }
inline __global__ void AddKernel(float* y, const float* x) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] += x[i];
}
inline cudaError_t Fill(float* x, float value, cudaStream_t stream) {
  return gpu::launch(FillKernel, {.grid = 2, .block = kElems / 2, .stream = stream, .name = "FillKernel"}, x,
                     value);
}
inline cudaError_t Add(float* y, const float* x, cudaStream_t stream) {
  return gpu::launch(AddKernel, {.grid = 2, .block = kElems / 2, .stream = stream, .name = "AddKernel"}, y,
                     x);
}

// Everything is made by the test and destroyed here; the test fails if something is left.
class FakeCudaTest : public ::testing::Test {
 protected:
  void SetUp() override { SetOptions({}); }
  void TearDown() override {
    SetOptions({});
    for (float* memory : device_memory_) EXPECT_OK(cudaFree(memory));
    for (float* memory : pinned_memory_) EXPECT_OK(cudaFreeHost(memory));
    for (cudaStream_t stream : streams_) EXPECT_OK(cudaStreamDestroy(stream));
    for (cudaEvent_t event : events_) EXPECT_OK(cudaEventDestroy(event));
    EXPECT_EQ(CountLiveObjects(), LiveObjects{});
  }

  float* DeviceMemory() {
    void* memory = nullptr;
    EXPECT_OK(cudaMalloc(&memory, kBytes));
    device_memory_.push_back(static_cast<float*>(memory));
    return device_memory_.back();
  }
  float* Pinned() {
    void* memory = nullptr;
    EXPECT_OK(cudaMallocHost(&memory, kBytes));
    pinned_memory_.push_back(static_cast<float*>(memory));
    return pinned_memory_.back();
  }
  cudaStream_t Stream(unsigned flags = cudaStreamNonBlocking) {
    cudaStream_t stream = nullptr;
    EXPECT_OK(cudaStreamCreateWithFlags(&stream, flags));
    streams_.push_back(stream);
    return stream;
  }
  cudaEvent_t Event(unsigned flags = cudaEventDisableTiming) {
    cudaEvent_t event = nullptr;
    EXPECT_OK(cudaEventCreateWithFlags(&event, flags));
    events_.push_back(event);
    return event;
  }
  // Waits for everything, then reads.
  std::vector<float> Read(const float* x) {
    std::vector<float> host(kElems);
    EXPECT_OK(cudaDeviceSynchronize());
    EXPECT_OK(cudaMemcpy(host.data(), x, kBytes, cudaMemcpyDeviceToHost));
    return host;
  }
  // Runs `body` once for each seed of the interleaving and returns in how many it is true.
  int CountSeeds(const std::function<bool()>& body, Options options = {}) {
    int count = 0;
    for (int seed = 1; seed <= kNumSeeds; ++seed) {
      options.seed = static_cast<uint64_t>(seed);
      SetOptions(options);
      count += body();
    }
    SetOptions({});
    return count;
  }

 private:
  std::vector<float*> device_memory_, pinned_memory_;
  std::vector<cudaStream_t> streams_;
  std::vector<cudaEvent_t> events_;
};

inline std::vector<float> AllOf(float value) { return std::vector<float>(kElems, value); }
}  // namespace carousel::testing
