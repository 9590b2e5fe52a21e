// MatmulEngine: matrix products of one stream, c = op(a) op(b) (+ c) (+ bias), single or strided-batched.
//
// Two bodies stand behind this header: matmul_cublaslt.cu (GPUs: cuBLASLt) and simt/matmul_host.cc (the
// emulation: plain loops, queued on the stream like a kernel).
#pragma once
#include <cstdint>
#include <memory>

#include "core/base/dtype.h"
#include "kernels/cuda/context.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Row-major matrices in device memory. With batch > 1, matrix number i of an operand begins batch_stride * i
// elements after the first; a stride of 0 shares one a, b or bias among all products.
struct MatmulProduct {
  struct Operand {
    void* data = nullptr;
    DType dtype = DType::kF32;
    int64_t row_stride = 0;  // elements from row to row, at least the number of columns
    int64_t batch_stride = 0;
  };
  Operand c;  // (M, N), of the dtype of a, or f32 if a is bf16. Shares no memory with a, b and bias, and
              // its batches do not overlap
  Operand a;  // (M, K), or (K, M) if transpose_a; f32, bf16 or f64
  Operand b;  // (K, N), or (N, K) if transpose_b; dtype of a
  Operand bias = {};            // optional (N): WideOf(a.dtype), added to every row; row_stride is ignored
  int64_t M = 0, N = 0, K = 0;  // any of them may be 0; a sum of no terms is 0
  int64_t batch = 1;
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // c += instead of c =
};

struct MatmulOptions {
  // Products of f32 round their operands to TF32 (11 significant bits). Otherwise they are true f32.
  bool allow_tf32 = false;
  // How many of cuBLASLt's suggestions are timed when a kind of product is first seen outside a graph
  // capture; the fastest serves all further ones of that kind. 1 times nothing and takes the first
  // suggestion: then two processes give the same bits, which timing cannot promise.
  int num_timed_candidates = 1;
};

class MatmulEngine {
 public:
  // The stream must outlive the engine. Allocates the library's workspace and keeps it.
  MatmulEngine(cudaStream_t stream, const DeviceInfo& info, const MatmulOptions& options = {});
  ~MatmulEngine();
  MatmulEngine(const MatmulEngine&) = delete;
  MatmulEngine& operator=(const MatmulEngine&) = delete;

  // Enqueues the product and returns at once. Sums are in f32 (f64 for f64), rounded once on their way to c.
  // Any row stride and any alignment of at least one element is served. Equal products on equal operands give
  // equal bits within a process. May be called while the stream is captured into a graph.
  void Run(const MatmulProduct& product);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};
}  // namespace carousel::CAROUSEL_DEVICE_NS
