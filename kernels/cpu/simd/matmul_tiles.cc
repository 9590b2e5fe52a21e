#include "kernels/cpu/simd/matmul_tiles.h"

#include <immintrin.h>

#include "kernels/cpu/simd/transpose.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {
constexpr int kTileRows = 16;                           // rows of a tile register, each of 64 bytes
constexpr int64_t kTileElems = kTileRows * kTileInner;  // bf16 elements of a tile

int64_t InnerTiles(const TileProduct& p) { return (p.K + kTileInner - 1) / kTileInner; }
// The first `count` of 32 lanes of 16 bits.
CAROUSEL_INLINE __mmask32 Lanes(int64_t count) {
  return count >= 32 ? ~__mmask32{0} : count <= 0 ? __mmask32{0} : (__mmask32{1} << count) - 1;
}

// 16 pairs (k, k + 1) of each of up to 16 rows of a row-major matrix of bf16: row r of the result is x[r *
// stride + 0..31], zero where r >= rows or the inner index >= inner.
CAROUSEL_INLINE void LoadRows(const uint16_t* x, int64_t stride, int64_t rows, int64_t inner, VecF* pairs) {
  const __mmask32 lanes = Lanes(inner);
  for (int r = 0; r < kTileRows; ++r) {
    pairs[r] = r < rows ? reinterpret_cast<VecF>(_mm512_maskz_loadu_epi16(lanes, x + r * stride)) : VecF{};
  }
}
// 16 columns of each of up to 32 rows, as 16 vectors of pairs of rows: vector r is (x[2r][0], x[2r+1][0],
// x[2r][1], ..).
CAROUSEL_INLINE void LoadRowPairs(const uint16_t* x, int64_t stride, int64_t rows, int64_t columns,
                                  VecF* pairs) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __mmask16 lanes = static_cast<__mmask16>(Lanes(columns));
  for (int r = 0; r < kTileRows; ++r) {
    const __mmask16 upper_lanes = 2 * r < rows ? lanes : 0, lower_lanes = 2 * r + 1 < rows ? lanes : 0;
    const __m256i upper = _mm256_maskz_loadu_epi16(upper_lanes, x + (2 * r) * stride);
    const __m256i lower = _mm256_maskz_loadu_epi16(lower_lanes, x + (2 * r + 1) * stride);
    const __m512i both = _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(upper), lower, 1);
    pairs[r] = reinterpret_cast<VecF>(_mm512_permutexvar_epi16(order, both));
  }
}
CAROUSEL_INLINE void StoreTile(uint16_t* tile, const VecF* rows) {
  for (int r = 0; r < kTileRows; ++r)
    _mm512_storeu_si512(tile + r * kTileInner, reinterpret_cast<__m512i>(rows[r]));
}

// Right operand: tile rows are pairs of k, tile columns are columns of op(b). Panel: for each 32 k, two
// tiles.
void PackPanel(const TileProduct& p, int64_t column, uint16_t* panel) {
  for (int64_t k = 0; k < p.K; k += kTileInner) {
    for (int64_t j = column; j < column + kTilePanel; j += kTileRows, panel += kTileElems) {
      VecF rows[kTileRows];
      if (p.transpose_b) {
        LoadRows(p.b + j * p.ldb + k, p.ldb, p.N - j, p.K - k, rows);
        TransposeLanes(rows);
      } else {
        LoadRowPairs(p.b + k * p.ldb + j, p.ldb, p.K - k, p.N - j, rows);
      }
      StoreTile(panel, rows);
    }
  }
}

// Left operand: tile rows are rows of op(a), tile columns are k. For each 32 k, two tiles of rows [row, row +
// 32).
void PackRows(const TileProduct& p, int64_t row, uint16_t* packed) {
  for (int64_t k = 0; k < p.K; k += kTileInner) {
    for (int64_t r = row; r < row + kTilePanel; r += kTileRows, packed += kTileElems) {
      VecF tile[kTileRows];
      if (p.transpose_a) {
        LoadRowPairs(p.a + k * p.lda + r, p.lda, p.K - k, p.M - r, tile);
        TransposeLanes(tile);
      } else {
        LoadRows(p.a + r * p.lda + k, p.lda, p.M - r, p.K - k, tile);
      }
      StoreTile(packed, tile);
    }
  }
}

// Tiles 0 .. 3 += 32 packed rows times a panel; operands in tiles 4 .. 7.
CAROUSEL_INLINE void MultiplyPanel(const uint16_t* a, const uint16_t* b, int64_t inner_tiles) {
  for (int64_t k = 0; k < inner_tiles; ++k, a += 2 * kTileElems, b += 2 * kTileElems) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTileElems, 64);
    _tile_loadd(5, a + kTileElems, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}
