// For tests of the NCCL communicator: an emulated GPU for each rank, and a communicator for tensors on the
// host on top of one for tensors on a GPU.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "kernels/cuda/make_cuda_device.h"
#include "kernels/simt/fake_cudart.h"
#include "kernels/simt/fake_nccl.h"
#include "parallel/nccl_communicator.h"
#include "tests/on_device_communicator.h"
#include "tests/process_ranks.h"

namespace carousel::testing {

// The GPU number `rank` of the machine, in a process of its own.
inline std::unique_ptr<Device> MakeGpu(int rank, uint64_t seed = 1) {
  fake_cuda::SetOptions({.first_gpu = rank, .seed = seed});
  fake_nccl::SetOptions({.seed = seed + 100 * static_cast<uint64_t>(rank)});
  std::string error;
  std::unique_ptr<Device> device = simt::MakeCudaDevice(0, &error);
  CAROUSEL_CHECK_MSG(device != nullptr, error);
  return device;
}
inline std::unique_ptr<Communicator> MakeCommunicator(Communicator& host, Device& device,
                                                      const NcclOptions& options = {}) {
  auto communicator = MakeNcclCommunicator(host, device, options);
  CAROUSEL_CHECK_MSG(communicator.ok(), std::string(communicator.status().message()));
  return *std::move(communicator);
}
inline Tensor MakeTensor(Device& device, int64_t n, DType dtype = DType::kF32) {
  return Tensor(device.Allocate(n * SizeOf(dtype)), dtype, {n});
}
inline std::vector<float> Read(Device& device, Tensor x) {
  std::vector<float> values(static_cast<size_t>(x.num_elems()));
  device.CopyToHost(values.data(), x.data, x.num_bytes());
  return values;
}

inline void ExpectAllPass(const std::vector<RankResult>& results) {
  for (size_t r = 0; r < results.size(); ++r) {
    EXPECT_EQ(results[r].exit_code, 0)
        << "rank " << r << ", signal " << results[r].signal << ": " << results[r].errors;
  }
}
}  // namespace carousel::testing
