// The fake CUDA runtime: streams, events and the loop that runs their work.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_cudart_state.h"

namespace carousel::fake_cuda {
namespace {
constexpr double kStuckSeconds = 180;  // work that waits so long for another process will not go on
constexpr double kIdleSeconds = 0.05;  // a program that works on the GPU calls something sooner
constexpr int kYieldsBeforeSleep = 200, kSleepMicroseconds = 50;

void Fail(cudaError_t error, const std::string& text) {
  State& s = GetState();
  s.sticky = error;
  s.sticky_text = text;
  std::fprintf(stderr, "[emulated CUDA] %s\n", text.c_str());
}

// The next piece of a stream's work.
Progress RunHead(CUstream_st* stream) {
  State& s = GetState();
  if (stream->queue.empty()) return Progress::kWaiting;
  CUstream_st::Entry& entry = stream->queue.front();
  Progress progress = Progress::kDone;
  if (s.sticky == cudaSuccess) {
    for (const Mark& mark : entry.after) {
      if (!mark.reached()) return Progress::kWaiting;
    }
    InOperation() = true;
    try {
      progress = entry.operation();
    } catch (const emulator::KernelError& error) {
      Fail(cudaErrorLaunchFailure, std::string("unspecified launch failure: ") + error.what());
    }
    InOperation() = false;
  }
  if (progress == Progress::kDone) {
    stream->queue.pop_front();
    ++stream->position->done;
  }
  return progress;
}

// Removes destroyed streams whose work is done.
void Bury() {
  std::erase_if(GetState().streams,
                [](const auto& stream) { return stream->destroyed && stream->queue.empty(); });
}

CUstream_st* Pick(uint64_t i) {
  State& s = GetState();
  return i < s.streams.size() ? s.streams[i].get() : s.default_streams[i - s.streams.size()].get();
}
uint64_t NumStreams() { return GetState().streams.size() + GetState().default_streams.size(); }

Mark EndOf(const CUstream_st& stream) { return {stream.position, stream.position->issued}; }
}  // namespace

uint64_t Random(uint64_t n) {
  uint64_t& x = GetState().random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return (x >> 11) % n;
}
double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

CUstream_st* FindStream(cudaStream_t handle) {
  State& s = GetState();
  if (handle == nullptr || handle == cudaStreamLegacy) {
    return s.default_streams[static_cast<size_t>(CurrentDevice())].get();
  }
  for (const auto& stream : s.streams) {
    if (stream.get() == handle && !stream->destroyed) return handle;
  }
  return nullptr;
}

cudaError_t RunUntil(Lock& lock, const std::function<bool()>& done) {
  State& s = GetState();
  double last_progress = Seconds();
  int yields = 0;
  while (!done()) {
    Progress progress = Progress::kWaiting;
    const uint64_t n = NumStreams(), first = Random(n);
    for (uint64_t i = 0; i < n && progress == Progress::kWaiting; ++i)
      progress = RunHead(Pick((first + i) % n));
    if (progress != Progress::kWaiting) {
      last_progress = Seconds();
      yields = 0;
      continue;
    }
    // What is left waits for another process, or for another thread to enqueue.
    lock.unlock();
    if (++yields < kYieldsBeforeSleep) {
      sched_yield();
    } else {
      usleep(kSleepMicroseconds);
    }
    lock.lock();
    if (Seconds() - last_progress > kStuckSeconds) {
      Fail(cudaErrorLaunchTimeout, "work on a stream waits for something that does not happen");
    }
  }
  Bury();
  s.last_call = Seconds();
  return s.sticky;
}

bool RunOnceLocked() {
  bool any = false;
  for (uint64_t i = 0; i < NumStreams(); ++i) any |= RunHead(Pick(i)) != Progress::kWaiting;
  Bury();
  return any;
}
bool RunOnce() {
  const Lock lock(GetState().mutex);
  return RunOnceLocked();
}
void RunWhileIdle() {
  const Lock lock(GetState().mutex);
  if (Seconds() - GetState().last_call < kIdleSeconds) return;
  while (RunOnceLocked()) {
  }
}

cudaError_t Drain(Lock& lock, const CUstream_st* stream) {
  return RunUntil(lock, [mark = EndOf(*stream)] { return mark.reached(); });
}
cudaError_t DrainDevice(Lock& lock, int device) {
  std::vector<Mark> marks;
  for (uint64_t i = 0; i < NumStreams(); ++i) {
    if (Pick(i)->device == device) marks.push_back(EndOf(*Pick(i)));
  }
  return RunUntil(lock, [marks] {
    return std::all_of(marks.begin(), marks.end(), [](const Mark& mark) { return mark.reached(); });
  });
}

cudaError_t EnqueueLocked(CUstream_st* stream, Operation operation) {
  State& s = GetState();
  if (s.sticky != cudaSuccess) return s.sticky;
  if (stream->capture != nullptr) {
    if (!stream->capture->valid) return cudaErrorStreamCaptureInvalidated;
    AddToCapture(stream, std::move(operation));
    return cudaSuccess;
  }
  CUstream_st::Entry entry{std::move(operation), {}};
  // The default stream and the streams that were not made with cudaStreamNonBlocking wait for each other.
  CUstream_st* default_stream = s.default_streams[static_cast<size_t>(stream->device)].get();
  if (stream == default_stream) {
    for (const auto& other : s.streams) {
      if (!other->blocking || other->device != stream->device) continue;
      if (other->capture != nullptr) return cudaErrorStreamCaptureImplicit;
      entry.after.push_back(EndOf(*other));
    }
  } else if (stream->blocking) {
    entry.after.push_back(EndOf(*default_stream));
  }
  stream->queue.push_back(std::move(entry));
  ++stream->position->issued;
  if (s.options.eager) {
    while (!stream->queue.empty() && RunOnceLocked()) {
    }
  }
  return s.sticky;
}
cudaError_t Enqueue(cudaStream_t handle, Operation operation) {
  const Lock lock(GetState().mutex);
  CUstream_st* stream = FindStream(handle);
  return Return(stream == nullptr ? cudaErrorInvalidResourceHandle
                                  : EnqueueLocked(stream, std::move(operation)));
}

void ForgetWork() {
  State& s = GetState();
  for (uint64_t i = 0; i < NumStreams(); ++i) {
    CUstream_st* stream = Pick(i);
    stream->queue.clear();
    stream->position->done = stream->position->issued;
    stream->capture.reset();
    stream->frontier.clear();
  }
  Bury();
  s.sticky = cudaSuccess;
  s.sticky_text.clear();
}

namespace {
cudaError_t MakeStream(cudaStream_t* handle, unsigned flags) {
  if ((flags & ~unsigned{cudaStreamNonBlocking}) != 0) return cudaErrorInvalidValue;
  auto stream = std::make_unique<CUstream_st>();
  stream->device = CurrentDevice();
  stream->blocking = (flags & cudaStreamNonBlocking) == 0;
  *handle = stream.get();
  GetState().streams.push_back(std::move(stream));
  return cudaSuccess;
}
bool IsEvent(cudaEvent_t event) { return GetState().events.count(event) > 0; }

// Whether this wait is the one that Options::drop_event_wait names.
bool DropsThisWait() {
  State& s = GetState();
  return s.event_waits++ == s.options.drop_event_wait;
}

cudaError_t Record(cudaEvent_t event, cudaStream_t handle) {
  CUstream_st* stream = FindStream(handle);
  if (stream == nullptr || !IsEvent(event) || event->device != stream->device)
    return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) {
    event->capture = stream->capture;
    event->frontier = stream->frontier;
    event->recorded = false;
    return cudaSuccess;
  }
  event->capture.reset();
  event->recorded = true;
  event->mark = {stream->position, stream->position->issued + 1};
  return EnqueueLocked(stream, [seconds = event->seconds] {
    *seconds = Seconds();
    return Progress::kDone;
  });
}

cudaError_t WaitInCapture(CUstream_st* stream, cudaEvent_t event) {
  if (event->capture == nullptr || event->capture->origin == nullptr) {
    // A captured stream may not wait for work outside of the capture.
    stream->capture->valid = false;
    return cudaErrorStreamCaptureIsolation;
  }
  if (stream->capture != nullptr && stream->capture != event->capture) {
    stream->capture->valid = event->capture->valid = false;
    return cudaErrorStreamCaptureMerge;
  }
  if (stream->capture == nullptr) {  // the stream joins the capture
    stream->capture = event->capture;
    stream->capture->streams.push_back(stream);
    stream->frontier.clear();
  }
  for (const int64_t node : event->frontier) {
    if (std::find(stream->frontier.begin(), stream->frontier.end(), node) == stream->frontier.end()) {
      stream->frontier.push_back(node);
    }
  }
  return cudaSuccess;
}
}  // namespace
}  // namespace carousel::fake_cuda

