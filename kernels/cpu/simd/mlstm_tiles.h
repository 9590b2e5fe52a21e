// Small matrix products on the processor's matrix tiles (Intel AMX): operands bf16, sums f32. The engine of
// the mLSTM cell for bf16 where there are tiles; the same interface as VectorEngine in mlstm_products.h.
// Operands are stored tile by tile (16 rows of 64 bytes), so a tile is 1 KiB of contiguous memory.
#pragma once
#include <immintrin.h>

#include "kernels/cpu/simd/mlstm_products.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

class TileEngine {
 public:
  static constexpr int64_t kTileRows = 16, kTileInner = 32;  // a tile of a left operand: 16 rows x 32 inner
  static constexpr int64_t kTileElems = kTileRows * kTileInner;  // bf16

  // Tile (i / 16, p / 32) holds elements (i, p); row-major tiles, row-major in a tile.
  struct Left {
    const uint16_t* data;
    int64_t inner_tiles;
  };
  // Tile (p / 32, j / 16) holds elements (p, j) as 16 rows of pairs: row p / 2 is (p, j), (p + 1, j), (p, j +
  // 1), ...
  struct Right {
    const uint16_t* data;
    int64_t column_tiles;
  };

  // Tile registers belong to the thread; an engine lives on the thread that made it.
  TileEngine() {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;  // palette: 8 registers of 16 rows x 64 bytes
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;  // bytes per row, 16 bits each
      config[48 + tile] = kTileRows;
    }
    asm volatile("" ::: "memory");
    _tile_loadconfig(config);
  }
  ~TileEngine() { _tile_release(); }
  TileEngine(const TileEngine&) = delete;
  TileEngine& operator=(const TileEngine&) = delete;

  // X is rows x cols, row stride cols; both are multiples of kMlstmPad.
  Left PackLeft(const float* X, int64_t rows, int64_t cols, float* pack) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t i = 0; i < rows; i += kTileRows) {
      for (int64_t p = 0; p < cols; p += kTileInner, to += kTileElems) {
        for (int r = 0; r < kTileRows; ++r) StoreBits(to + r * kTileInner, RowPairs(X + (i + r) * cols + p));
      }
    }
    return {reinterpret_cast<const uint16_t*>(pack), cols / kTileInner};
  }
  Left PackLeftTransposed(const float* X, int64_t rows, int64_t cols, float* pack) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t i = 0; i < cols; i += kTileRows) {
      for (int64_t p = 0; p < rows; p += kTileInner, to += kTileElems) {
        VecF pairs[kLanes];
        for (int r = 0; r < kTileRows; ++r) pairs[r] = ColumnPairs(X + (p + 2 * r) * cols + i, cols);
        TransposeLanes(pairs);
        for (int r = 0; r < kTileRows; ++r) StoreBits(to + r * kTileInner, pairs[r]);
      }
    }
    return {reinterpret_cast<const uint16_t*>(pack), rows / kTileInner};
  }
  Right PackRight(const float* X, int64_t rows, int64_t cols, float* pack) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t p = 0; p < rows; p += kTileInner) {
      for (int64_t j = 0; j < cols; j += kTileRows, to += kTileElems) {
        for (int r = 0; r < kTileRows; ++r) {
          StoreBits(to + r * kTileInner, ColumnPairs(X + (p + 2 * r) * cols + j, cols));
        }
      }
    }
    return {reinterpret_cast<const uint16_t*>(pack), cols / kTileRows};
  }
  Right PackRightTransposed(const float* X, int64_t rows, int64_t cols, float* pack) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t p = 0; p < cols; p += kTileInner) {
      for (int64_t j = 0; j < rows; j += kTileRows, to += kTileElems) {
        VecF pairs[kLanes];
        for (int r = 0; r < kTileRows; ++r) pairs[r] = RowPairs(X + (j + r) * cols + p);
        TransposeLanes(pairs);
        for (int r = 0; r < kTileRows; ++r) StoreBits(to + r * kTileInner, pairs[r]);
      }
    }
    return {reinterpret_cast<const uint16_t*>(pack), rows / kTileRows};
  }

  void Multiply(float* out, int64_t rows, int64_t cols, bool accumulate, const Left& left, const Right& right,
                int64_t inner, Causal causal = Causal::kNone) const {
    asm volatile(
        "" ::
            : "memory");  // operands are in memory before the first tile load, which does not say it reads
    for (int64_t i = 0; i < rows; i += kMlstmPad) {
      const int64_t begin = causal == Causal::kInnerFromRow ? i : 0;
      const int64_t end = causal == Causal::kInnerUpToRow ? i + kMlstmPad : inner;
      const int64_t wanted = causal == Causal::kLowerOutput ? i + kMlstmPad : cols;
      const uint16_t* const a = left.data + i / kTileRows * left.inner_tiles * kTileElems;
      for (int64_t j = 0; j < wanted; j += kMlstmPad) {
        Block(out + i * cols + j, cols, accumulate, a, left.inner_tiles,
              right.data + j / kTileRows * kTileElems, right.column_tiles, begin / kTileInner,
              end / kTileInner);
      }
    }
  }

 private:
  // 32 x 32 outputs in tiles 0 .. 3; operands in tiles 4 .. 7.
  static void Block(float* out, int64_t out_stride, bool accumulate, const uint16_t* a, int64_t a_tiles,
                    const uint16_t* b, int64_t b_tiles, int64_t begin, int64_t end) {
    const int64_t out_bytes = out_stride * static_cast<int64_t>(sizeof(float));
    float* const lower = out + kTileRows * out_stride;
    if (accumulate) {
      _tile_loadd(0, out, out_bytes);
      _tile_loadd(1, out + kTileRows, out_bytes);
      _tile_loadd(2, lower, out_bytes);
      _tile_loadd(3, lower + kTileRows, out_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t p = begin; p < end; ++p) {
      _tile_loadd(4, a + p * kTileElems, 64);
      _tile_loadd(5, a + (a_tiles + p) * kTileElems, 64);
      _tile_loadd(6, b + p * b_tiles * kTileElems, 64);
      _tile_loadd(7, b + (p * b_tiles + 1) * kTileElems, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + kTileRows, out_bytes);
    _tile_stored(2, lower, out_bytes);
    _tile_stored(3, lower + kTileRows, out_bytes);
  }

  // 32 values of a row as 16 pairs.
  CAROUSEL_INLINE VecF RowPairs(const float* x) {
    return reinterpret_cast<VecF>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + kLanes), _mm512_loadu_ps(x)));
  }
  // 16 columns of two rows as 16 pairs (upper, lower).
  CAROUSEL_INLINE VecF ColumnPairs(const float* x, int64_t stride) {
    const __m512i halves =
        reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + stride), _mm512_loadu_ps(x)));
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return reinterpret_cast<VecF>(_mm512_permutexvar_epi16(interleave, halves));
  }
  CAROUSEL_INLINE void StoreBits(uint16_t* to, VecF bits) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(bits));
  }
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
