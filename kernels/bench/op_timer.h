// What the benchmarks of ops share: tensors of random values on the device, and the clock.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/bench/op_bench.h"

namespace carousel {

class OpTimer {
 public:
  OpTimer(Device& device, const OpBenchShape& shape, int64_t repeats);
  ~OpTimer();  // frees every tensor
  OpTimer(const OpTimer&) = delete;
  OpTimer& operator=(const OpTimer&) = delete;

  Ops& ops() { return device_.ops(); }
  const OpBenchShape& shape() const { return shape_; }
  DType compute() const { return shape_.compute; }
  DType wide() const { return WideOf(shape_.compute); }

  // Uninitialised; normal random values of standard deviation `scale`; ids below `limit`. Owned here.
  Tensor Empty(DType dtype, std::initializer_list<int64_t> dims);
  Tensor Random(DType dtype, std::initializer_list<int64_t> dims, double scale = 1);
  Tensor Ids(int64_t count, int64_t limit);
  void FreeAll();

  struct Cost {
    int64_t calls = 0;
    double flops = 0;
    double bytes = 0;
    int64_t steps = 0;
    bool is_matmul = false;
  };
  // Short calls are timed in groups, so that the cost of waiting for the device does not count.
  void Time(const std::string& name, const Cost& cost, const std::function<void()>& call);
  std::vector<OpTiming> Take() { return std::move(timings_); }

 private:
  Device& device_;
  const OpBenchShape shape_;
  const int64_t repeats_;
  std::vector<void*> memory_;
  std::vector<float> normals_;
  std::vector<OpTiming> timings_;
};
}  // namespace carousel
