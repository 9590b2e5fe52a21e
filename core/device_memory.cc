#include "core/device_memory.h"

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

namespace carousel {

std::string BinaryBytes(int64_t bytes) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 6) value /= 1024, ++unit;
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g %s", value, units[unit]);
  if (value >= 1000) std::snprintf(text, sizeof(text), "%.0f %s", value, units[unit]);
  return text;
}

std::string NotEnoughMemory(const std::string& what, const Arena& plan, const Device& device,
                            const MemoryInfo& found) {
  std::vector<std::pair<int64_t, std::string>> parts;
  for (const auto& [category, bytes] : plan.bytes_by_category()) parts.emplace_back(bytes, category);
  parts.emplace_back(plan.peak_scratch_bytes(), "scratch");
  std::sort(parts.rbegin(), parts.rend());
  std::string text = what + " needs " + BinaryBytes(plan.total_bytes()) + " on " + device.name() + " (";
  // Parts that no one could save anything on are left out.
  bool first = true;
  for (const auto& [bytes, category] : parts) {
    if (!first && bytes < plan.total_bytes() / 50) break;
    text += (first ? "" : ", ") + category + " " + BinaryBytes(bytes);
    first = false;
  }
  text += ")";
  if (found.total_bytes > 0) {
    text += ", which has " + BinaryBytes(found.total_bytes) + ", " + BinaryBytes(found.free_bytes) +
            " of it free";
  } else {
    text += ", more than it can give";
  }
  const std::string error = device.allocation_error();
  return error.empty() ? text : text + ": " + error;
}

std::string DeviceMemory::NotEnough(const std::string& what) const {
  return NotEnoughMemory(what, arena_, device_, found_);
}

DeviceMemory::DeviceMemory(Device& device, const std::function<void(Arena&)>& bind) : device_(device) {
  bind(arena_);
  needed_bytes_ = arena_.total_bytes();
  if (needed_bytes_ > 0) {
    memory_ = device_.Allocate(needed_bytes_);
    if (memory_ == nullptr) {
      found_ = device_.memory();
      return;
    }
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
