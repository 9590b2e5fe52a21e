// What can go wrong with a GPU, each on a machine that is made to have that fault: the error's text and its
// fix, and that failures in mid-run end the process with the op, the rank and the step.
#include "kernels/cuda/make_cuda_device.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "core/tensor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/simt/fake_cudart.h"

namespace carousel {
namespace {
using fake_cuda::Options;
using fake_cuda::SetOptions;

class MakeCudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override { SetOptions({}); }
  void TearDown() override {
    SetOptions({});
    EXPECT_EQ(fake_cuda::CountLiveObjects(), fake_cuda::LiveObjects{});
  }
  // The error on a machine like that, which must contain every one of `parts`.
  static void ExpectError(const Options& machine, int index, const std::vector<std::string>& parts) {
    SetOptions(machine);
    std::string error;
    EXPECT_EQ(simt::MakeCudaDevice(index, &error), nullptr);
    EXPECT_EQ(error.find("device 'simt:" + std::to_string(index) + "'"), 0u) << error;
    for (const std::string& part : parts)
      EXPECT_NE(error.find(part), std::string::npos) << part << "\nin\n" << error;
  }
  static std::unique_ptr<Device> Make(const Options& machine = {}) {
    SetOptions(machine);
    std::string error;
    std::unique_ptr<Device> device = simt::MakeCudaDevice(0, &error);
    EXPECT_NE(device, nullptr) << error;
    return device;
  }
};

TEST_F(MakeCudaDeviceTest, NoDriver) {
  ExpectError({.has_driver = false}, 0,
              {"there is no NVIDIA driver", "install one that supports CUDA", "'cpu'"});
}
TEST_F(MakeCudaDeviceTest, ADriverOlderThanTheToolkit) {
  ExpectError(
      {.driver_version = 12040}, 0,
      {"the NVIDIA driver supports CUDA 12.4", "built with CUDA " + std::to_string(CUDART_VERSION / 1000),
       "install a newer driver", "a toolkit of CUDA 12"});
}
TEST_F(MakeCudaDeviceTest, NoGpu) {
  ExpectError({.num_devices = 0}, 0, {"there is no GPU", "nvidia-smi", "CUDA_VISIBLE_DEVICES", "'cpu'"});
}
TEST_F(MakeCudaDeviceTest, AnIndexOutOfRange) {
  ExpectError({}, 1, {"this machine has one GPU; use index 0"});
  ExpectError({.num_devices = 4}, 4,
              {"this machine has 4 GPUs; use an index from 0 to 3", "CUDA_VISIBLE_DEVICES"});
  ExpectError({.num_devices = 4}, -1, {"use an index from 0 to 3"});
}
TEST_F(MakeCudaDeviceTest, AGpuThatIsTooOld) {
  ExpectError({.compute_capability = 75}, 0,
              {"emulated sm_75 has compute capability 7.5", "at least 8.0 is needed"});
}
TEST_F(MakeCudaDeviceTest, AGpuThatTheProgramWasNotBuiltFor) {
  ExpectError({.compute_capability = 120, .has_kernel_images = false}, 0,
              {"no kernels for emulated sm_120", "compute capability 12.0", "CMAKE_CUDA_ARCHITECTURES"});
}
TEST_F(MakeCudaDeviceTest, AGpuThatAnotherProcessFills) {
  ExpectError({.memory_bytes = 1 << 20}, 0, {"has only 1 MiB of its 1 MiB free", "nvidia-smi"});
}
TEST_F(MakeCudaDeviceTest, AGpuThatAnotherProcessHolds) {
  ExpectError({.fail_function = "cudaSetDevice", .fail_error = cudaErrorDevicesUnavailable}, 0,
              {"cannot be used: cudaErrorDevicesUnavailable", "another process holds it"});
}
TEST_F(MakeCudaDeviceTest, EveryFailedCallOfOpeningIsAnErrorOrASuccess) {
  for (const char* function : {"cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaSetDevice",
                               "cudaFuncGetAttributes", "cudaMemGetInfo", "cudaStreamCreateWithFlags"}) {
    ExpectError({.fail_function = function, .fail_error = cudaErrorUnknown}, 0, {"; "});
  }
}

TEST_F(MakeCudaDeviceTest, TheOldestGpusThatServeAndNewerDriversAreTaken) {
  EXPECT_EQ(Make({.compute_capability = 80, .max_shared_bytes = 163 << 10})->name(), "simt:0");
  EXPECT_EQ(Make({.driver_version = CUDART_VERSION + 1000})->name(), "simt:0");
  EXPECT_EQ(Make({.driver_version = CUDART_VERSION / 1000 * 1000})->name(),
            "simt:0");  // an older minor version
}

TEST_F(MakeCudaDeviceTest, EachIndexIsADeviceOfItsOwn) {
  SetOptions({.num_devices = 2});
  std::string error;
  const auto first = simt::MakeCudaDevice(0, &error), second = simt::MakeCudaDevice(1, &error);
  ASSERT_NE(second, nullptr) << error;
  EXPECT_EQ(second->name(), "simt:1");
  std::vector<std::unique_ptr<Device>*> devices;
  float seen[2] = {0, 0};
  int i = 0;
  for (Device* device : {first.get(), second.get()}) {  // each call makes its device the current one
    const Tensor x(device->Allocate(4), DType::kF32, {1});
    device->ops().Fill({.y = x, .value = 10.0 + i});
    device->CopyToHost(&seen[i++], x.data, 4);
  }
  EXPECT_EQ(seen[0], 10);
  EXPECT_EQ(seen[1], 11);
}

TEST_F(MakeCudaDeviceTest, WhatIsNotFreedGoesWithTheDevice) {
  const auto device = Make();
  EXPECT_NE(device->Allocate(1000), nullptr);
  device->ops().Fill({.y = Tensor(device->Allocate(4000), DType::kF32, {1000}), .value = 1});
  const auto recording = device->MakeRecording();
  EXPECT_GE(fake_cuda::CountLiveObjects().device_bytes, 5000);
}  // TearDown finds nothing

TEST_F(MakeCudaDeviceTest, MemoryEndsWithTheReason) {
  const auto device = Make({.memory_bytes = int64_t{200} << 20});
  const int64_t free_bytes = device->memory().free_bytes;
  EXPECT_EQ(device->Allocate(free_bytes + 1), nullptr);
  EXPECT_NE(device->allocation_error().find("(emulated sm_90): out of memory"), std::string::npos)
      << device->allocation_error();
  EXPECT_NE(device->Allocate(free_bytes), nullptr);
}

// The copy ring waits for an event before it uses a slot again. Without one of these waits a copy of more
// pieces than there are slots brings wrong data.
TEST_F(MakeCudaDeviceTest, AMissingWaitOfTheCopyRingIsSeen) {
  constexpr int64_t kPieces = 3 * simt::PinnedRing::kNumSlots,
                    kBytes = kPieces * simt::PinnedRing::kSlotBytes;
  std::vector<char> source(kBytes);
  for (int64_t i = 0; i < kBytes; ++i) source[static_cast<size_t>(i)] = static_cast<char>(i / 4099);
  const auto arrives = [&](const Options& options, bool to_device) {
    const auto device = Make(options);
    void* memory = device->Allocate(kBytes);
    std::vector<char> back(kBytes);
    if (!to_device) {
      device->CopyToDevice(memory, source.data(), kBytes);
      device->Synchronize();
    }
    SetOptions(options);  // counts waits from here
    if (to_device) {
      device->CopyToDevice(memory, source.data(), kBytes);
      device->Synchronize();
      SetOptions({});
    }
    device->CopyToHost(back.data(), memory, kBytes);
    return back == source;
  };
  for (const bool to_device : {true, false}) {
    EXPECT_TRUE(arrives({}, to_device));
    int wrong = 0;
    for (int64_t wait = 0; wait < 2 * kPieces; ++wait)
      wrong += !arrives({.drop_event_wait = wait}, to_device);
    EXPECT_GT(wrong, 0) << to_device;
  }
}

// ---- failures in mid-run

__global__ void FailingKernel() {
  if (threadIdx.x == 0) __syncthreads();  // wrong: the other threads never come here
}

TEST_F(MakeCudaDeviceTest, AFailedKernelEndsTheProcessWithItsNameTheRankAndTheStep) {
  const auto device = Make();
  const auto run = [&] {
    SetProcessRank(3);
    SetProcessStep(17);
    auto& context = static_cast<simt::CudaDevice*>(device.get())->context();
    context.Launch(FailingKernel, {.block = 32, .name = "FailingKernel"});
    const Tensor x(device->Allocate(4), DType::kF32, {1});
    device->ops().Fill({.y = x, .value = 1});
    device->Synchronize();
  };
  EXPECT_DEATH(
      run(),
      "\\[rank 3\\] \\[step 17\\] .*Synchronize .*newest first: .*FailingKernel.*cudaErrorLaunchFailure");
}

TEST_F(MakeCudaDeviceTest, ALaunchThatIsRefusedNamesTheKernel) {
  const auto device = Make();
  auto& context = static_cast<simt::CudaDevice*>(device.get())->context();
  EXPECT_DEATH(context.Launch(FailingKernel, {.block = 2000, .name = "FailingKernel"}),
               "launch of FailingKernel .*cudaErrorInvalidConfiguration");
}

TEST_F(MakeCudaDeviceTest, ScratchMemoryThatDoesNotFitSaysWhatToReduce) {
  const auto device = Make({.memory_bytes = int64_t{200} << 20});
  auto& context = static_cast<simt::CudaDevice*>(device.get())->context();
  EXPECT_DEATH(context.Scratch(int64_t{300} << 20),
               "scratch memory of .* smaller micro-batch .*cudaErrorMemoryAllocation");
}

// ---- scratch memory and recordings

__global__ void WriteKernel(float* scratch, float value, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) scratch[i] = value;
}
__global__ void SumKernel(float* y, const float* scratch, int n) {
  if (threadIdx.x > 0) return;
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += scratch[i];
  *y += sum;
}

