// MatmulEngine: c = op(a) op(b) (+ c) (+ bias) for f32 and bf16 by oneDNN.
//
// The output is cut into tiles that depend on the shape alone. Every tile is computed by one thread with the
// whole of K, so the bits do not depend on the number of threads. f32 uses oneDNN's sgemm. bf16 uses oneDNN
// matmul primitives where the processor multiplies bf16 (AMX or AVX-512 BF16); elsewhere the operands are
// converted to f32 first. Sums are in f32 always.
#pragma once
#include <array>
#include <map>
#include <memory>
#include <vector>

#include "core/ops.h"
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/thread_pool.h"

namespace carousel::cpu {

// Rows and columns of an output tile.
struct MatmulTiling {
  int64_t rows = 0, columns = 0;
};
// A pure function of the shape. whole_rows: prefer tiles as wide as the output.
MatmulTiling PickMatmulTiling(int64_t M, int64_t N, int64_t K, bool whole_rows);

class MatmulEngine {
 public:
  // Keeps references to both.
  MatmulEngine(ThreadPool& pool, const ElementwiseKernels& elementwise);
  ~MatmulEngine();

  // REQUIRES: shapes and dtypes as in MatmulArgs (checked by the caller); a and b are both f32 or both bf16.
  void Run(const MatmulArgs& a);

 private:
  // One matmul with its dims and leading dimensions spelled out; pointers are of the tensors' types.
  struct Problem;
  struct Tile;
  struct Primitives;  // oneDNN's objects, hidden from this header

  void RunF32(const Problem& p, const float* a, const float* b);
  void RunBf16(const Problem& p);
  void RunBf16ThroughF32(const Problem& p);

  ThreadPool& pool_;
  const ElementwiseKernels& elementwise_;
  const bool has_bf16_;
  std::unique_ptr<Primitives> primitives_;
  std::vector<std::vector<float>> tile_scratch_;  // by worker: a tile in f32 before it is rounded to bf16
  std::vector<float> operands_;                   // bf16 operands converted to f32
};
}  // namespace carousel::cpu
