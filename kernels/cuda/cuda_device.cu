// cuda_device.cu - memory, copies and recorded sequences of ops.
#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>

#include "core/arena.h"
#include "core/base/check.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/ranged_ops.h"

#define CAROUSEL_TEXT_(x) #x
#define CAROUSEL_TEXT(x) CAROUSEL_TEXT_(x)

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {
constexpr int64_t kCudaMallocAlignBytes = 256;
static_assert(kCudaMallocAlignBytes % Arena::kAlignBytes == 0);

// With less than this the libraries' workspaces do not fit.
constexpr int64_t kMinFreeBytes = int64_t{64} << 20;

std::string InMib(int64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

bool IsCapturing(const Context& context) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  context.Check(cudaStreamIsCapturing(context.stream(), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

// The first Run calls the ops, the second captures them as a graph, later ones launch the graph.
class GraphRecording final : public Recording {
 public:
  explicit GraphRecording(CudaDevice* device) : device_(*device) {}
  ~GraphRecording() override { Forget(); }

  void Run(const std::function<void()>& enqueue) override {
    device_.ops();  // the device is current
    const Context& context = device_.context();
    if (!warm_) {
      warm_ = true;
      enqueue();
      return;
    }
    // The graph holds addresses in the scratch memory.
    if (executable_ == nullptr || scratch_generation_ != context.scratch_generation()) Capture(enqueue);
    context.Check(cudaGraphLaunch(executable_, context.stream()), "launch of a recorded sequence of ops");
  }

 private:
  void Capture(const std::function<void()>& enqueue) {
    const Context& context = device_.context();
    Forget();
    // Other threads, e.g. of a communicator, may go on calling CUDA.
    context.Check(cudaStreamBeginCapture(context.stream(), cudaStreamCaptureModeThreadLocal),
                  "start of recording ops");
    enqueue();
    cudaGraph_t graph = nullptr;
    context.Check(cudaStreamEndCapture(context.stream(), &graph), "recording ops");
    context.Check(cudaGraphInstantiate(&executable_, graph, 0), "preparing a recorded sequence of ops");
    context.Check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    scratch_generation_ = context.scratch_generation();
  }
  void Forget() {
    if (executable_ == nullptr) return;
    device_.context().Check(cudaGraphExecDestroy(executable_), "cudaGraphExecDestroy");
    executable_ = nullptr;
  }

  CudaDevice& device_;
  bool warm_ = false;
  cudaGraphExec_t executable_ = nullptr;
  int64_t scratch_generation_ = 0;
};
}  // namespace

// ---- copies

PinnedRing::PinnedRing(const Context* context) : context_(*context), slots_(kNumSlots) {
  for (Slot& slot : slots_) {
    void* memory = nullptr;
    context_.Check(cudaHostAlloc(&memory, kSlotBytes, cudaHostAllocDefault), "pinned memory for copies");
    slot.memory = static_cast<char*>(memory);
    context_.Check(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming), "an event for copies");
  }
}
PinnedRing::~PinnedRing() {
  for (Slot& slot : slots_) {
    context_.Check(cudaEventDestroy(slot.copied), "cudaEventDestroy");
    context_.Check(cudaFreeHost(slot.memory), "cudaFreeHost");
  }
}

PinnedRing::Slot& PinnedRing::NextSlot() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  context_.Check(cudaEventSynchronize(slot.copied), "waiting for an earlier copy");
  return slot;
}

void PinnedRing::CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) {
  for (int64_t done = 0; done < bytes; done += kSlotBytes) {
    Slot& slot = NextSlot();
    const size_t size = static_cast<size_t>(std::min(kSlotBytes, bytes - done));
    std::memcpy(slot.memory, static_cast<const char*>(host_source) + done, size);
    context_.Check(cudaMemcpyAsync(static_cast<char*>(device_destination) + done, slot.memory, size,
                                   cudaMemcpyHostToDevice, context_.stream()),
                   "copy to the device");
    context_.Check(cudaEventRecord(slot.copied, context_.stream()), "cudaEventRecord");
  }
}

