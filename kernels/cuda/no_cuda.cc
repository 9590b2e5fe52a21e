// The entry point of the CUDA backend in a program without it.
#include "kernels/cuda/make_cuda_device.h"

namespace carousel::cuda {

std::unique_ptr<Device> MakeCudaDevice(int index, std::string* error, GpuKernels) {
  *error = "device 'cuda:" + std::to_string(index) +
           "' is not available: built without CUDA; use device 'cpu' or 'simt' (an emulation, for tests), or "
           "build with CAROUSEL_CUDA=ON (needs "
           "the CUDA "
           "toolkit)";
  return nullptr;
}
}  // namespace carousel::cuda
