// Shared memory of blocks, and "global memory": one reserved address range, allocations separated by red
// zones.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "kernels/simt/checker.h"
#include "kernels/simt/emulator_internal.h"
#include "kernels/simt/fiber.h"

namespace carousel::emulator {
namespace {
std::mutex memory_mutex;
size_t device_top = 0;
std::map<void*, size_t> live_allocations;
std::map<size_t, std::vector<void*>> free_params;
}  // namespace

char* device_base = nullptr;

void* StaticShared(const void* key, size_t bytes, const char* name) {
  const check::InEmulation inside;
  Block& b = *Current()->block;
  for (const SharedVariable& v : b.variables) {
    if (v.key == key) return b.shared + v.offset;
  }
  const size_t offset = ((b.used + 127) & ~size_t{127}) + 128;  // at least 128 unused bytes on both sides
  if (offset + bytes > kSharedMax) Fail("shared array %s of %zu bytes does not fit", name, bytes);
  b.variables.push_back({key, offset, bytes, name});
  b.used = offset + bytes;
  UnpoisonMemory(b.shared + offset, bytes);
  std::memset(b.shared + offset, 0xff, bytes);
  check::SetState(b.shared + offset, bytes, check::State::kAllocated);
  return b.shared + offset;
}
void* DynamicShared() {
  const check::InEmulation inside;
  return Current()->block->shared;
}
uint32_t SharedAddress(const void* p) {
  const check::InEmulation inside;
  return static_cast<uint32_t>(static_cast<const char*>(p) - Current()->block->shared);
}
char* CheckShared(const void* p, size_t bytes, size_t alignment, const char* what, const Loc& loc) {
  Block& b = *Current()->block;
  const size_t offset = static_cast<size_t>(static_cast<const char*>(p) - b.shared);
  if (offset >= b.used || offset + bytes > b.used) {
    Fail("%s at %s: %zu bytes at shared offset %td are outside the block's %zu bytes", what,
         LocName(loc).c_str(), bytes, static_cast<ptrdiff_t>(offset), b.used);
  }
  if (offset % alignment) {
    Fail("%s at %s: shared offset %zu is not a multiple of %zu bytes", what, LocName(loc).c_str(), offset,
         alignment);
  }
  return b.shared + offset;
}

void* device_alloc(size_t bytes, bool poison) {
  std::lock_guard lock(memory_mutex);
  if (!device_base) {
    void* p = mmap(nullptr, kDeviceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) throw KernelError("the emulation cannot reserve its device memory");
    device_base = static_cast<char*>(p);
  }
  // Addresses are never used again, so a use after free is seen.
  const size_t room = ((bytes + 255) & ~size_t{255}) + 4096;
  if (bytes > kDeviceBytes || device_top + room > kDeviceBytes)
    throw KernelError("emulated device memory is used up");
  char* p = device_base + device_top;
  device_top += room;
  PoisonMemory(p + bytes, room - bytes);
  // Larger ones stay unmapped until they are touched.
  if (poison && bytes <= size_t{1} << 30) std::memset(p, 0xff, bytes);
  check::SetState(p, bytes, check::State::kAllocated);
  live_allocations[p] = bytes;
  return p;
}
void device_free(void* p) {
  std::lock_guard lock(memory_mutex);
  const auto it = live_allocations.find(p);
  if (it == live_allocations.end()) throw KernelError("device_free of an address that is not allocated");
  const size_t bytes = it->second;
  check::SetState(p, bytes, check::State::kFree);
  PoisonMemory(p, bytes);
  // Gives whole pages back; what stays reads as zeros or as old values, and the checker reports the read.
  char* const begin = static_cast<char*>(p);
  const uintptr_t low = (reinterpret_cast<uintptr_t>(begin) + 4095) & ~uintptr_t{4095};
  const uintptr_t high = reinterpret_cast<uintptr_t>(begin + bytes) & ~uintptr_t{4095};
  if (high > low) madvise(reinterpret_cast<void*>(low), high - low, MADV_DONTNEED);
  live_allocations.erase(it);
}
bool device_owns(const void* p, size_t bytes) {
  std::lock_guard lock(memory_mutex);
  auto it = live_allocations.upper_bound(const_cast<void*>(p));
  if (it == live_allocations.begin()) return false;
  --it;
  return static_cast<const char*>(p) + bytes <= static_cast<const char*>(it->first) + it->second;
}
void mark_initialized(const void* p, size_t bytes) { check::SetState(p, bytes, check::State::kInitialized); }
bool is_initialized(const void* p, size_t bytes) { return check::IsInitialized(p, bytes); }

void* param_alloc(size_t bytes) {
  void* p = nullptr;
  {
    std::lock_guard lock(memory_mutex);
    auto& free_list = free_params[bytes];
    if (!free_list.empty()) {
      p = free_list.back();
      free_list.pop_back();
    }
  }
  if (!p) p = device_alloc(bytes, false);
  mark_initialized(p, bytes);
  return p;
}
void param_free(void* p, size_t bytes) {
  std::lock_guard lock(memory_mutex);
  free_params[bytes].push_back(p);
}
}  // namespace carousel::emulator