void PinnedRing::CopyToHost(void* host_destination, const void* device_source, int64_t bytes) {
  const int64_t num_pieces = (bytes + kSlotBytes - 1) / kSlotBytes;
  std::vector<Slot*> slot_of(slots_.size());
  // As many pieces are under way as there are slots: piece i leaves its slot before piece i + kNumSlots
  // enters.
  for (int64_t piece = 0; piece < num_pieces + kNumSlots; ++piece) {
    const int64_t arrived = piece - kNumSlots;
    Slot*& slot = slot_of[static_cast<size_t>(piece % kNumSlots)];
    if (arrived >= 0 && arrived < num_pieces) {
      const int64_t begin = arrived * kSlotBytes;
      context_.Check(cudaEventSynchronize(slot->copied), "copy to the host");
      std::memcpy(static_cast<char*>(host_destination) + begin, slot->memory,
                  static_cast<size_t>(std::min(kSlotBytes, bytes - begin)));
    }
    if (piece < num_pieces) {
      const int64_t begin = piece * kSlotBytes;
      slot = &NextSlot();
      context_.Check(cudaMemcpyAsync(slot->memory, static_cast<const char*>(device_source) + begin,
                                     static_cast<size_t>(std::min(kSlotBytes, bytes - begin)),
                                     cudaMemcpyDeviceToHost, context_.stream()),
                     "copy to the host");
      context_.Check(cudaEventRecord(slot->copied, context_.stream()), "cudaEventRecord");
    }
  }
}

// ---- the device

std::unique_ptr<CudaDevice> CudaDevice::Open(int index, const DeviceInfo& info, std::string* error) {
  const auto fail = [&](const char* call, cudaError_t status) {
    cudaGetLastError();
    *error =
        "device '" CAROUSEL_TEXT(CAROUSEL_DEVICE_NS) ":" + std::to_string(index) + "' (" + info.name +
        ") cannot be opened: " + call + ": " + cudaGetErrorString(status) +
        "; see with nvidia-smi whether another process uses it, and choose another GPU or end that process";
    return nullptr;
  };
  if (const cudaError_t status = cudaSetDevice(index)) return fail("cudaSetDevice", status);
  size_t free_bytes = 0, total_bytes = 0;
  if (const cudaError_t status = cudaMemGetInfo(&free_bytes, &total_bytes))
    return fail("cudaMemGetInfo", status);
  if (static_cast<int64_t>(free_bytes) < kMinFreeBytes) {
    *error = "device '" CAROUSEL_TEXT(CAROUSEL_DEVICE_NS) ":" + std::to_string(index) + "' (" + info.name +
             ") has only " + InMib(static_cast<int64_t>(free_bytes)) + " of its " +
             InMib(static_cast<int64_t>(total_bytes)) + " free, and needs at least " + InMib(kMinFreeBytes) +
             "; see with nvidia-smi which process uses it, and choose another GPU or end that process";
    return nullptr;
  }
  cudaStream_t stream = nullptr;
  if (const cudaError_t status = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) {
    return fail("cudaStreamCreate", status);
  }
  return std::unique_ptr<CudaDevice>(new CudaDevice(index, info, stream));
}

CudaDevice::CudaDevice(int index, const DeviceInfo& info, cudaStream_t stream)
    : index_(index),
      compute_(std::make_unique<CudaQueue>(info, stream, &scratch_generation_)),
      ring_(std::make_unique<PinnedRing>(compute_->context.get())) {
  context().matmul();  // takes the memory for its workspace now
}

CudaDevice::~CudaDevice() {
  CAROUSEL_CHECK_MSG(others_.empty(), "a stream outlives its device");
  Synchronize();
  for (const auto& [memory, bytes] : bytes_of_) context().Check(cudaFree(memory), "cudaFree");
  ring_.reset();
  compute_.reset();
}

std::string CudaDevice::name() const {
  return CAROUSEL_TEXT(CAROUSEL_DEVICE_NS) ":" + std::to_string(index_);
}

void CudaDevice::MakeCurrent() const { CheckCuda(cudaSetDevice(index_), "cudaSetDevice"); }

Ops& CudaDevice::ops() {
  MakeCurrent();
  return *compute_->ops;
}

void* CudaDevice::Allocate(int64_t bytes) {
  CAROUSEL_CHECK_GE(bytes, int64_t{0});
  allocation_error_.clear();
  if (bytes == 0) return nullptr;
  MakeCurrent();
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not an error of a later call
    const MemoryInfo info = this->memory();
    allocation_error_ = "cudaMalloc of " + InMib(bytes) + " on '" + name() + "' (" + context().info().name +
                        "): out of memory; " + InMib(info.free_bytes) + " of " + InMib(info.total_bytes) +
                        " are free";
    return nullptr;
  }
  context().Check(status, "cudaMalloc");
  context().Check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), compute_->stream),
                  "setting memory to zero");
  context().Synchronize();  // for all streams, not only this one
  bytes_of_[memory] = bytes;
  return memory;
}

void CudaDevice::Free(void* memory) {
  if (memory == nullptr) return;
  CAROUSEL_CHECK_MSG(bytes_of_.erase(memory) == 1, "Free of memory that this device did not allocate");
  MakeCurrent();
  context().Check(cudaFree(memory), "cudaFree");
}

