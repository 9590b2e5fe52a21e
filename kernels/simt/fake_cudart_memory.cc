// The fake CUDA runtime: memory of the device, pinned memory and copies.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_cudart_state.h"

namespace carousel::fake_cuda {
namespace {
constexpr size_t kPageBytes = 4096;

// The block of `blocks` that holds p; null if none does.
template <class Value>
const std::pair<const char* const, Value>* FindBlock(const std::map<const char*, Value>& blocks,
                                                     const void* p) {
  auto it = blocks.upper_bound(static_cast<const char*>(p));
  return it == blocks.begin() ? nullptr : &*--it;
}
bool OwnsLocked(const void* p, int64_t bytes) {
  const auto* block = FindBlock(GetState().device_memory, p);
  return block != nullptr && static_cast<const char*>(p) - block->first + bytes <= block->second.bytes;
}
bool IsPinned(const void* p, int64_t bytes) {
  const auto* block = FindBlock(GetState().pinned_memory, p);
  return block != nullptr && static_cast<const char*>(p) - block->first + bytes <= block->second;
}

// Whether an allocation has been there at any time: the emulator never uses an address twice.
bool WasDeviceMemory(const void* p) {
  return p >= GetState().lowest_device_memory && p < GetState().highest_device_memory;
}

int64_t BytesInUse(int device) {
  int64_t bytes = 0;
  for (const auto& [begin, allocation] : GetState().device_memory) {
    if (allocation.device == device) bytes += allocation.bytes;
  }
  return bytes;
}

cudaError_t Allocate(void** memory, size_t bytes) {
  State& s = GetState();
  *memory = nullptr;
  if (const cudaError_t refused = RefuseIfCapturing()) return refused;
  if (bytes == 0) return cudaSuccess;
  const int64_t free_bytes = s.options.memory_bytes - BytesInUse(CurrentDevice());
  if (bytes > static_cast<size_t>(free_bytes > 0 ? free_bytes : 0)) return cudaErrorMemoryAllocation;
  try {
    *memory = emulator::device_alloc(bytes);
  } catch (const emulator::KernelError&) {  // no addresses are left
    return cudaErrorMemoryAllocation;
  }
  const char* begin = static_cast<const char*>(*memory);
  s.device_memory[begin] = {static_cast<int64_t>(bytes), CurrentDevice()};
  if (s.lowest_device_memory == nullptr || begin < s.lowest_device_memory) s.lowest_device_memory = begin;
  if (begin + bytes > s.highest_device_memory) s.highest_device_memory = begin + bytes;
  return cudaSuccess;
}

cudaError_t AllocatePinned(void** memory, size_t bytes) {
  State& s = GetState();
  *memory = nullptr;
  if (const cudaError_t refused = RefuseIfCapturing()) return refused;
  if (bytes == 0) return cudaSuccess;
  *memory = std::aligned_alloc(kPageBytes, (bytes + kPageBytes - 1) / kPageBytes * kPageBytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  s.pinned_memory[static_cast<const char*>(*memory)] = static_cast<int64_t>(bytes);
  return cudaSuccess;
}

// `rows` rows of `row_bytes`, `to_pitch` and `from_pitch` bytes apart.
struct Copy {
  char* to = nullptr;
  const char* from = nullptr;
  int64_t to_pitch = 0, from_pitch = 0, row_bytes = 0, rows = 1;
  bool to_device = false;

  int64_t to_span() const { return to_pitch * (rows - 1) + row_bytes; }
  int64_t from_span() const { return from_pitch * (rows - 1) + row_bytes; }
  void Run() const {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(to + row * to_pitch, from + row * from_pitch, static_cast<size_t>(row_bytes));
      if (to_device) emulator::mark_initialized(to + row * to_pitch, static_cast<size_t>(row_bytes));
    }
  }
};

// Whether both ends of the copy are alive, large enough and what `kind` says. Sets copy->to_device.
bool IsValid(Copy* copy, bool from_device, cudaMemcpyKind kind) {
  copy->to_device = OwnsLocked(copy->to, 1);
  if (copy->to_device && !OwnsLocked(copy->to, copy->to_span())) return false;
  if (from_device && !OwnsLocked(copy->from, copy->from_span())) return false;
  // Freed memory, or a place between allocations, is neither.
  if (!copy->to_device && WasDeviceMemory(copy->to)) return false;
  if (!from_device && WasDeviceMemory(copy->from)) return false;
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !copy->to_device && !from_device;
    case cudaMemcpyHostToDevice:
      return copy->to_device && !from_device;
    case cudaMemcpyDeviceToHost:
      return !copy->to_device && from_device;
    case cudaMemcpyDeviceToDevice:
      return copy->to_device && from_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

cudaError_t EnqueueCopy(Lock& lock, Copy copy, cudaMemcpyKind kind, cudaStream_t handle) {
  CUstream_st* stream = FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (copy.rows <= 0 || copy.row_bytes == 0) return cudaSuccess;
  if (copy.rows > 1 && (copy.to_pitch < copy.row_bytes || copy.from_pitch < copy.row_bytes)) {
    return cudaErrorInvalidValue;
  }
  const bool from_device = OwnsLocked(copy.from, 1);
  if (!IsValid(&copy, from_device, kind)) return cudaErrorInvalidValue;
  const bool captured = stream->capture != nullptr;
  if (!from_device && !captured && !IsPinned(copy.from, copy.from_span())) {
    // Pageable memory is read before the call returns.
    std::vector<char> staged(copy.from, copy.from + copy.from_span());
    return EnqueueLocked(stream, [copy, staged = std::move(staged)]() mutable {
      copy.from = staged.data();
      copy.Run();
      return Progress::kDone;
    });
  }
  const cudaError_t error = EnqueueLocked(stream, [copy] {
    copy.Run();
    return Progress::kDone;
  });
  if (error != cudaSuccess || captured) return error;
  // And written before it returns.
  if (!copy.to_device && !IsPinned(copy.to, copy.to_span())) return Drain(lock, stream);
  return cudaSuccess;
}

cudaError_t EnqueueFill(void* memory, int value, int64_t bytes, cudaStream_t handle) {
  CUstream_st* stream = FindStream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  if (!OwnsLocked(memory, bytes)) return cudaErrorInvalidValue;
  return EnqueueLocked(stream, [memory, value, bytes] {
    std::memset(memory, value, static_cast<size_t>(bytes));
    emulator::mark_initialized(memory, static_cast<size_t>(bytes));
    return Progress::kDone;
  });
}

cudaError_t SynchronousCopy(Lock& lock, const Copy& copy, cudaMemcpyKind kind) {
  if (const cudaError_t refused = RefuseIfCapturing()) return refused;
  if (const cudaError_t error = EnqueueCopy(lock, copy, kind, nullptr)) return error;
  return Drain(lock, FindStream(nullptr));
}
}  // namespace

bool IsDeviceMemory(const void* p, int64_t bytes) {
  Lock lock(GetState().mutex, std::defer_lock);
  if (!InOperation()) lock.lock();
  return OwnsLocked(p, bytes);
}
}  // namespace carousel::fake_cuda

namespace fake = carousel::fake_cuda;
using fake::Needs;
using fake::Return;

extern "C" {

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::Allocate(memory, bytes));
}
cudaError_t cudaFree(void* memory) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  if (memory == nullptr) return Return(fake::Enter("cudaFree(nullptr)", Needs::kDevice));
  const auto it = fake::GetState().device_memory.find(static_cast<const char*>(memory));
  if (it == fake::GetState().device_memory.end()) return Return(cudaErrorInvalidValue);
  if (const cudaError_t refused = fake::RefuseIfCapturing()) return Return(refused);
  const cudaError_t error = fake::DrainDevice(lock, it->second.device);  // as the real one does
  fake::GetState().device_memory.erase(static_cast<const char*>(memory));
  carousel::emulator::device_free(memory);
  return Return(error);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  const int64_t total = fake::GetOptions().memory_bytes;
  *total_bytes = static_cast<size_t>(total);
  *free_bytes = static_cast<size_t>(total - fake::BytesInUse(fake::CurrentDevice()));
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::AllocatePinned(memory, bytes));
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::AllocatePinned(memory, bytes));
}
cudaError_t cudaFreeHost(void* memory) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  if (memory == nullptr) return cudaSuccess;
  if (fake::GetState().pinned_memory.count(static_cast<const char*>(memory)) == 0)
    return Return(cudaErrorInvalidValue);
  const cudaError_t error = fake::DrainDevice(lock, fake::CurrentDevice());
  fake::GetState().pinned_memory.erase(static_cast<const char*>(memory));
  std::free(memory);
  return Return(error);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  void* address = const_cast<void*>(p);
  if (fake::OwnsLocked(p, 1)) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = fake::FindBlock(fake::GetState().device_memory, p)->second.device;
    attributes->devicePointer = address;
  } else if (fake::IsPinned(p, 1)) {
    attributes->type = cudaMemoryTypeHost;
    attributes->device = fake::CurrentDevice();
    attributes->devicePointer = attributes->hostPointer = address;
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::EnqueueCopy(lock,
                                  {.to = static_cast<char*>(to),
                                   .from = static_cast<const char*>(from),
                                   .row_bytes = static_cast<int64_t>(bytes)},
                                  kind, stream));
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::SynchronousCopy(lock,
                                      {.to = static_cast<char*>(to),
                                       .from = static_cast<const char*>(from),
                                       .row_bytes = static_cast<int64_t>(bytes)},
                                      kind));
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t row_bytes, size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::EnqueueCopy(lock,
                                  {.to = static_cast<char*>(to),
                                   .from = static_cast<const char*>(from),
                                   .to_pitch = static_cast<int64_t>(to_pitch),
                                   .from_pitch = static_cast<int64_t>(from_pitch),
                                   .row_bytes = static_cast<int64_t>(row_bytes),
                                   .rows = static_cast<int64_t>(rows)},
                                  kind, stream));
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::EnqueueFill(memory, value, static_cast<int64_t>(bytes), stream));
}
// Returns before the memory is set, as the real one does for device memory.
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (const cudaError_t refused = fake::RefuseIfCapturing()) return Return(refused);
  return Return(fake::EnqueueFill(memory, value, static_cast<int64_t>(bytes), nullptr));
}
}  // extern "C"
