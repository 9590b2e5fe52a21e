// The device that a device test runs on: the test is compiled once per backend, with CAROUSEL_TEST_DEVICE set
// to the name of a namespace, simt (the emulation on the host) or cuda.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "core/device.h"
#include "kernels/cuda/make_cuda_device.h"

namespace carousel::testing {

// Never null: a device that cannot be had ends the test program.
inline std::unique_ptr<Device> MakeTestDevice(GpuKernels kernels = GpuKernels::kBest) {
  std::string error;
  std::unique_ptr<Device> device = CAROUSEL_TEST_DEVICE::MakeCudaDevice(0, &error, kernels);
  CAROUSEL_CHECK_MSG(device != nullptr, error);
  return device;
}
}  // namespace carousel::testing
