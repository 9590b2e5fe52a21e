// Matrix products of bf16 on the processor's matrix tiles (Intel AMX), with sums in f32.
//
// c = op(a) op(b): the right operand is packed once per call, panel by panel, the left one by each task for
// its rows. A panel is 32 columns of op(b) and the whole of K; a task is a block of rows and panels. Every
// output is one sum over ascending k, so its bits do not depend on the cut into tasks.
#pragma once
#include <cstdint>

namespace carousel::cpu {

struct TileProduct {
  void* c;
  const uint16_t* a;
  const uint16_t* b;
  const float* bias;  // may be null
  int64_t M, N, K;
  int64_t lda, ldb, ldc;
  bool transpose_a, transpose_b, accumulate;
  bool c_is_bf16;
};
constexpr int64_t kTilePanel = 32;  // columns of a panel; rows are packed in units of as many
constexpr int64_t kTileInner = 32;  // K is padded with zeros to a multiple
// Elements of a packed panel, and of kTilePanel packed rows.
constexpr int64_t PackedPanelElems(int64_t K) {
  return (K + kTileInner - 1) / kTileInner * kTileInner * kTilePanel;
}

struct MatmulTileKernels {
  // Packs columns [column, column + kTilePanel) of op(b) (zeros beyond N).
  void (*pack_panel)(const TileProduct&, int64_t column, uint16_t* panel);
  // Rows [row, row + rows) of `num_panels` panels that begin at `column`. scratch: PackedPanelElems(K).
  void (*multiply)(const TileProduct&, int64_t row, int64_t rows, int64_t column, int64_t num_panels,
                   const uint16_t* panels, uint16_t* scratch);
};
#if defined(__x86_64__)
namespace simd_tiles {
const MatmulTileKernels& GetMatmulTileKernels();
}
#endif
}  // namespace carousel::cpu
