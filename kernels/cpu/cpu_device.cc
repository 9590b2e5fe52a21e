#include "kernels/cpu/cpu_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "core/arena.h"
#include "core/base/check.h"
#include "kernels/cpu/cpu_ops.h"

namespace carousel::cpu {
namespace {
// Fresh pages from the kernel are zero, aligned to far more than Arena::kAlignBytes, and cost memory only
// when they are touched.
constexpr int64_t kPageBytes = 4096;
static_assert(kPageBytes % Arena::kAlignBytes == 0);
}  // namespace

CpuDevice::CpuDevice(const CpuOptions& options) : ops_(std::make_unique<CpuOps>(options)) {}

CpuDevice::~CpuDevice() {
  for (const auto& [memory, bytes] : bytes_of_) munmap(memory, static_cast<size_t>(bytes));
}

void* CpuDevice::Allocate(int64_t bytes) {
  CAROUSEL_CHECK_GE(bytes, int64_t{0});
  if (bytes == 0) return nullptr;
  void* memory =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  // Fewer TLB misses for tensors of many pages; a refusal changes nothing.
  madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  const std::lock_guard<std::mutex> lock(mutex_);
  bytes_of_[memory] = bytes;
  allocated_bytes_ += bytes;
  peak_allocated_bytes_ = std::max(peak_allocated_bytes_, allocated_bytes_);
  return memory;
}

void CpuDevice::Free(void* memory) {
  if (memory == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = bytes_of_.find(memory);
  CAROUSEL_CHECK_MSG(it != bytes_of_.end(), "Free of memory that this device did not allocate");
  CAROUSEL_CHECK_EQ(munmap(memory, static_cast<size_t>(it->second)), 0);
  allocated_bytes_ -= it->second;
  bytes_of_.erase(it);
}

void CpuDevice::CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) {
  CAROUSEL_CHECK_GE(bytes, int64_t{0});
  if (bytes > 0) std::memmove(device_destination, host_source, static_cast<size_t>(bytes));
}
void CpuDevice::CopyToHost(void* host_destination, const void* device_source, int64_t bytes) {
  CopyToDevice(host_destination, device_source, bytes);
}

int64_t CpuDevice::allocated_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return allocated_bytes_;
}
int64_t CpuDevice::peak_allocated_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return peak_allocated_bytes_;
}
}  // namespace carousel::cpu
