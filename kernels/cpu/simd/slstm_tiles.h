// The products of the sLSTM cell on the processor's matrix tiles (Intel AMX): operands bf16, sums f32. The
// same interface as SlstmVectorProducts. One tile row per sequence; R is stored tile by tile in the order of
// use, 16 columns of 32 inner values each, as 16 rows of pairs: row p / 2 is (p, j), (p + 1, j), (p, j + 1)
// ..
#pragma once
#include <immintrin.h>

#include "kernels/cpu/simd/slstm_products.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

class SlstmTileProducts {
 public:
  using Operand = uint16_t;
  static constexpr int64_t kMaxSequences = 16;

  // Tile registers belong to the thread; an object lives on the thread that made it.
  explicit SlstmTileProducts(int64_t rows) {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;  // palette: 8 registers of up to 16 rows x 64 bytes
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;                                             // bytes per row, 16 bits each
      config[48 + tile] = tile < 5 ? static_cast<uint8_t>(rows) : kTileRows;  // 0 .. 3 sums, 4 left, 5 right
    }
    asm volatile("" ::: "memory");
    _tile_loadconfig(config);
  }
  ~SlstmTileProducts() { _tile_release(); }
  SlstmTileProducts(const SlstmTileProducts&) = delete;
  SlstmTileProducts& operator=(const SlstmTileProducts&) = delete;

  // Tiles in the order [32 in][gate].
  static void PackPanel(const SlstmDims& d, const uint16_t* R, int64_t head, int64_t panel, float* to) {
    uint16_t* tile = reinterpret_cast<uint16_t*>(to);
    for (int64_t in = 0; in < d.Dp; in += kTileInner) {
      const __mmask32 wanted = FirstBits(d.D - in);
      for (int64_t gate = 0; gate < 4; ++gate, tile += kTileElems) {
        VecF pairs[kLanes];
        for (int64_t r = 0; r < kSlstmUnits; ++r) {
          const int64_t unit = panel * kSlstmUnits + r;
          const uint16_t* const from = R + ((gate * d.NH + head) * d.D + unit) * d.D + in;
          pairs[r] = unit < d.D ? reinterpret_cast<VecF>(_mm512_maskz_loadu_epi16(wanted, from)) : VecF{};
        }
        TransposeLanes(pairs);
        for (int r = 0; r < kTileRows; ++r) StoreBits(tile + r * kTileInner, pairs[r]);
      }
    }
  }
  // Blocks of up to 64 columns; in a block tiles in the order [gate][32 out][16 columns].
  static void PackTransposed(const SlstmDims& d, const uint16_t* R, int64_t head, float* to) {
    uint16_t* tile = reinterpret_cast<uint16_t*>(to);
    for (int64_t block = 0; block < d.Dp; block += kBlockColumns) {
      const int64_t end = block + kBlockColumns < d.Dp ? block + kBlockColumns : d.Dp;
      for (int64_t gate = 0; gate < 4; ++gate) {
        for (int64_t out = 0; out < d.Dp; out += kTileInner) {
          for (int64_t in = block; in < end; in += kTileColumns, tile += kTileElems) {
            const __mmask16 wanted = static_cast<__mmask16>(FirstBits(d.D - in));
            for (int64_t r = 0; r < kTileRows; ++r) {
              const uint16_t* const from = R + ((gate * d.NH + head) * d.D + out + 2 * r) * d.D + in;
              const __m256i upper = out + 2 * r < d.D ? _mm256_maskz_loadu_epi16(wanted, from) : __m256i{};
              const __m256i lower =
                  out + 2 * r + 1 < d.D ? _mm256_maskz_loadu_epi16(wanted, from + d.D) : __m256i{};
              StoreBits(tile + r * kTileInner, Interleave(upper, lower));
            }
          }
        }
      }
    }
  }

  void Gates(const SlstmDims& d, float* raw, const uint16_t* y, const float* panel) const {
    Product<4>(raw, 4 * kSlstmUnits, y, d.Dp, reinterpret_cast<const uint16_t*>(panel), d.Dp / kTileInner);
  }
  void Recurrent(const SlstmDims& d, float* dr, const uint16_t* draw, const float* packed) const {
    const uint16_t* tiles = reinterpret_cast<const uint16_t*>(packed);
    const int64_t steps = 4 * d.Dp / kTileInner;
    for (int64_t block = 0; block < d.Dp; block += kBlockColumns) {
      // Dp is a multiple of 32: a block has four tiles of columns or two
      if (block + kBlockColumns <= d.Dp) {
        Product<4>(dr + block, d.Dp, draw, 4 * d.Dp, tiles, steps);
      } else {
        Product<2>(dr + block, d.Dp, draw, 4 * d.Dp, tiles, steps);
      }
      tiles += 4 * steps * kTileElems;
    }
  }

 private:
  static constexpr int64_t kTileRows = 16, kTileInner = 32, kTileColumns = 16;
  static constexpr int64_t kTileElems = kTileRows * kTileInner;  // 1 KiB of bf16
  static constexpr int64_t kBlockColumns = 4 * kTileColumns;

  // out (rows, kTiles * 16) = left (rows, 32 steps) times the tiles [step][kTiles].
  template <int kTiles>
  static void Product(float* out, int64_t out_stride, const uint16_t* left, int64_t left_stride,
                      const uint16_t* right, int64_t steps) {
    asm volatile("" ::: "memory");  // a tile load does not say that it reads memory
    const int64_t left_bytes = left_stride * 2, out_bytes = out_stride * 4;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 4) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; ++step, right += kTiles * kTileElems) {
      _tile_loadd(4, left + step * kTileInner, left_bytes);
      _tile_loadd(5, right, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, right + kTileElems, 64);
      _tile_dpbf16ps(1, 4, 6);
      if constexpr (kTiles == 4) {
        _tile_loadd(7, right + 2 * kTileElems, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, right + 3 * kTileElems, 64);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + kTileColumns, out_bytes);
    if constexpr (kTiles == 4) {
      _tile_stored(2, out + 2 * kTileColumns, out_bytes);
      _tile_stored(3, out + 3 * kTileColumns, out_bytes);
    }
  }

  CAROUSEL_INLINE __mmask32 FirstBits(int64_t count) {
    return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1u;
  }
  CAROUSEL_INLINE void StoreBits(uint16_t* to, VecF bits) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(bits));
  }
  // a0 .. a15, b0 .. b15 to a0 b0 a1 b1 ..
  CAROUSEL_INLINE VecF Interleave(__m256i a, __m256i b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i halves = _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(a), b, 1);
    return reinterpret_cast<VecF>(_mm512_permutexvar_epi16(order, halves));
  }
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
