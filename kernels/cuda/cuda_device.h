// CudaDevice: one GPU (or the emulated one): a compute stream, the ops bound to it, streams beside it,
// memory, copies and recorded sequences of ops as CUDA graphs. May be used by one thread at a time, its
// streams and events included.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "kernels/cuda/context.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Pinned host memory in a ring of equal slots, through which copies of any size pass: the GPU's copy engine
// reads and writes it without the driver's own staging, and a copy to the device need not wait for it.
class PinnedRing {
 public:
  static constexpr int64_t kSlotBytes = int64_t{1} << 20;
  static constexpr int kNumSlots = 4;

  explicit PinnedRing(const Context* context);  // must outlive this
  ~PinnedRing();
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

  // Returns when the source may be changed; the copy is ordered with the stream.
  void CopyToDevice(void* device_destination, const void* host_source, int64_t bytes);
  // Returns when the destination is complete.
  void CopyToHost(void* host_destination, const void* device_source, int64_t bytes);

 private:
  struct Slot {
    char* memory = nullptr;
    cudaEvent_t copied = nullptr;  // after the last copy from or to the slot
  };
  Slot& NextSlot();  // after its last copy

  const Context& context_;
  std::vector<Slot> slots_;
  size_t next_ = 0;
};

// A stream of the runtime and what is bound to it: scratch memory and matrix products of its own.
struct CudaQueue {
  // Takes the stream, of the current device.
  CudaQueue(const DeviceInfo& info, cudaStream_t stream, int64_t* scratch_generation);
  ~CudaQueue();

  const cudaStream_t stream;
  std::unique_ptr<Context> context;
  const std::unique_ptr<Ops> device_ops;
  const std::unique_ptr<Ops> ops;  // device_ops with ranges
};

class CudaDevice;

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(CudaDevice* device);  // must outlive this
  ~CudaEvent() override;
  cudaEvent_t native() const { return event_; }

 private:
  CudaDevice& device_;
  cudaEvent_t event_ = nullptr;
};

// A handle of the compute stream, or a stream of its own. While ops are recorded, a stream that waits for an
// event of a recorded stream is recorded with it; then it must be waited for in turn before the end, and an
// event from outside of the recording cannot be waited for. What was recorded of it is played in order with
// the stream that plays the recording, not with what it is given otherwise.
class CudaStream final : public Stream {
 public:
  CudaStream(CudaDevice* device, CudaQueue* queue);  // of the compute stream, whose `queue` is
  CudaStream(CudaDevice* device, std::unique_ptr<CudaQueue> queue);  // another one
  ~CudaStream() override;                                            // waits for its work
  Ops& ops() override;  // makes the device the calling thread's current one
  void* native() override { return queue_.stream; }
  void Record(Event& event) override;
  void Wait(const Event& event) override;
  void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) override;
  void Synchronize() override;

 private:
  CudaDevice& device_;
  std::unique_ptr<CudaQueue> own_;
  CudaQueue& queue_;
};

class CudaDevice final : public Device {
 public:
  // Opens the device, which must be usable (MakeCudaDevice has looked). Null and *error if there is no memory
  // for a context or the device is someone else's.
  static std::unique_ptr<CudaDevice> Open(int index, const DeviceInfo& info, std::string* error);
  // Waits, then frees what is still allocated.
  ~CudaDevice() override;

  std::string name() const override;  // "cuda:<index>" or "simt:<index>"
  bool host_accessible() const override { return false; }
  void* Allocate(int64_t bytes) override;
  void Free(void* memory) override;
  MemoryInfo memory() const override;
  std::string allocation_error() const override { return allocation_error_; }
  void CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) override;
  void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) override;
  void* AllocateHost(int64_t bytes) override;  // pinned
  void FreeHost(void* memory) override;
  void Synchronize() override;
  Ops& ops() override;  // makes the device the calling thread's current one
  void* native_stream() override { return compute_->stream; }
  std::unique_ptr<Stream> ComputeStream() override;
  std::unique_ptr<Stream> MakeStream() override;  // of higher priority than the compute stream
  std::unique_ptr<Event> MakeEvent() override;
  bool records() const override { return true; }
  std::unique_ptr<Recording> MakeRecording() override;

  const DeviceInfo& info() const { return context().info(); }
  Context& context() const { return *compute_->context; }  // of the compute stream
  void MakeCurrent() const;

 private:
  friend class CudaStream;
  CudaDevice(int index, const DeviceInfo& info, cudaStream_t stream);

  const int index_;
  int64_t scratch_generation_ = 0;  // of all streams
  std::unique_ptr<CudaQueue> compute_;
  std::vector<CudaQueue*> others_;  // of the streams that there are beside the compute stream
  std::unique_ptr<PinnedRing> ring_;
  std::unordered_map<void*, int64_t> bytes_of_;
  std::string allocation_error_;
};
}  // namespace carousel::CAROUSEL_DEVICE_NS
