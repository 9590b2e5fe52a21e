// Device: where tensors live and where an Ops runs. Implemented by kernels/<backend>.
#pragma once
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "core/ops.h"

namespace carousel {

// A sequence of ops that is the same every time it runs. One Recording stands for one sequence: every call of
// Run issues the same ops with the same arguments, addresses included (numbers in the tensors may differ). So
// the device may remember the ops of one call and issue them itself in later ones, without calling `enqueue`.
// `enqueue` issues ops of this device and does nothing else: it neither copies, allocates nor waits, and what
// it changes on the host is lost where the device plays its record. The first call always calls it, so that
// libraries and scratch memory are ready before anything is recorded.
// Must be destroyed before the device, and before memory that its ops use is freed for another purpose.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void Run(const std::function<void()>& enqueue) { enqueue(); }
};

// A point in the work of a stream.
class Event {
 public:
  virtual ~Event() = default;
};

// A queue of work on a device, done in order. Streams of one device run side by side: events order them. On a
// device that runs ops at once every stream is the same and there is nothing to wait for: what is here.
class Stream {
 public:
  explicit Stream(Ops& ops) : ops_(ops) {}
  virtual ~Stream() = default;
  virtual Ops& ops() { return ops_; }  // enqueues here
  // The stream as the type of the device's runtime (cudaStream_t); null where there is none.
  virtual void* native() { return nullptr; }
  // `event` is reached when all that was enqueued here until now is done.
  virtual void Record(Event& event) { static_cast<void>(event); }
  // What is enqueued here from now on begins when `event`'s last Record has been reached. Nothing to wait for
  // if there was none.
  virtual void Wait(const Event& event) { static_cast<void>(event); }
  // Enqueues a copy of device memory into memory of Device::AllocateHost; Synchronize waits for it.
  virtual void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) {
    std::memcpy(host_destination, device_source, static_cast<size_t>(bytes));
  }
  // Waits for everything enqueued here.
  virtual void Synchronize() {}

 private:
  Ops& ops_;
};

struct MemoryInfo {
  int64_t total_bytes = 0;  // 0: not known
  int64_t free_bytes = 0;   // for Allocate, at this moment
};

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
  virtual MemoryInfo memory() const { return {}; }
  // Why the last Allocate gave nothing, in the words of the device's runtime; empty if it does not say.
  virtual std::string allocation_error() const { return {}; }
  // Copies ordered with the compute stream, from and to any host memory. CopyToDevice returns when the source
  // may be changed, CopyToHost when the destination holds the values.
  virtual void CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) = 0;
  virtual void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) = 0;
  // Host memory that Stream::CopyToHost reaches without a detour, aligned to pages; until FreeHost. Null:
  // there is none left.
  virtual void* AllocateHost(int64_t bytes) {
    constexpr int64_t kPageBytes = 4096;
    return std::aligned_alloc(kPageBytes,
                              static_cast<size_t>((bytes + kPageBytes - 1) / kPageBytes * kPageBytes));
  }
  virtual void FreeHost(void* memory) { std::free(memory); }
  virtual void Synchronize() = 0;  // waits for everything enqueued
  virtual Ops& ops() = 0;          // bound to the device's compute stream
  // That stream, as the type of the device's runtime (cudaStream_t): for libraries that enqueue on it. Null
  // where there is none.
  virtual void* native_stream() { return nullptr; }

  // A handle of the compute stream. Handles, other streams and events end before the device.
  virtual std::unique_ptr<Stream> ComputeStream() { return std::make_unique<Stream>(ops()); }
  // Another stream, for what shall run beside the compute stream. Its Ops has scratch memory of its own.
  virtual std::unique_ptr<Stream> MakeStream() { return std::make_unique<Stream>(ops()); }
  virtual std::unique_ptr<Event> MakeEvent() { return std::make_unique<Event>(); }

  // Whether a Recording is worth making: false where it only calls `enqueue`.
  virtual bool records() const { return false; }
  virtual std::unique_ptr<Recording> MakeRecording() { return std::make_unique<Recording>(); }  // not null
};
}  // namespace carousel
