// What cuDNN is measured against: ops that cuDNN has too, each with the graphs that would do its work.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "kernels/bench/cudnn_graph.h"
#include "kernels/bench/op_timer.h"

namespace carousel {

// Where the tensors of the comparison lie. Without a device they have no memory: then plans can be made only.
class CudnnBench {
 public:
  CudnnBench(Device* device, CudnnTarget* target, int64_t repeats);  // all but `device` must outlive this

  bool runs() const { return device_ != nullptr; }
  Device& device() { return *device_; }
  OpTimer& timer() { return *timer_; }
  CudnnTarget* target() { return target_; }

  Tensor Empty(DType dtype, std::initializer_list<int64_t> dims);  // zeros
  // (rows, columns): normal random values that bf16 holds exactly, other ones in every call.
  Tensor Values(DType dtype, int64_t rows, int64_t columns);
  void FreeAll();

 private:
  Device* const device_;
  CudnnTarget* const target_;
  std::unique_ptr<OpTimer> timer_;
  int64_t num_values_ = 0;
};

// One step of cuDNN's way: graphs that do the same, of which the fastest counts, or an op of ours.
struct CudnnStep {
  std::string name;
  std::vector<std::unique_ptr<CudnnGraph>> graphs;
  std::function<void()> op;  // if there is no graph
};

struct CudnnCandidate {
  std::string op, shape;
  std::function<void()> ours;
  std::vector<CudnnStep> steps;
  struct Output {
    std::string name;
    Tensor ours, cudnn;  // element counts are equal, dtypes may differ
  };
  std::vector<Output> outputs;
  std::string obstacle;  // why the steps would not do in place of the op however fast they are; may be empty
};

// RMS norm, or layer norm with bias, over N tokens of width D; compute bf16.
std::vector<CudnnCandidate> CudnnNormCandidates(CudnnBench& bench, bool layer_norm, int64_t N, int64_t D);
// The causal depthwise convolution; compute bf16.
std::vector<CudnnCandidate> CudnnConvolutionCandidates(CudnnBench& bench, const CausalConvShape& shape);
}  // namespace carousel
