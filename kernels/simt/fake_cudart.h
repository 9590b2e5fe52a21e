// A CUDA runtime without a GPU: the part of the runtime's interface that a training program uses, with host
// bodies, linked in place of libcudart. It is compiled against the same cuda_runtime.h as the code that calls
// it, so a signature cannot differ.
//
// - A stream is a queue. Its work runs only when the host waits for something (or has left the GPU alone for
//   long: RunWhileIdle), in a seeded interleaving of all streams which respects the order within a stream and
//   events, and nothing else. So a missing event, a pinned buffer that is used again too early and a result
//   read too early are seen, in some seeds at least.
// - A kernel is run by the emulator (emulator.h). A kernel that fails is a sticky error of every later call,
//   as on a GPU; cudaGetErrorString gives the emulator's report.
// - Copies check that device memory is alive and large enough and that both ends are what `kind` says.
// - Captured graphs keep the order that streams and events gave and no more: their nodes run in any order
//   that respects it. What CUDA refuses while a stream is captured is refused.
//
// Any thread may call. State is the process's own: a child of fork() starts with a copy of it.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>

namespace carousel::fake_cuda {

struct Options {
  bool has_driver = true;
  int driver_version = CUDART_VERSION;  // 12040 is CUDA 12.4
  int num_devices = 1;                  // 0: a machine without a GPU
  int first_gpu = 0;                    // which GPU of the machine device 0 is; processes may share one
  int compute_capability = 90;          // 90 is sm_90
  bool has_kernel_images = true;        // false: the program holds no kernels for this GPU
  int num_sms = 4;                      // few, so that persistent kernels have more work than blocks
  int64_t max_shared_bytes = 227 << 10;
  int64_t memory_bytes = int64_t{8} << 30;  // of each device

  bool eager = false;  // work runs when it is enqueued
  uint64_t seed = 1;   // of the interleaving of streams

  // The k-th (from 0) call of cudaStreamWaitEvent or cudaEventSynchronize does nothing: a planted bug.
  int64_t drop_event_wait = -1;
  // The k-th (from 0) call of a function of this name returns fail_error and does nothing.
  std::string fail_function = {};
  int64_t fail_call = 0;
  cudaError_t fail_error = cudaErrorUnknown;
};
// Also forgets errors and all queued work, and counts calls from 0 again. What exists (memory, streams, ...)
// stays; the number of devices may not fall below that of a device in use.
void SetOptions(const Options& options);
const Options& GetOptions();

// What the caller has made and not yet destroyed.
struct LiveObjects {
  int64_t streams = 0, events = 0, graphs = 0, executable_graphs = 0;
  int64_t device_allocations = 0, device_bytes = 0, pinned_allocations = 0;
  bool operator==(const LiveObjects&) const = default;
};
LiveObjects CountLiveObjects();

// Calls since SetOptions, of all functions with this name ("cudaMemcpyAsync").
int64_t CountCalls(const std::string& function);

// ---- for other libraries' host bodies (fake_nccl.h)

enum class Progress {
  kDone,     // has finished
  kRan,      // did a part, to be called again
  kWaiting,  // could do nothing now, to be called again
};
// Work on a stream. A captured operation is copied for each launch of its graph: what it keeps between calls
// must be inside the function object.
using Operation = std::function<Progress()>;
cudaError_t Enqueue(cudaStream_t stream, Operation operation);

// Runs the next piece of every stream once. False if there was nothing to run. For calls that block the host.
bool RunOnce();
// A GPU goes on while its host waits for something else, another rank's message, say. Runs what can be run if
// no function of the runtime has been called for a while. For what a program's watching threads call.
void RunWhileIdle();

// Whether [p, p + bytes) lies inside one live allocation of device memory. An Operation may ask.
bool IsDeviceMemory(const void* p, int64_t bytes);
}  // namespace carousel::fake_cuda
