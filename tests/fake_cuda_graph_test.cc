// Capture and graphs of the CUDA runtime without a GPU.
#include <functional>
#include <vector>

#include "tests/fake_cuda_testing.h"

namespace carousel::testing {
namespace {

class FakeCudaGraph : public FakeCudaTest {
 protected:
  void Begin(cudaStream_t stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
    ASSERT_OK(cudaStreamBeginCapture(stream, mode));
  }
  cudaError_t End(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    const cudaError_t status = cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) {
      EXPECT_OK(cudaGraphDestroy(graph));
    }
    return status;
  }
  cudaGraphExec_t EndAndInstantiate(cudaStream_t stream, size_t* num_nodes = nullptr) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    EXPECT_OK(cudaStreamEndCapture(stream, &graph));
    EXPECT_OK(cudaGraphInstantiate(&executable, graph, 0));
    if (num_nodes != nullptr) {
      EXPECT_OK(cudaGraphGetNodes(graph, nullptr, num_nodes));
    }
    EXPECT_OK(cudaGraphDestroy(graph));
    return executable;
  }
};

TEST_F(FakeCudaGraph, CaptureRunsNothingAndEachLaunchRunsAll) {
  const cudaStream_t stream = Stream();
  float *x = DeviceMemory(), *host = Pinned();
  EXPECT_OK(Fill(x, 1, stream));
  Begin(stream);
  EXPECT_OK(Add(x, x, stream));
  EXPECT_OK(cudaMemcpyAsync(host, x, kBytes, cudaMemcpyDeviceToHost, stream));
  size_t num_nodes = 0;
  const cudaGraphExec_t graph = EndAndInstantiate(stream, &num_nodes);
  EXPECT_EQ(num_nodes, 2u);
  EXPECT_EQ(Read(x), AllOf(1));
  for (const float want : {2.0f, 4.0f, 8.0f}) {
    EXPECT_OK(cudaGraphLaunch(graph, stream));
    EXPECT_OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(host[0], want);
  }
  // Two launches under way at once, of a graph destroyed meanwhile.
  EXPECT_OK(cudaGraphLaunch(graph, stream));
  EXPECT_OK(cudaGraphLaunch(graph, stream));
  EXPECT_OK(cudaGraphExecDestroy(graph));
  EXPECT_EQ(Read(x), AllOf(32));
}

TEST_F(FakeCudaGraph, ACaptureFollowsEventsIntoOtherStreamsAndBack) {
  const cudaStream_t a = Stream(), b = Stream();
  const cudaEvent_t forked = Event(), joined = Event();
  float *x = DeviceMemory(), *y = DeviceMemory();
  Begin(a);
  EXPECT_OK(Fill(x, 3, a));
  EXPECT_OK(cudaEventRecord(forked, a));
  EXPECT_OK(cudaStreamWaitEvent(b, forked, 0));
  EXPECT_OK(Fill(y, 4, b));
  EXPECT_OK(Add(y, x, b));
  EXPECT_OK(cudaEventRecord(joined, b));
  EXPECT_OK(cudaStreamWaitEvent(a, joined, 0));
  EXPECT_OK(Add(x, y, a));
  const cudaGraphExec_t graph = EndAndInstantiate(a);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
  EXPECT_OK(cudaStreamIsCapturing(b, &status));
  EXPECT_EQ(status, cudaStreamCaptureStatusNone);
  EXPECT_EQ(CountSeeds([&] {
              EXPECT_OK(cudaGraphLaunch(graph, a));
              return Read(x) == AllOf(10);
            }),
            kNumSeeds);
  EXPECT_OK(cudaGraphExecDestroy(graph));
}

TEST_F(FakeCudaGraph, AMissingEventInsideAGraphGivesWrongDataInSomeSeeds) {
  const cudaStream_t a = Stream(), b = Stream();
  const cudaEvent_t forked = Event(), joined = Event();
  float *x = DeviceMemory(), *y = DeviceMemory();
  const auto count_right = [&](bool forks_after_fill) {
    Begin(a);
    if (!forks_after_fill) {
      EXPECT_OK(cudaEventRecord(forked, a));
    }
    EXPECT_OK(Fill(x, 3, a));
    if (forks_after_fill) {
      EXPECT_OK(cudaEventRecord(forked, a));
    }
    EXPECT_OK(cudaStreamWaitEvent(b, forked, 0));
    EXPECT_OK(Fill(y, 4, b));
    EXPECT_OK(Add(y, x, b));
    EXPECT_OK(cudaEventRecord(joined, b));
    EXPECT_OK(cudaStreamWaitEvent(a, joined, 0));
    const cudaGraphExec_t graph = EndAndInstantiate(a);
    const int right = CountSeeds([&] {
      EXPECT_OK(cudaMemset(x, 0, kBytes));
      EXPECT_OK(cudaDeviceSynchronize());
      EXPECT_OK(cudaGraphLaunch(graph, a));
      return Read(y) == AllOf(7);
    });
    EXPECT_OK(cudaGraphExecDestroy(graph));
    return right;
  };
  EXPECT_EQ(count_right(true), kNumSeeds);
  const int right = count_right(false);
  EXPECT_GT(right, 0);
  EXPECT_LT(right, kNumSeeds);
}

