// MatmulEngine: c = op(a) op(b) (+ c) (+ bias) for f32 and bf16, sums in f32.
//
// The output is cut into tiles that depend on the shape alone. One thread computes a tile, slices of K one
// after the other, so the bits do not depend on the number of threads. Who multiplies:
//   f32                                  oneDNN's sgemm
//   bf16, processor with AMX             simd/matmul_tiles.h; oneDNN for a few rows (generation)
//   bf16, processor with AVX-512 BF16    oneDNN's matmul primitive
//   bf16, any other                      operands converted to f32, then as f32
#pragma once
#include <array>
#include <map>
#include <memory>
#include <vector>

#include "core/ops.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/simd/matmul_tiles.h"
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
  // Keeps references to pool and elementwise. use_tiles: REQUIRES a processor with AMX that lets this process
  // use it.
  MatmulEngine(ThreadPool& pool, const ElementwiseKernels& elementwise, SimdLevel level, bool use_tiles);
  ~MatmulEngine();

  // REQUIRES: shapes and dtypes as in MatmulArgs (checked by the caller); a and b are both f32 or both bf16.
  void Run(const MatmulArgs& a);

 private:
  // One matmul with its dims and leading dimensions spelled out; pointers are of the tensors' types.
  struct Problem;
  struct Tile;
  struct Primitives;  // oneDNN's objects, hidden from this header

  void RunF32(const Problem& p, const float* a, const float* b);
  void RunOneDnn(const Problem& p);
  void RunTiles(const Problem& p);
  void MultiplySlice(const TileProduct& product);
  void RunBf16ThroughF32(const Problem& p);

  ThreadPool& pool_;
  const ElementwiseKernels& elementwise_;
  const bool use_onednn_bf16_;
  const MatmulTileKernels* const tiles_;  // null if not used
  std::unique_ptr<Primitives> primitives_;
  AlignedBuffer<float> operands_;                   // bf16 operands converted to f32
  AlignedBuffer<uint16_t> packed_b_;                // panels of the right operand
  std::vector<AlignedBuffer<float>> tile_scratch_;  // by worker: a tile in f32 before it is rounded to bf16
  std::vector<AlignedBuffer<uint16_t>> packed_a_;   // by worker: rows of the left operand
};
}  // namespace carousel::cpu
