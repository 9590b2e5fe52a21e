// Small matrix products out of f32 vectors: the engine of the mLSTM cell for f32, and for bf16 without matrix
// tiles.
//
// An engine turns padded row-major matrices X (f32 or bf16) into left operands (rows x inner) and right
// operands (inner x columns), straight or transposed, with rows scaled on the way, and multiplies them.
// `pack` is scratch of X's size in f32; whether it is used is the engine's business, but X and pack must stay
// untouched as long as the operand is in use. The products of this engine: one block of kRows rows and two
// vectors of columns stays in registers while the inner index runs.
#pragma once
#include "kernels/cpu/simd/mlstm_kernels.h"
#include "kernels/cpu/simd/transpose.h"
#include "kernels/cpu/simd/vec.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

// Row i is multiplied by constant * row[i]; not at all if row is null.
struct RowScale {
  const float* row = nullptr;
  float constant = 1.0f;
  float operator[](int64_t i) const { return row[i] * constant; }
};

// Parts of a product that are known to be zero or not wanted. All are exact to blocks of kMlstmPad.
enum class Causal {
  kNone,
  kLowerOutput,   // only outputs (i, j) with j <= i are wanted
  kInnerUpToRow,  // left operand X is zero for inner > row; X above its diagonal blocks is not read
  kInnerFromRow,  // left operand X^T is zero for inner < row; X above its diagonal blocks is not read
};

class VectorEngine {
 public:
  struct Left {  // element (i, p) is data[i * stride + p], transposed: data[p * stride + i]
    const float* data;
    int64_t stride;
    bool transposed;
  };
  struct Right {  // element (p, j) is data[p * stride + j]
    const float* data;
    int64_t stride;
  };
  static constexpr int kRows = kLanes >= 16 ? 8 : 4;

  // X is rows x cols with row stride cols. Transposed: the operand is X^T, the scale still is that of rows of
  // X.
  template <class E>
  Left PackLeft(const E* X, int64_t rows, int64_t cols, float* pack, RowScale scale = {},
                Causal = Causal::kNone) const {
    return {Floats(X, rows, cols, pack, scale), cols, false};
  }
  template <class E>
  Left PackLeftTransposed(const E* X, int64_t rows, int64_t cols, float* pack, RowScale scale = {},
                          Causal = Causal::kNone) const {
    return {Floats(X, rows, cols, pack, scale), cols, true};
  }
  template <class E>
  Right PackRight(const E* X, int64_t rows, int64_t cols, float* pack) const {
    return {Floats(X, rows, cols, pack, {}), cols};
  }
  template <class E>
  Right PackRightTransposed(const E* X, int64_t rows, int64_t cols, float* pack) const {
    Transpose(pack, X, rows, cols);
    return {pack, rows};
  }

  // out (+)= left right, `inner` the inner size. out is (rows, cols) with row stride cols. All sizes are
  // multiples of kMlstmPad.
  void Multiply(float* out, int64_t rows, int64_t cols, bool accumulate, const Left& left, const Right& right,
                int64_t inner, Causal causal = Causal::kNone) const {
    for (int64_t i = 0; i < rows; i += kRows) {
      const int64_t begin = causal == Causal::kInnerFromRow ? i : 0;
      const int64_t end = causal == Causal::kInnerUpToRow ? i + kRows : inner;
      const int64_t wanted = causal == Causal::kLowerOutput ? (i / kMlstmPad + 1) * kMlstmPad : cols;
      for (int64_t j = 0; j < wanted; j += 2 * kLanes) {
        float* const block = out + i * cols + j;
        const float* const b = right.data + begin * right.stride + j;
        if (left.transposed) {
          Block<true>(block, cols, accumulate, left.data + begin * left.stride + i, left.stride, b,
                      right.stride, end - begin);
        } else {
          Block<false>(block, cols, accumulate, left.data + i * left.stride + begin, left.stride, b,
                       right.stride, end - begin);
        }
      }
    }
  }

 private:
  // X itself if it is f32 and not scaled.
  template <class E>
  static const float* Floats(const E* X, int64_t rows, int64_t cols, float* pack, RowScale scale) {
    if constexpr (sizeof(E) == sizeof(float)) {
      if (scale.row == nullptr) return X;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const VecF factor = Broadcast(scale.row == nullptr ? 1.0f : scale[i]);
      for (int64_t c = i * cols; c < (i + 1) * cols; c += kLanes) Store(pack + c, Load(X + c) * factor);
    }
    return pack;
  }

  template <bool kTransposed>
  static void Block(float* out, int64_t out_stride, bool accumulate, const float* a, int64_t a_stride,
                    const float* b, int64_t b_stride, int64_t inner) {
    VecF sum[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = accumulate ? Load(out + r * out_stride) : VecF{};
      sum[r][1] = accumulate ? Load(out + r * out_stride + kLanes) : VecF{};
    }
    for (int64_t p = 0; p < inner; ++p) {
      const VecF b0 = Load(b + p * b_stride), b1 = Load(b + p * b_stride + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const VecF a_rp = Broadcast(kTransposed ? a[p * a_stride + r] : a[r * a_stride + p]);
        sum[r][0] += a_rp * b0;
        sum[r][1] += a_rp * b1;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      Store(out + r * out_stride, sum[r][0]);
      Store(out + r * out_stride + kLanes, sum[r][1]);
    }
  }
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