namespace fake = carousel::fake_cuda;
using fake::Needs;
using fake::Return;

extern "C" {

// ---- streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::MakeStream(stream, flags));
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::MakeStream(stream, cudaStreamDefault));
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::MakeStream(stream, flags));
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  CUstream_st* stream = handle == nullptr ? nullptr : fake::FindStream(handle);
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);
  stream->destroyed = true;  // its work still runs
  fake::Bury();
  return Return(fake::GetState().sticky);
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  CUstream_st* stream = fake::FindStream(handle);
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) {
    stream->capture->valid = false;
    return Return(cudaErrorStreamCaptureUnsupported);
  }
  return Return(fake::Drain(lock, stream));
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  CUstream_st* stream = fake::FindStream(handle);
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) {
    stream->capture->valid = false;
    return Return(cudaErrorStreamCaptureUnsupported);
  }
  if (stream->queue.empty()) return cudaSuccess;
  fake::RunOnceLocked();  // a program that polls must see it finish
  if (fake::GetState().sticky != cudaSuccess) return Return(fake::GetState().sticky);
  return cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize() {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (const cudaError_t refused = fake::RefuseIfCapturing()) return Return(refused);
  return Return(fake::DrainDevice(lock, fake::CurrentDevice()));
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* argument) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  CUstream_st* stream = fake::FindStream(handle);
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);
  return Return(fake::EnqueueLocked(stream, [function, argument] {
    function(argument);
    return fake::Progress::kDone;
  }));
}

