// make_cuda_device.cu - finds a GPU, or says why there is none and what to do.
#include "kernels/cuda/make_cuda_device.h"

#include "kernels/cuda/cuda_device.h"

#define CAROUSEL_TEXT_(x) #x
#define CAROUSEL_TEXT(x) CAROUSEL_TEXT_(x)

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {
constexpr int kMinComputeCapability = 80;  // Ampere: bf16 tensor cores, asynchronous copies

// Any kernel of this program, to see whether it has code for a GPU.
__global__ void ProbeKernel() {}

// 13000 is "13.0".
std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Empty, or what is wrong with the driver or the machine; otherwise *num_devices >= 1.
std::string LookForDevices(int* num_devices) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    return "there is no NVIDIA driver on this machine; install one that supports CUDA " +
           std::to_string(runtime / 1000) + " (the command nvidia-smi must work), or use device 'cpu'";
  }
  *num_devices = 0;
  const cudaError_t status = cudaGetDeviceCount(num_devices);
  // Drivers serve every runtime of their own major version and older ones.
  if (driver / 1000 < runtime / 1000 || status == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver supports CUDA " + VersionText(driver) +
           ", but this program was built with CUDA " + VersionText(runtime) +
           "; install a newer driver, or build with a toolkit of CUDA " + std::to_string(driver / 1000);
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && *num_devices == 0)) {
    return "there is no GPU; if the machine has one, see whether nvidia-smi lists it and whether "
           "CUDA_VISIBLE_DEVICES hides it, or use device 'cpu'";
  }
  if (status != cudaSuccess) {
    return std::string("the CUDA runtime does not start: ") + cudaGetErrorString(status) +
           "; see whether nvidia-smi works";
  }
  return "";
}

std::string ReadInfo(int index, DeviceInfo* info) {
  cudaDeviceProp properties;
  if (const cudaError_t status = cudaGetDeviceProperties(&properties, index)) {
    return std::string("cudaGetDeviceProperties: ") + cudaGetErrorString(status) +
           "; see whether nvidia-smi lists the GPU without errors";
  }
  info->name = properties.name;
  info->compute_capability = 10 * properties.major + properties.minor;
  info->num_sms = properties.multiProcessorCount;
  info->max_shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  info->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return "";
}

// Empty, or why kernels of this program cannot run on the GPU, which is the current device.
std::string CheckCapability(const DeviceInfo& info) {
  const std::string capability =
      std::to_string(info.compute_capability / 10) + "." + std::to_string(info.compute_capability % 10);
  if (info.compute_capability < kMinComputeCapability) {
    return info.name + " has compute capability " + capability +
           ", and at least 8.0 is needed (A100, RTX 30 or newer)" +
           "; choose another GPU or use device 'cpu'";
  }
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&ProbeKernel));
  if (status == cudaSuccess) return "";
  cudaGetLastError();
  return "this program holds no kernels for " + info.name + " (compute capability " + capability +
         "): " + cudaGetErrorString(status) +
         "; build it again with that architecture in CMAKE_CUDA_ARCHITECTURES";
}
}  // namespace

std::unique_ptr<Device> MakeCudaDevice(int index, std::string* error, GpuKernels kernels) {
  const std::string unavailable =
      "device '" CAROUSEL_TEXT(CAROUSEL_DEVICE_NS) ":" + std::to_string(index) + "' is not available: ";
  int num_devices = 0;
  std::string problem = LookForDevices(&num_devices);
  if (problem.empty() && (index < 0 || index >= num_devices)) {
    problem = num_devices == 1 ? "this machine has one GPU; use index 0"
                               : "this machine has " + std::to_string(num_devices) +
                                     " GPUs; use an index from 0 to " + std::to_string(num_devices - 1);
    problem += " (CUDA_VISIBLE_DEVICES may hide others)";
  }
  DeviceInfo info;
  info.portable_kernels = kernels == GpuKernels::kPortable;
  if (problem.empty()) problem = ReadInfo(index, &info);
  if (problem.empty()) {
    if (const cudaError_t status = cudaSetDevice(index)) {
      problem = info.name + " cannot be used: " + cudaGetErrorString(status) +
                "; see with nvidia-smi whether another process holds it, and choose another GPU or end that "
                "process";
    }
  }
  if (problem.empty()) problem = CheckCapability(info);
  if (!problem.empty()) {
    *error = unavailable + problem;
    return nullptr;
  }
  return CudaDevice::Open(index, info, error);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
