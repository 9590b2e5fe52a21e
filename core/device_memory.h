// DeviceMemory: one allocation of a device, placed by running the same Bind code twice (core/arena.h).
#pragma once
#include <functional>
#include <string>

#include "core/arena.h"
#include "core/device.h"

namespace carousel {

// 3489660928 -> "3.25 GiB"; bytes >= 0.
std::string BinaryBytes(int64_t bytes);

// "training needs 3.25 GiB on cuda:0 (...), which has 2 GiB, 1.87 GiB of it free: out of memory". `plan` is
// the counting arena of what was asked for, `found` what the device said of its memory then.
std::string NotEnoughMemory(const std::string& what, const Arena& plan, const Device& device,
                            const MemoryInfo& found);

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
  // For the user, if !ok(): what was asked for, by category, and what the device has. "training needs 3.25
  // GiB on cuda:0 (optimizer 1.91 GiB, saved 812 MiB, ...), which has 2 GiB, 1.87 GiB of it free". No full
  // stop.
  std::string NotEnough(const std::string& what) const;

 private:
  Device& device_;
  MemoryInfo found_;  // just after Allocate
  Arena arena_;
  void* memory_ = nullptr;
  int64_t needed_bytes_ = 0;
  bool ok_ = false;
};
}  // namespace carousel
