// How state gets from where it lives to host memory while training goes on: for a device whose memory the
// host cannot read.
#pragma once
#include <cstdint>

namespace carousel {

// Used by the thread that uses the device. Copies run beside the device's compute stream and begin after what
// was enqueued there when Begin was called.
class StateCopier {
 public:
  virtual ~StateCopier() = default;
  // Host memory that Copy reaches without a detour, until Free; null: there is none left.
  virtual void* Allocate(int64_t bytes) = 0;
  virtual void Free(void* memory) = 0;
  virtual void Begin() = 0;
  // Enqueues a copy of device memory into memory of Allocate.
  virtual void Copy(void* host, const void* state, int64_t bytes) = 0;
  // All copies have arrived.
  virtual void Wait() = 0;
};
}  // namespace carousel
