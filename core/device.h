// Device: where tensors live and where an Ops runs. Implemented by kernels/<backend>.
#pragma once
#include <memory>
#include <string>

#include "core/ops.h"

namespace carousel {

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "cpu", "cuda:0", ...
  virtual bool host_accessible()
      const = 0;  // tensors of this device may be read and written by host code directly
  // Zero-filled, aligned to at least Arena::kAlignBytes. Null only for bytes == 0. A device out of memory is
  // reported by a null result with bytes > 0. The device frees it when it is destroyed or through Free.
  virtual void* Allocate(int64_t bytes) = 0;
  virtual void Free(void* memory) = 0;
  // Copies between any two places, ordered with the compute stream; returns when the copy is complete.
  virtual void CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) = 0;
  virtual void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) = 0;
  virtual void Synchronize() = 0;  // waits for everything enqueued
  virtual Ops& ops() = 0;          // bound to the device's compute stream
};
}  // namespace carousel
