// The CUDA backend's one entry point. A build without the backend links no_cuda.cc instead.
#pragma once
#include <memory>
#include <string>

#include "core/device.h"

namespace carousel::cuda {

// GPU `index` of this machine. Null and *error if it cannot be had.
std::unique_ptr<Device> MakeCudaDevice(int index, std::string* error);
}  // namespace carousel::cuda