// ---- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  *event = new CUevent_st;
  (*event)->device = fake::CurrentDevice();
  (*event)->timing = (flags & cudaEventDisableTiming) == 0;
  fake::GetState().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  if (fake::GetState().events.erase(event) == 0) return Return(cudaErrorInvalidResourceHandle);
  delete event;  // queued work holds what it needs of it
  return Return(fake::GetState().sticky);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::Record(event, stream));
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::Record(event, stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  CUstream_st* stream = fake::FindStream(handle);
  if (stream == nullptr || !fake::IsEvent(event)) return Return(cudaErrorInvalidResourceHandle);
  if (fake::DropsThisWait()) return cudaSuccess;
  if (stream->capture != nullptr || event->capture != nullptr)
    return Return(fake::WaitInCapture(stream, event));
  if (!event->recorded) return cudaSuccess;
  return Return(fake::EnqueueLocked(stream, [mark = event->mark] {
    return mark.reached() ? fake::Progress::kDone : fake::Progress::kWaiting;
  }));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (!fake::IsEvent(event)) return Return(cudaErrorInvalidResourceHandle);
  if (event->capture != nullptr) return Return(cudaErrorCapturedEvent);
  if (fake::DropsThisWait() || !event->recorded) return cudaSuccess;
  return Return(fake::RunUntil(lock, [mark = event->mark] { return mark.reached(); }));
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (!fake::IsEvent(event)) return Return(cudaErrorInvalidResourceHandle);
  if (event->capture != nullptr) return Return(cudaErrorCapturedEvent);
  if (!event->recorded || event->mark.reached()) return cudaSuccess;
  fake::RunOnceLocked();
  if (fake::GetState().sticky != cudaSuccess) return Return(fake::GetState().sticky);
  return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  for (const cudaEvent_t event : {start, end}) {
    if (!fake::IsEvent(event) || !event->timing || !event->recorded)
      return Return(cudaErrorInvalidResourceHandle);
    if (!event->mark.reached()) return cudaErrorNotReady;
  }
  *milliseconds = static_cast<float>((*end->seconds - *start->seconds) * 1e3);
  return cudaSuccess;
}
}  // extern "C"
