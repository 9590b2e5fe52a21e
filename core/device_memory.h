// DeviceMemory: one allocation of a device, placed by running the same Bind code twice (core/arena.h).
#pragma once
#include <functional>

#include "core/arena.h"
#include "core/device.h"

namespace carousel {

class DeviceMemory {
 public:
  // Runs `bind` with a counting arena, allocates what it asked for, runs `bind` again for real. Both runs
  // must ask for the same: a CHECK compares the totals to the byte. If the device has no room, ok() is false
  // and `bind` has run only for counting. The device must outlive this object.
  DeviceMemory(Device& device, const std::function<void(Arena&)>& bind);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  bool ok() const { return ok_; }
  int64_t needed_bytes() const { return needed_bytes_; }
  // The real arena; the counting one if !ok().
  const Arena& arena() const { return arena_; }

 private:
  Device& device_;
  Arena arena_;
  void* memory_ = nullptr;
  int64_t needed_bytes_ = 0;
  bool ok_ = false;
};
}  // namespace carousel