MemoryInfo CudaDevice::memory() const {
  MakeCurrent();
  size_t free_bytes = 0, total_bytes = 0;
  context().Check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return {.total_bytes = static_cast<int64_t>(total_bytes), .free_bytes = static_cast<int64_t>(free_bytes)};
}

void CudaDevice::CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) {
  CAROUSEL_CHECK_GE(bytes, int64_t{0});
  MakeCurrent();
  CAROUSEL_CHECK_MSG(!IsCapturing(context()), "CopyToDevice among recorded ops");
  ring_->CopyToDevice(device_destination, host_source, bytes);
}

void CudaDevice::CopyToHost(void* host_destination, const void* device_source, int64_t bytes) {
  CAROUSEL_CHECK_GE(bytes, int64_t{0});
  MakeCurrent();
  CAROUSEL_CHECK_MSG(!IsCapturing(context()), "CopyToHost among recorded ops");
  ring_->CopyToHost(host_destination, device_source, bytes);
}

void* CudaDevice::AllocateHost(int64_t bytes) {
  CAROUSEL_CHECK_GE(bytes, int64_t{0});
  MakeCurrent();
  void* memory = nullptr;
  const cudaError_t status = cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not an error of a later call
    return nullptr;
  }
  context().Check(status, "cudaHostAlloc");
  return memory;
}

void CudaDevice::FreeHost(void* memory) {
  if (memory == nullptr) return;
  MakeCurrent();
  context().Check(cudaFreeHost(memory), "cudaFreeHost");
}

void CudaDevice::Synchronize() {
  MakeCurrent();
  context().Synchronize();
  for (CudaQueue* other : others_) other->context->Synchronize();
}

std::unique_ptr<Recording> CudaDevice::MakeRecording() { return std::make_unique<GraphRecording>(this); }

// ---- streams and events

CudaQueue::CudaQueue(const DeviceInfo& info, cudaStream_t its_stream, int64_t* scratch_generation)
    : stream(its_stream),
      context(std::make_unique<Context>(info, stream, scratch_generation)),
      device_ops(std::make_unique<DeviceOps>(context.get())),
      ops(std::make_unique<RangedOps>(device_ops.get())) {}
CudaQueue::~CudaQueue() {
  context.reset();
  CheckCuda(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

std::unique_ptr<Stream> CudaDevice::ComputeStream() {
  return std::make_unique<CudaStream>(this, compute_.get());
}

std::unique_ptr<Stream> CudaDevice::MakeStream() {
  MakeCurrent();
  // What runs beside the compute stream is what that will wait for: it goes first where both want to run.
  int least = 0, greatest = 0;
  context().Check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  cudaStream_t stream = nullptr;
  context().Check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
  return std::make_unique<CudaStream>(this,
                                      std::make_unique<CudaQueue>(info(), stream, &scratch_generation_));
}

std::unique_ptr<Event> CudaDevice::MakeEvent() { return std::make_unique<CudaEvent>(this); }

CudaEvent::CudaEvent(CudaDevice* device) : device_(*device) {
  device_.MakeCurrent();
  device_.context().Check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}
CudaEvent::~CudaEvent() { device_.context().Check(cudaEventDestroy(event_), "cudaEventDestroy"); }

CudaStream::CudaStream(CudaDevice* device, CudaQueue* queue)
    : Stream(*queue->ops), device_(*device), queue_(*queue) {}
CudaStream::CudaStream(CudaDevice* device, std::unique_ptr<CudaQueue> queue)
    : Stream(*queue->ops), device_(*device), own_(std::move(queue)), queue_(*own_) {
  device_.others_.push_back(own_.get());
}
CudaStream::~CudaStream() {
  if (own_ == nullptr) return;
  device_.MakeCurrent();
  own_->context->Synchronize();
  std::erase(device_.others_, own_.get());
}

Ops& CudaStream::ops() {
  device_.MakeCurrent();
  return *queue_.ops;
}
void CudaStream::Record(Event& event) {
  device_.MakeCurrent();
  queue_.context->Check(cudaEventRecord(static_cast<CudaEvent&>(event).native(), queue_.stream),
                        "cudaEventRecord");
}
void CudaStream::Wait(const Event& event) {
  device_.MakeCurrent();
  queue_.context->Check(cudaStreamWaitEvent(queue_.stream, static_cast<const CudaEvent&>(event).native(), 0),
                        "cudaStreamWaitEvent");
}
void CudaStream::CopyToHost(void* host_destination, const void* device_source, int64_t bytes) {
  device_.MakeCurrent();
  queue_.context->Check(cudaMemcpyAsync(host_destination, device_source, static_cast<size_t>(bytes),
                                        cudaMemcpyDeviceToHost, queue_.stream),
                        "copy to the host beside the compute stream");
}
void CudaStream::Synchronize() {
  device_.MakeCurrent();
  queue_.context->Synchronize();
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
