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

  // X is rows x cols, row stride cols, f32 or bf16; rows and cols are multiples of kMlstmPad.
  template <class E>
  Left PackLeft(const E* X, int64_t rows, int64_t cols, float* pack, RowScale scale = {},
                Causal causal = Causal::kNone) const {
    const int64_t inner_tiles = cols / kTileInner;
    uint16_t* const to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t end = causal == Causal::kInnerUpToRow ? (i / kMlstmPad + 1) * kMlstmPad : cols;
      uint16_t* const row = to + (i / kTileRows * inner_tiles * kTileRows + i % kTileRows) * kTileInner;
      for (int64_t p = 0; p < end; p += kTileInner)
        StoreBits(row + p * kTileRows, RowPairs(X + i * cols + p, scale, i));
    }
    return {to, inner_tiles};
  }
  template <class E>
  Left PackLeftTransposed(const E* X, int64_t rows, int64_t cols, float* pack, RowScale scale = {},
                          Causal causal = Causal::kNone) const {
    uint16_t* const to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t i = 0; i < cols; i += kTileRows) {
      const int64_t begin = causal == Causal::kInnerFromRow ? i / kMlstmPad * kMlstmPad : 0;
      for (int64_t p = begin; p < rows; p += kTileInner) {
        uint16_t* const tile = to + i * rows + p * kTileRows;
        VecF pairs[kLanes];
        for (int r = 0; r < kTileRows; ++r) pairs[r] = ColumnPairs(X + i, cols, scale, p + 2 * r);
        TransposeLanes(pairs);
        for (int r = 0; r < kTileRows; ++r) StoreBits(tile + r * kTileInner, pairs[r]);
      }
    }
    return {to, rows / kTileInner};
  }
  template <class E>
  Right PackRight(const E* X, int64_t rows, int64_t cols, float* pack) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t p = 0; p < rows; p += kTileInner) {
      for (int64_t j = 0; j < cols; j += kTileRows, to += kTileElems) {
        for (int r = 0; r < kTileRows; ++r)
          StoreBits(to + r * kTileInner, ColumnPairs(X + j, cols, {}, p + 2 * r));
      }
    }
    return {reinterpret_cast<const uint16_t*>(pack), cols / kTileRows};
  }
  template <class E>
  Right PackRightTransposed(const E* X, int64_t rows, int64_t cols, float* pack) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(pack);
    for (int64_t p = 0; p < cols; p += kTileInner) {
      for (int64_t j = 0; j < rows; j += kTileRows, to += kTileElems) {
        VecF pairs[kLanes];
        for (int r = 0; r < kTileRows; ++r) pairs[r] = RowPairs(X + (j + r) * cols + p, {}, j + r);
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

  // 32 values of row i as 16 pairs of bf16.
  CAROUSEL_INLINE VecF RowPairs(const float* x, RowScale scale, int64_t i) {
    if (scale.row == nullptr) return Pairs(Load(x), Load(x + kLanes));
    const VecF factor = Broadcast(scale[i]);
    return Pairs(Load(x) * factor, Load(x + kLanes) * factor);
  }
  CAROUSEL_INLINE VecF RowPairs(const uint16_t* x, RowScale scale, int64_t i) {
    if (scale.row == nullptr) return reinterpret_cast<VecF>(_mm512_loadu_si512(x));
    const VecF factor = Broadcast(scale[i]);
    return Pairs(Load(x) * factor, Load(x + kLanes) * factor);
  }
  // 16 columns of rows i and i + 1 as 16 pairs (upper, lower).
  CAROUSEL_INLINE VecF ColumnPairs(const float* x, int64_t stride, RowScale scale, int64_t i) {
    return Interleave(Pairs(Scaled(x, stride, scale, i), Scaled(x, stride, scale, i + 1)));
  }
  CAROUSEL_INLINE VecF ColumnPairs(const uint16_t* x, int64_t stride, RowScale scale, int64_t i) {
    if (scale.row != nullptr) {
      return Interleave(Pairs(Scaled(x, stride, scale, i), Scaled(x, stride, scale, i + 1)));
    }
    const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * stride));
    const __m256i lower = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + (i + 1) * stride));
    return Interleave(
        reinterpret_cast<VecF>(_mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(upper), lower, 1)));
  }
  template <class E>
  CAROUSEL_INLINE VecF Scaled(const E* x, int64_t stride, RowScale scale, int64_t i) {
    const VecF row = Load(x + i * stride);
    return scale.row == nullptr ? row : row * Broadcast(scale[i]);
  }
  // 32 bf16: first, then second.
  CAROUSEL_INLINE VecF Pairs(VecF first, VecF second) {
    return reinterpret_cast<VecF>(
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
  }
  // a0 .. a15 b0 .. b15 to a0 b0 a1 b1 ..
  CAROUSEL_INLINE VecF Interleave(VecF halves) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return reinterpret_cast<VecF>(_mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(halves)));
  }
  CAROUSEL_INLINE void StoreBits(uint16_t* to, VecF bits) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(bits));
  }
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
