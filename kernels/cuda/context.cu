// context.cu - the stream's launches, scratch memory and errors.
#include "kernels/cuda/context.h"

#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/matmul_engine.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {
constexpr int64_t kScratchAlignBytes = 256;

// "a kernel: cudaErrorInvalidValue: invalid argument". CheckFailed adds the rank and the step.
[[noreturn]] void Die(cudaError_t status, const std::string& what) {
  const std::string name = cudaGetErrorName(status), text = cudaGetErrorString(status);
  CheckFailed(__FILE__, __LINE__, what + " failed: " + name + (text == name ? "" : ": " + text));
}
}  // namespace

void CheckCuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) Die(status, what);
}

Context::Context(const DeviceInfo& info, cudaStream_t stream, int64_t* scratch_generation)
    : info_(info), stream_(stream), scratch_generation_(*scratch_generation) {}

Context::~Context() {
  matmul_.reset();
  if (scratch_ == nullptr) return;
  ++scratch_generation_;
  cudaFree(scratch_);  // an error was or will be reported by the device
}

MatmulEngine& Context::matmul() {
  if (matmul_ == nullptr) matmul_ = std::make_unique<MatmulEngine>(stream_, info_);
  return *matmul_;
}

void Context::Check(cudaError_t status, const char* what) const {
  if (status == cudaSuccess) return;
  std::string text = what;
  // The runtime reports a kernel's error at some later call and does not say whose it is.
  const uint64_t n = std::min<uint64_t>(num_launches_, kNumRecent);
  for (uint64_t i = 0; i < n; ++i) {
    text += i == 0 ? " (kernels launched last, newest first: " : ", ";
    text += recent_[(num_launches_ - 1 - i) % kNumRecent];
  }
  if (n > 0) text += "; with CUDA_LAUNCH_BLOCKING=1 in the environment the failing one is named)";
  Die(status, text);
}

void Context::CheckLaunch(cudaError_t status, const char* kernel) {
  if (status == cudaSuccess) {
    recent_[num_launches_++ % kNumRecent] = kernel;
    return;
  }
  Check(status, (std::string("launch of ") + kernel).c_str());
}

void Context::Synchronize() { Check(cudaStreamSynchronize(stream_), "Synchronize"); }

void* Context::Scratch(int64_t bytes) {
  CAROUSEL_CHECK_GE(bytes, int64_t{0});
  const int64_t rounded = (bytes + kScratchAlignBytes - 1) / kScratchAlignBytes * kScratchAlignBytes;
  if (rounded > scratch_bytes_) GrowScratch(rounded);
  if (rounded == 0) return scratch_;
  // The end of the block: tools then see what an op writes past its memory.
  void* memory = static_cast<char*>(scratch_) + (scratch_bytes_ - rounded);
#ifndef __CUDACC__
  // What an earlier op left must not be of use to this one: NaN in every floating-point format.
  Check(cudaMemsetAsync(memory, 0xff, static_cast<size_t>(rounded), stream_), "poisoning scratch memory");
#endif
  return memory;
}

void Context::GrowScratch(int64_t bytes) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  Check(cudaStreamIsCapturing(stream_, &capture), "cudaStreamIsCapturing");
  CAROUSEL_CHECK_MSG(capture == cudaStreamCaptureStatusNone,
                     "scratch memory grows from " + std::to_string(scratch_bytes_) + " to " +
                         std::to_string(bytes) + " bytes while a graph is captured");
  // Kernels that use the old memory may still run; cudaFree waits for them.
  if (scratch_ != nullptr) Check(cudaFree(scratch_), "release of scratch memory");
  scratch_ = nullptr;
  ++scratch_generation_;
  // By half more than there was, so that slowly growing sizes do not each wait; the wish itself where memory
  // is short.
  const int64_t generous = scratch_bytes_ + scratch_bytes_ / 2 / kScratchAlignBytes * kScratchAlignBytes;
  scratch_bytes_ = std::max(bytes, generous);
  cudaError_t status = cudaMalloc(&scratch_, static_cast<size_t>(scratch_bytes_));
  if (status == cudaErrorMemoryAllocation && scratch_bytes_ > bytes) {
    cudaGetLastError();  // not an error of a later call
    scratch_bytes_ = bytes;
    status = cudaMalloc(&scratch_, static_cast<size_t>(bytes));
  }
  if (status == cudaSuccess) return;
  const std::string what =
      "scratch memory of " + std::to_string(bytes) +
      " bytes for an op (a smaller micro-batch or shorter sequences need less): cudaMalloc";
  Check(status, what.c_str());
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
