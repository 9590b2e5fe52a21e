// For tests of the emulation itself: memory of the emulated device, and launches whose report is a value.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/simt/emulator.h"

namespace carousel::testing {

// An array in global memory that the host reads and writes directly.
template <class T>
class DeviceArray {
 public:
  // Never written: NaN, and the checker knows.
  explicit DeviceArray(size_t size)
      : size_(size), data_(static_cast<T*>(emulator::device_alloc(size * sizeof(T)))) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    memcpy(static_cast<void*>(data_), values.data(), size_ * sizeof(T));
    emulator::mark_initialized(data_, size_ * sizeof(T));
  }
  ~DeviceArray() { emulator::device_free(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return data_; }
  size_t size() const { return size_; }
  T operator[](size_t i) const { return data_[i]; }
  std::vector<T> values() const { return {data_, data_ + size_}; }

 private:
  const size_t size_;
  T* const data_;
};

// Runs the grid at once; what the emulation or the checker reports, or "".
template <class... P, class... A>
std::string RunKernel(void (*kernel)(P...), gpu::LaunchCfg config, A&&... args) {
  const emulator::SubmitFn before = std::exchange(
      emulator::submit, +[](const gpu::LaunchCfg& c, emulator::Thunk thunk, std::shared_ptr<void> pack) {
        emulator::run_grid(c, thunk, pack.get());
        return cudaSuccess;
      });
  std::string report;
  try {
    gpu::launch(kernel, config, std::forward<A>(args)...);
  } catch (const emulator::KernelError& error) {
    report = error.what();
  }
  emulator::submit = before;
  return report;
}
}  // namespace carousel::testing

// That the report of a launch says this.
#define EXPECT_REPORT(text, report)                                        \
  do {                                                                     \
    const std::string found = report;                                      \
    EXPECT_NE(found.find(text), std::string::npos) << "report: " << found; \
  } while (0)
