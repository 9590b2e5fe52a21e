// The fake CUDA runtime: capture of streams, and graphs.
#include <algorithm>
#include <utility>

#include "kernels/simt/fake_cudart_state.h"

namespace carousel::fake_cuda {
namespace {

// One launch of a graph. A copy of a fresh one is a fresh one.
class GraphPlayer {
 public:
  explicit GraphPlayer(std::vector<Node> nodes) : nodes_(std::move(nodes)), next_(nodes_.size()) {
    num_missing_.reserve(nodes_.size());
    for (size_t i = 0; i < nodes_.size(); ++i) {
      num_missing_.push_back(static_cast<int64_t>(nodes_[i].after.size()));
      for (const int64_t before : nodes_[i].after) next_[static_cast<size_t>(before)].push_back(i);
      if (nodes_[i].after.empty()) ready_.push_back(i);
    }
  }

  // One node, or a part of one: any of those that may run now.
  Progress operator()() {
    const size_t n = ready_.size();
    const size_t first = n < 2 ? 0 : static_cast<size_t>(Random(n));
    for (size_t i = 0; i < n; ++i) {
      const size_t at = (first + i) % n, node = ready_[at];
      const Progress progress = nodes_[node].operation();
      if (progress == Progress::kWaiting) continue;
      if (progress == Progress::kRan) return progress;
      ready_.erase(ready_.begin() + static_cast<int64_t>(at));
      for (const size_t next : next_[node]) {
        if (--num_missing_[next] == 0) ready_.push_back(next);
      }
      ++num_done_;
      return num_done_ == nodes_.size() ? Progress::kDone : Progress::kRan;
    }
    return nodes_.empty() ? Progress::kDone : Progress::kWaiting;
  }

 private:
  std::vector<Node> nodes_;
  std::vector<std::vector<size_t>> next_;  // next_[i]: the nodes that wait for node i
  std::vector<int64_t> num_missing_;       // how many nodes each node still waits for
  std::vector<size_t> ready_;
  size_t num_done_ = 0;
};

// Whether everything in `wanted` is, or comes before, a node of `frontier`.
bool Reaches(const std::vector<Node>& nodes, const std::vector<int64_t>& frontier,
             const std::vector<int64_t>& wanted) {
  std::vector<bool> seen(nodes.size());
  std::vector<int64_t> open = frontier;
  while (!open.empty()) {
    const size_t node = static_cast<size_t>(open.back());
    open.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    open.insert(open.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  return std::all_of(wanted.begin(), wanted.end(),
                     [&](int64_t node) { return seen[static_cast<size_t>(node)]; });
}

cudaError_t EndCapture(CUstream_st* stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream->capture == nullptr) return cudaErrorIllegalState;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->origin != stream) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  // Everything that another stream was given must come before something of this one.
  bool joined = true;
  for (const CUstream_st* other : capture->streams) {
    joined &= Reaches(capture->nodes, stream->frontier, other->frontier);
  }
  for (CUstream_st* member : capture->streams) {
    member->capture.reset();
    member->frontier.clear();
  }
  capture->origin = nullptr;  // an event that was recorded in it can no longer be waited for
  if (!capture->valid) return cudaErrorStreamCaptureInvalidated;
  if (!joined) return cudaErrorStreamCaptureUnjoined;
  *graph = new CUgraph_st{std::move(capture->nodes)};
  GetState().graphs.insert(*graph);
  return cudaSuccess;
}

cudaError_t Instantiate(cudaGraphExec_t* executable, cudaGraph_t graph) {
  if (GetState().graphs.count(graph) == 0) return cudaErrorInvalidValue;
  *executable = new CUgraphExec_st{graph->nodes};
  GetState().executable_graphs.insert(*executable);
  return cudaSuccess;
}
}  // namespace

void AddToCapture(CUstream_st* stream, Operation operation) {
  std::vector<Node>& nodes = stream->capture->nodes;
  nodes.push_back({std::move(operation), std::move(stream->frontier)});
  stream->frontier = {static_cast<int64_t>(nodes.size()) - 1};
}

cudaError_t RefuseIfCapturing() {
  bool refused = false;
  for (const auto& stream : GetState().streams) {
    Capture* capture = stream->capture.get();
    if (capture == nullptr || capture->origin != stream.get()) continue;
    const bool mine = capture->thread == std::this_thread::get_id();
    if (capture->mode == cudaStreamCaptureModeGlobal ||
        (capture->mode == cudaStreamCaptureModeThreadLocal && mine)) {
      capture->valid = false;
      refused = true;
    }
  }
  return refused ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

Operation PlayGraph(std::vector<Node> nodes) { return GraphPlayer(std::move(nodes)); }
}  // namespace carousel::fake_cuda

namespace fake = carousel::fake_cuda;
using fake::Needs;
using fake::Return;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  CUstream_st* stream = fake::FindStream(handle);
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);
  if (handle == nullptr || handle == cudaStreamLegacy) return Return(cudaErrorStreamCaptureUnsupported);
  if (stream->capture != nullptr) return Return(cudaErrorIllegalState);
  stream->capture = std::make_shared<fake::Capture>();
  stream->capture->origin = stream;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  stream->capture->streams = {stream};
  stream->frontier.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  CUstream_st* stream = fake::FindStream(handle);
  return Return(stream == nullptr ? cudaErrorInvalidResourceHandle : fake::EndCapture(stream, graph));
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  const CUstream_st* stream = fake::FindStream(handle);
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);
  *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
            : stream->capture->valid   ? cudaStreamCaptureStatusActive
                                       : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::Instantiate(executable, graph));
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  return Return(fake::Instantiate(executable, graph));
}
cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t handle) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  const bool known = fake::GetState().executable_graphs.count(executable) > 0;
  return Return(known && fake::FindStream(handle) != nullptr ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  CUstream_st* stream = fake::FindStream(handle);
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);
  if (fake::GetState().executable_graphs.count(executable) == 0) return Return(cudaErrorInvalidValue);
  return Return(fake::EnqueueLocked(stream, fake::PlayGraph(executable->nodes)));
}
// How many nodes there are; the nodes themselves have no handles here.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* num_nodes) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (fake::GetState().graphs.count(graph) == 0) return Return(cudaErrorInvalidValue);
  if (nodes != nullptr) return Return(cudaErrorNotSupported);
  *num_nodes = graph->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  if (fake::GetState().graphs.erase(graph) == 0) return Return(cudaErrorInvalidValue);
  delete graph;
  return Return(fake::GetState().sticky);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  if (fake::GetState().executable_graphs.erase(executable) == 0) return Return(cudaErrorInvalidValue);
  delete executable;  // launches under way have their own copy
  return Return(fake::GetState().sticky);
}
}  // extern "C"