// y += n, through scratch memory.
void AddThroughScratch(simt::Context& context, float* y, int n) {
  float* scratch = static_cast<float*>(context.Scratch(n * static_cast<int64_t>(sizeof(float))));
  context.Launch(WriteKernel, {.block = 64, .name = "WriteKernel"}, scratch, 1.0f, n);
  context.Launch(SumKernel, {.block = 32, .name = "SumKernel"}, y, scratch, n);
}

TEST_F(MakeCudaDeviceTest, ARecordingSurvivesScratchMemoryThatMoves) {
  const auto device = Make();
  auto& context = static_cast<simt::CudaDevice*>(device.get())->context();
  float* y = static_cast<float*>(device->Allocate(4));
  const auto recording = device->MakeRecording();
  int calls = 0;
  const auto run = [&] {
    ++calls;
    AddThroughScratch(context, y, 100);
  };
  for (int i = 0; i < 3; ++i) recording->Run(run);
  EXPECT_EQ(calls, 2);
  AddThroughScratch(context, y, 100000);  // the scratch memory grows and moves
  for (int i = 0; i < 3; ++i) recording->Run(run);
  EXPECT_EQ(calls, 3);  // recorded once more
  float sum = 0;
  device->CopyToHost(&sum, y, 4);
  EXPECT_EQ(sum, 100600);
}

TEST_F(MakeCudaDeviceTest, ScratchMemoryDoesNotGrowWhileRecording) {
  const auto device = Make();
  auto& context = static_cast<simt::CudaDevice*>(device.get())->context();
  float* y = static_cast<float*>(device->Allocate(4));
  const auto recording = device->MakeRecording();
  recording->Run([&] { AddThroughScratch(context, y, 100); });
  EXPECT_DEATH(recording->Run([&] { AddThroughScratch(context, y, 1000); }),
               "grows .* while a graph is captured");
}

TEST_F(MakeCudaDeviceTest, ScratchMemoryHoldsNothingOfEarlierOps) {
  const auto device = Make();
  auto& context = static_cast<simt::CudaDevice*>(device.get())->context();
  float* y = static_cast<float*>(device->Allocate(4));
  AddThroughScratch(context, y, 100);
  const float* scratch = static_cast<float*>(context.Scratch(100 * sizeof(float)));
  context.Launch(SumKernel, {.block = 32, .name = "SumKernel"}, y, scratch, 100);
  float sum = 0;
  device->CopyToHost(&sum, y, 4);
  EXPECT_TRUE(sum != sum);
}
}  // namespace
}  // namespace carousel
