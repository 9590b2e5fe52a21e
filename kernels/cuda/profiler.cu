#include "kernels/cuda/profiler.h"

#include <cuda_profiler_api.h>
#include <cuda_runtime.h>

#include <charconv>

namespace carousel::cuda {

void StartProfiler() { static_cast<void>(cudaProfilerStart()); }
void StopProfiler() { static_cast<void>(cudaProfilerStop()); }

std::string ModelName(const std::string& device_name) {
  constexpr char kPrefix[] = "cuda:";
  if (device_name.rfind(kPrefix, 0) != 0) return {};
  int index = 0;
  const char* const end = device_name.data() + device_name.size();
  const auto parsed = std::from_chars(device_name.data() + sizeof kPrefix - 1, end, index);
  cudaDeviceProp properties{};
  if (parsed.ec != std::errc() || parsed.ptr != end) return {};
  return cudaGetDeviceProperties(&properties, index) == cudaSuccess ? properties.name : "";
}
}  // namespace carousel::cuda
