#include "kernels/cuda/make_cuda_device.h"

namespace carousel::cuda {

std::unique_ptr<Device> MakeCudaDevice(int index, std::string* error) {
  const std::string name = "cuda:" + std::to_string(index);
#ifdef CAROUSEL_CUDA_REQUESTED
  *error = "device '" + name +
           "' is not available: the CUDA backend is not part of this version, although the build asked for "
           "it with "
           "CAROUSEL_CUDA=ON; use device 'cpu'";
#else
  *error = "device '" + name + "' is not available: built without CUDA; use device 'cpu'";
#endif
  return nullptr;
}
}  // namespace carousel::cuda
