#include "kernels/make_device.h"

#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/make_cuda_device.h"

namespace carousel {
namespace {
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxIndexDigits = 4;

// "cuda" is "cuda:0"; -1 if name is not of this form.
int ParseCudaIndex(const std::string& name) {
  const std::string prefix = "cuda:";
  if (name == "cuda") return 0;
  if (name.rfind(prefix, 0) != 0) return -1;
  const std::string digits = name.substr(prefix.size());
  if (digits.empty() || digits.size() > kMaxIndexDigits) return -1;
  int index = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return -1;
    index = 10 * index + (c - '0');
  }
  return index;
}
}  // namespace

std::unique_ptr<Device> MakeDevice(const std::string& full_name, int threads, std::string* error) {
  const std::string suffix = ":portable";
  const bool portable = full_name.size() > suffix.size() &&
                        full_name.compare(full_name.size() - suffix.size(), suffix.size(), suffix) == 0;
  const std::string name = portable ? full_name.substr(0, full_name.size() - suffix.size()) : full_name;
  const GpuKernels kernels = portable ? GpuKernels::kPortable : GpuKernels::kBest;
  if (name == "cpu" && !portable) {
    if (threads < 1 || threads > kMaxThreads) {
      *error = "device 'cpu' cannot have " + std::to_string(threads) + " threads; use 1 to " +
               std::to_string(kMaxThreads);
      return nullptr;
    }
    return std::make_unique<cpu::CpuDevice>(cpu::CpuOptions{.num_threads = threads});
  }
  const int cuda_index = ParseCudaIndex(name);
  if (cuda_index >= 0) return cuda::MakeCudaDevice(cuda_index, error, kernels);
  if (name == "simt" || name == "simt:0") return simt::MakeCudaDevice(0, error, kernels);
  *error = "there is no device '" + full_name + "'; use 'cpu', 'cuda:N' with N = 0, 1, ..., or 'simt'";
  return nullptr;
}
}  // namespace carousel
