// What the files of the fake CUDA runtime share (fake_cudart.h). Everything here is guarded by State::mutex.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/simt/fake_cudart.h"

namespace carousel::fake_cuda {

// How much work a stream has been given and how much of it is done.
struct Position {
  uint64_t issued = 0, done = 0;
};
// Done when the stream has done its first `target` operations. Outlives the stream.
struct Mark {
  std::shared_ptr<const Position> stream;
  uint64_t target = 0;
  bool reached() const { return stream == nullptr || stream->done >= target; }
};

// Operation i of a graph, which may start when the nodes in `after` are done.
struct Node {
  Operation operation;
  std::vector<int64_t> after;
};

// From cudaStreamBeginCapture to cudaStreamEndCapture.
struct Capture {
  CUstream_st* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool valid = true;
  std::vector<Node> nodes;
  std::vector<CUstream_st*> streams;  // the origin and those that joined
};
}  // namespace carousel::fake_cuda

// The runtime's handles point to these; the names are the ones that cuda_runtime.h declares.
struct CUstream_st {
  struct Entry {
    carousel::fake_cuda::Operation operation;
    std::vector<carousel::fake_cuda::Mark> after;
  };
  int device = 0;
  bool blocking = true;    // ordered with the default stream
  bool destroyed = false;  // goes when its queue is empty
  std::deque<Entry> queue;
  std::shared_ptr<carousel::fake_cuda::Position> position = std::make_shared<carousel::fake_cuda::Position>();
  std::shared_ptr<carousel::fake_cuda::Capture> capture;
  std::vector<int64_t> frontier;  // of a capture: the next operation comes after these nodes
};
struct CUevent_st {
  int device = 0;
  bool timing = true;
  bool recorded = false;
  carousel::fake_cuda::Mark mark;
  std::shared_ptr<double> seconds = std::make_shared<double>(0);  // when the mark was reached
  std::shared_ptr<carousel::fake_cuda::Capture> capture;          // recorded in this capture ...
  std::vector<int64_t> frontier;                                  // ... after these nodes
};
struct CUgraph_st {
  std::vector<carousel::fake_cuda::Node> nodes;
};
struct CUgraphExec_st {
  std::vector<carousel::fake_cuda::Node> nodes;
};

namespace carousel::fake_cuda {

struct DeviceAllocation {
  int64_t bytes = 0;
  int device = 0;
};

struct State {
  std::mutex mutex;
  Options options;
  uint64_t random = 88172645463325252u;  // never 0
  std::map<std::string, int64_t> calls;
  int64_t event_waits = 0;

  std::vector<std::unique_ptr<CUstream_st>> default_streams;  // one per device, the last in `streams`' order
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::set<CUevent_st*> events;
  std::set<CUgraph_st*> graphs;
  std::set<CUgraphExec_st*> executable_graphs;
  std::map<const char*, DeviceAllocation> device_memory;
  std::map<const char*, int64_t> pinned_memory;
  const char* lowest_device_memory = nullptr;  // of all allocations there have been
  const char* highest_device_memory = nullptr;

  double last_call = 0;  // Seconds() when a function was called, or has waited, for the last time

  cudaError_t sticky = cudaSuccess;  // a kernel failed: no later call succeeds
  std::string sticky_text;
};
State& GetState();

// The current device of the calling thread.
int& CurrentDevice();

using Lock = std::unique_lock<std::mutex>;

enum class Needs { kNothing, kDevice };
// Counts a call, and says whether it may go on: not from a callback of a stream, when the call is to fail,
// when there is no device, or after a kernel failed.
cudaError_t Enter(const char* function, Needs needs);
// Remembers the error for cudaGetLastError.
cudaError_t Return(cudaError_t error);

// The stream of a handle; null if there is none.
CUstream_st* FindStream(cudaStream_t handle);
// Puts work on a stream or into its capture.
cudaError_t EnqueueLocked(CUstream_st* stream, Operation operation);
// Adds nodes to a capture after its frontier; they become its frontier.
void AddToCapture(CUstream_st* stream, Operation operation);
// A call that CUDA does not allow while something is captured: the error, and the captures are spoilt.
cudaError_t RefuseIfCapturing();

// Lets streams work until `done`, the mutex released while nothing can be done. Returns the sticky error.
cudaError_t RunUntil(Lock& lock, const std::function<bool()>& done);
bool RunOnceLocked();
cudaError_t Drain(Lock& lock, const CUstream_st* stream);
cudaError_t DrainDevice(Lock& lock, int device);
// An operation that plays a graph: its nodes in a seeded order, each once.
Operation PlayGraph(std::vector<Node> nodes);
// From [0, n).
uint64_t Random(uint64_t n);
double Seconds();

// Forgets queues, captures and errors.
void ForgetWork();
// Begins every function of the runtime: takes the mutex for the rest of it.
#define FAKE_CUDA_ENTER_AS(name, needs)                                                   \
  carousel::fake_cuda::Lock lock(carousel::fake_cuda::GetState().mutex, std::defer_lock); \
  if (!carousel::fake_cuda::InOperation()) lock.lock();                                   \
  if (const cudaError_t refused = carousel::fake_cuda::Enter(name, needs)) {              \
    return carousel::fake_cuda::Return(refused);                                          \
  }
#define FAKE_CUDA_ENTER(needs) FAKE_CUDA_ENTER_AS(__func__, needs)
bool& InOperation();  // whether the calling thread runs work of a stream
}  // namespace carousel::fake_cuda
