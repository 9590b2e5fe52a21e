// The products of the sLSTM cell out of f32 vectors: for f32, and for bf16 without matrix tiles (products of
// bf16 values are exact in f32).
//
// An engine packs R (T: float or bf16, row (gate, head, out), column in) for either pass and multiplies rows
// of operands of its own element type, one row per sequence, padded to Dp:
//   Gates:     raw (rows, 4 * kSlstmUnits) = y (rows, Dp) times the panel     raw row: [gate][unit]
//   Recurrent: dr (rows, Dp) = draw (rows, 4 Dp) times R                      draw row: [gate][Dp]
// A row's sums run over the inner index in ascending order, whatever the number of rows.
#pragma once
#include "kernels/cpu/simd/slstm_kernels.h"
#include "kernels/cpu/simd/transpose.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

class SlstmVectorProducts {
 public:
  using Operand = float;
  static constexpr int kRows = kLanes >= 16 ? 8 : 4;  // with two vectors each, they fill the registers
  static constexpr int64_t kMaxSequences = kRows;

  explicit SlstmVectorProducts(int64_t rows) : rows_(rows) {}

  // Columns gate * kSlstmUnits + unit, in blocks as wide as a product; a block is (D, kBlock).
  template <class T>
  static void PackPanel(const SlstmDims& d, const T* R, int64_t head, int64_t panel, float* to) {
    for (int64_t gate = 0; gate < 4; ++gate) {
      for (int64_t i = 0; i < kSlstmUnits; i += kLanes) {
        const int64_t unit = panel * kSlstmUnits + i;
        const T* const from = R + ((gate * d.NH + head) * d.D + unit) * d.D;
        ForEachVec(d.D, [&](int64_t in, auto count) {
          VecF row[kLanes];
          for (int r = 0; r < kLanes; ++r)
            row[r] = unit + r < d.D ? Load(from + r * d.D + in, count) : VecF{};
          TransposeLanes(row);
          const int64_t column = gate * kSlstmUnits + i;
          float* const at = to + column / kBlock * kBlock * d.D + in * kBlock + column % kBlock;
          for (int r = 0; r < kLanes && in + r < d.D; ++r) Store(at + r * kBlock, row[r]);
        });
      }
    }
  }
  // Columns in, in blocks; a block is (4 D, kBlock), row gate * D + out.
  template <class T>
  static void PackTransposed(const SlstmDims& d, const T* R, int64_t head, float* to) {
    for (int64_t block = 0; block < d.Dp; block += kBlock) {
      for (int64_t gate = 0; gate < 4; ++gate) {
        for (int64_t out = 0; out < d.D; ++out, to += kBlock) {
          const T* const from = R + ((gate * d.NH + head) * d.D + out) * d.D + block;
          for (int64_t i = 0; i < kBlock; i += kLanes) {
            const int64_t left = d.D - block - i;
            Store(to + i, left >= kLanes ? Load(from + i) : LoadPart(from + i, left));
          }
        }
      }
    }
  }

  void Gates(const SlstmDims& d, float* raw, const float* y, const float* panel) const {
    for (int64_t column = 0; column < kColumns; column += kBlock) {
      ForRowBlocks([&]<int kCount>(int64_t r) {
        Sums<kCount> sums;
        sums.Add(y + r * d.Dp, d.Dp, panel + column * d.D, d.D);
        sums.Store(raw + r * kColumns + column, kColumns);
      });
    }
  }
  void Recurrent(const SlstmDims& d, float* dr, const float* draw, const float* packed) const {
    for (int64_t column = 0; column < d.Dp; column += kBlock) {
      ForRowBlocks([&]<int kCount>(int64_t r) {
        Sums<kCount> sums;
        for (int64_t gate = 0; gate < 4; ++gate) {
          sums.Add(draw + r * 4 * d.Dp + gate * d.Dp, 4 * d.Dp, packed + (4 * column + gate * kBlock) * d.D,
                   d.D);
        }
        sums.Store(dr + r * d.Dp + column, d.Dp);
      });
    }
  }

 private:
  static constexpr int64_t kColumns = 4 * kSlstmUnits;

  static constexpr int64_t kBlock = 2 * kLanes;
  static_assert(kSlstmPad % kBlock == 0 && kColumns % kBlock == 0);

  // kCount rows, one block of columns.
  template <int kCount>
  struct Sums {
    VecF sum[kCount][2] = {};
    [[gnu::always_inline]] void Add(const float* a, int64_t a_stride, const float* b, int64_t inner) {
      for (int64_t p = 0; p < inner; ++p) {
        const VecF b0 = Load(b + p * kBlock), b1 = Load(b + p * kBlock + kLanes);
        for (int r = 0; r < kCount; ++r) {
          const VecF a_rp = Broadcast(a[r * a_stride + p]);
          sum[r][0] += a_rp * b0;
          sum[r][1] += a_rp * b1;
        }
      }
    }
    [[gnu::always_inline]] void Store(float* to, int64_t stride) const {
      for (int r = 0; r < kCount; ++r) {
        CAROUSEL_SIMD_NS::Store(to + r * stride, sum[r][0]);
        CAROUSEL_SIMD_NS::Store(to + r * stride + kLanes, sum[r][1]);
      }
    }
  };
  template <class Body>
  [[gnu::always_inline]] void ForRowBlocks(Body&& body) const {
    int64_t r = 0;
    for (; r + kRows <= rows_; r += kRows) body.template operator()<kRows>(r);
    if constexpr (kRows > 4) {
      if (r + 4 <= rows_) body.template operator()<4>(r), r += 4;
    }
    if (r + 2 <= rows_) body.template operator()<2>(r), r += 2;
    if (r < rows_) body.template operator()<1>(r);
  }
  int64_t rows_;
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
