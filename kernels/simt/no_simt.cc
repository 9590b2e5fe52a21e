// The entry point of the emulated GPU in a program without it.
#include "kernels/cuda/make_cuda_device.h"

namespace carousel::simt {

std::unique_ptr<Device> MakeCudaDevice(int, std::string* error, GpuKernels) {
#ifdef CAROUSEL_WITH_CUDA
  *error =
      "device 'simt' is not available: this program is built with CUDA, whose runtime the emulation would "
      "replace; "
      "use a program built with CAROUSEL_CUDA=OFF, or device 'cuda:N'";
#else
  *error = "device 'simt' is not available: built with CAROUSEL_SIMT=OFF; use device 'cpu'";
#endif
  return nullptr;
}
}  // namespace carousel::simt