CAROUSEL_INLINE void StoreSums(float* c, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + kTileRows, bytes);
  _tile_stored(2, c + kTileRows * stride, bytes);
  _tile_stored(3, c + kTileRows * stride + kTileRows, bytes);
}

// Rows of a 32 x 32 block of sums to c, with what has to be added to them.
template <class C>
CAROUSEL_INLINE void Finish(const TileProduct& p, const float* sums, int64_t row, int64_t column) {
  const int64_t rows = p.M - row < kTilePanel ? p.M - row : kTilePanel;
  for (int64_t j = 0; j < kTilePanel && column + j < p.N; j += kLanes) {
    const int64_t left = p.N - column - j;
    const auto finish = [&](auto count) {
      const VecF bias = p.bias == nullptr ? VecF{} : Load(p.bias + column + j, count);
      for (int64_t r = 0; r < rows; ++r) {
        C* c = static_cast<C*>(p.c) + (row + r) * p.ldc + column + j;
        VecF value = Load(sums + r * kTilePanel + j);
        if (p.bias != nullptr) value += bias;
        if (p.accumulate) value += Load(c, count);
        Store(c, value, count);
      }
    };
    if (left >= kLanes) {
      finish(FullVec{});
    } else {
      finish(left);
    }
  }
}
// The common case: a whole block, bf16, nothing to add.
CAROUSEL_INLINE void RoundBlock(const float* sums, uint16_t* c, int64_t ldc) {
  for (int64_t r = 0; r < kTilePanel; ++r) {
    const __m512 low = _mm512_load_ps(sums + r * kTilePanel),
                 high = _mm512_load_ps(sums + r * kTilePanel + kLanes);
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(c + r * ldc, reinterpret_cast<__m512i>(both));
  }
}

// Asks for the lines of a block of c, which are written next: they come while the block is computed.
CAROUSEL_INLINE void PrefetchBlock(const TileProduct& p, int64_t row, int64_t column) {
  const int64_t elem_bytes = p.c_is_bf16 ? 2 : 4, rows = p.M - row < kTilePanel ? p.M - row : kTilePanel;
  const char* c = static_cast<const char*>(p.c) + (row * p.ldc + column) * elem_bytes;
  for (int64_t r = 0; r < rows; ++r, c += p.ldc * elem_bytes) {
    __builtin_prefetch(c, 1);
    if (!p.c_is_bf16) __builtin_prefetch(c + 64, 1);
  }
}

void Multiply(const TileProduct& p, int64_t row, int64_t rows, int64_t column, int64_t num_panels,
              const uint16_t* panels, uint16_t* scratch) {
  const int64_t inner_tiles = InnerTiles(p), panel_elems = PackedPanelElems(p.K);
  const bool nothing_to_add = p.bias == nullptr && !p.accumulate;
  alignas(64) uint8_t config[64] = {};
  config[0] = 1;  // palette: 8 registers
  for (int tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = 64;  // bytes per row
    config[48 + tile] = kTileRows;
  }
  // Tile instructions do not tell the compiler which memory they read and write: barriers stand around them.
  asm volatile("" ::: "memory");
  _tile_loadconfig(config);
  alignas(64) float sums[kTilePanel * kTilePanel];
  for (int64_t i = row; i < row + rows; i += kTilePanel) {
    PackRows(p, i, scratch);
    // Packed rows stay in the first-level cache, panels stream from the second, c is written along its rows.
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const int64_t j = column + panel * kTilePanel;
      const bool whole = i + kTilePanel <= p.M && j + kTilePanel <= p.N;
      PrefetchBlock(p, i, j);
      asm volatile("" ::: "memory");
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      MultiplyPanel(scratch, panels + panel * panel_elems, inner_tiles);
      if (whole && nothing_to_add && !p.c_is_bf16) {
        StoreSums(static_cast<float*>(p.c) + i * p.ldc + j, p.ldc);
        continue;
      }
      StoreSums(sums, kTilePanel);
      asm volatile("" ::: "memory");
      if (whole && nothing_to_add) {
        RoundBlock(sums, static_cast<uint16_t*>(p.c) + i * p.ldc + j, p.ldc);
      } else if (p.c_is_bf16) {
        Finish<uint16_t>(p, sums, i, j);
      } else {
        Finish<float>(p, sums, i, j);
      }
    }
  }
  asm volatile("" ::: "memory");
  _tile_release();
}
}  // namespace

const MatmulTileKernels& GetMatmulTileKernels() {
  static constexpr MatmulTileKernels kernels = {.pack_panel = PackPanel, .multiply = Multiply};
  return kernels;
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