TEST_F(FakeCudaGraph, AStreamThatDidNotComeBackIsRefused) {
  const cudaStream_t a = Stream(), b = Stream();
  const cudaEvent_t forked = Event();
  float* x = DeviceMemory();
  Begin(a);
  EXPECT_OK(cudaEventRecord(forked, a));
  EXPECT_OK(cudaStreamWaitEvent(b, forked, 0));
  EXPECT_OK(Fill(x, 4, b));
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(b, &graph), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(End(a), cudaErrorStreamCaptureUnjoined);
  cudaGetLastError();
}

TEST_F(FakeCudaGraph, WaitingForAnEventOfBeforeTheCaptureIsRefused) {
  const cudaStream_t a = Stream(), b = Stream();
  const cudaEvent_t event = Event();
  EXPECT_OK(cudaEventRecord(event, b));
  Begin(a);
  EXPECT_EQ(cudaStreamWaitEvent(a, event, 0), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(End(a), cudaErrorStreamCaptureInvalidated);
  cudaGetLastError();
}

TEST_F(FakeCudaGraph, TwoCapturesDoNotMerge) {
  const cudaStream_t a = Stream(), b = Stream();
  const cudaEvent_t event = Event();
  Begin(a);
  Begin(b);
  EXPECT_OK(cudaEventRecord(event, a));
  EXPECT_EQ(cudaStreamWaitEvent(b, event, 0), cudaErrorStreamCaptureMerge);
  EXPECT_EQ(End(a), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(End(b), cudaErrorStreamCaptureInvalidated);
  cudaGetLastError();
}

TEST_F(FakeCudaGraph, WhatCudaForbidsWhileCapturingIsRefusedAndSpoilsTheCapture) {
  float* x = DeviceMemory();
  std::vector<float> host(kElems);
  const std::vector<std::function<cudaError_t(cudaStream_t)>> forbidden = {
      [](cudaStream_t) {
        void* memory = nullptr;
        return cudaMalloc(&memory, 16);
      },
      [&](cudaStream_t) { return cudaFree(x); },
      [](cudaStream_t stream) { return cudaStreamSynchronize(stream); },
      [](cudaStream_t stream) { return cudaStreamQuery(stream); },
      [](cudaStream_t) { return cudaDeviceSynchronize(); },
      [&](cudaStream_t) { return cudaMemcpy(host.data(), x, kBytes, cudaMemcpyDeviceToHost); },
      [&](cudaStream_t) { return cudaMemset(x, 0, kBytes); },
  };
  const cudaStream_t stream = Stream();
  for (size_t i = 0; i < forbidden.size(); ++i) {
    Begin(stream);
    EXPECT_EQ(forbidden[i](stream), cudaErrorStreamCaptureUnsupported) << i;
    EXPECT_EQ(Fill(x, 1, stream), cudaErrorStreamCaptureInvalidated) << i;
    EXPECT_EQ(End(stream), cudaErrorStreamCaptureInvalidated) << i;
  }
  // A relaxed capture minds only what happens to its stream.
  Begin(stream, cudaStreamCaptureModeRelaxed);
  EXPECT_OK(cudaDeviceSynchronize());
  EXPECT_OK(End(stream));
  cudaGetLastError();
}

TEST_F(FakeCudaGraph, TheDefaultStreamIsNotCaptured) {
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
  float* x = DeviceMemory();
  const cudaStream_t blocking = Stream(cudaStreamDefault);
  Begin(blocking, cudaStreamCaptureModeRelaxed);
  EXPECT_EQ(Fill(x, 1, nullptr), cudaErrorStreamCaptureImplicit);
  EXPECT_OK(End(blocking));
  cudaGetLastError();
}

TEST_F(FakeCudaGraph, AGraphLaunchedInACaptureBecomesPartOfTheNewGraph) {
  const cudaStream_t stream = Stream();
  float* x = DeviceMemory();
  Begin(stream);
  EXPECT_OK(Add(x, x, stream));
  EXPECT_OK(Add(x, x, stream));
  const cudaGraphExec_t inner = EndAndInstantiate(stream);
  Begin(stream);
  EXPECT_OK(Fill(x, 1, stream));
  EXPECT_OK(cudaGraphLaunch(inner, stream));
  EXPECT_OK(cudaGraphLaunch(inner, stream));
  const cudaGraphExec_t outer = EndAndInstantiate(stream);
  EXPECT_OK(cudaGraphExecDestroy(inner));
  for (int i = 0; i < 2; ++i) {
    EXPECT_OK(cudaGraphLaunch(outer, stream));
    EXPECT_EQ(Read(x), AllOf(16));
  }
  EXPECT_OK(cudaGraphExecDestroy(outer));
}

TEST_F(FakeCudaGraph, AnEmptyGraphRuns) {
  const cudaStream_t stream = Stream();
  Begin(stream);
  const cudaGraphExec_t graph = EndAndInstantiate(stream);
  EXPECT_OK(cudaGraphLaunch(graph, stream));
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_OK(cudaGraphExecDestroy(graph));
  EXPECT_EQ(cudaGraphLaunch(graph, stream), cudaErrorInvalidValue);
  cudaGetLastError();
}
}  // namespace
}  // namespace carousel::testing
