#include "core/device_memory.h"

namespace carousel {

DeviceMemory::DeviceMemory(Device& device, const std::function<void(Arena&)>& bind) : device_(device) {
  bind(arena_);
  needed_bytes_ = arena_.total_bytes();
  if (needed_bytes_ > 0) {
    memory_ = device_.Allocate(needed_bytes_);
    if (memory_ == nullptr) return;
    Arena real(memory_, arena_);
    bind(real);
    CAROUSEL_CHECK_EQ(real.total_bytes(), needed_bytes_);
    arena_ = real;
  }
  ok_ = true;
}

DeviceMemory::~DeviceMemory() {
  if (memory_ != nullptr) device_.Free(memory_);
}
}  // namespace carousel
