// Elementwise loops, sums over rows, the AdamW update. Formulas: core/ops.h.
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

void SoftCapForward(float* y, const float* x, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  ForEachVec(n,
             [&](int64_t i, auto count) { Store(y + i, Tanh(Load(x + i, count) * inverse) * cap, count); });
}

void SoftCapBackward(float* dx, const float* dy, const float* y, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  ForEachVec(n, [&](int64_t i, auto count) {
    const VecF t = Load(y + i, count) * inverse;
    Store(dx + i, Load(dy + i, count) * (1.0f - t * t), count);
  });
}

template <class Y, class X>
CAROUSEL_INLINE void Convert(Y* y, const X* x, int64_t n) {
  ForEachVec(n, [&](int64_t i, auto count) { Store(y + i, Load(x + i, count), count); });
}
void F32ToBf16(uint16_t* y, const float* x, int64_t n) { Convert(y, x, n); }
void Bf16ToF32(float* y, const uint16_t* x, int64_t n) { Convert(y, x, n); }

template <class Y, class A, class B>
void Add(void* y_any, const void* a_any, const void* b_any, int64_t n) {
  Y* y = static_cast<Y*>(y_any);
  const A* a = static_cast<const A*>(a_any);
  const B* b = static_cast<const B*>(b_any);
  ForEachVec(n, [&](int64_t i, auto count) { Store(y + i, Load(a + i, count) + Load(b + i, count), count); });
}

template <class Weight>
CAROUSEL_INLINE void AdamWLoop(const AdamWRange& a, Weight* weight, int64_t begin, int64_t end) {
  ForEachVec(end - begin, [&](int64_t offset, auto count) {
    const int64_t i = begin + offset;
    const VecF g = Load(a.grad + i, count) * a.grad_scale;
    const VecF m = Load(a.m + i, count) * a.beta1 + g * a.one_minus_beta1;
    const VecF v = Load(a.v + i, count) * a.beta2 + g * g * a.one_minus_beta2;
    const VecF master = Load(a.master + i, count);
    const VecF step = m * a.m_scale / (Sqrt(v * a.v_scale) + a.eps) + master * a.weight_decay;
    const VecF updated = master - step * a.lr;
    Store(a.m + i, m, count);
    Store(a.v + i, v, count);
    Store(a.master + i, updated, count);
    if (weight != nullptr) Store(weight + i, updated, count);
  });
}
void AdamW(const AdamWRange& a, int64_t begin, int64_t end) {
  if (a.weight_bf16 != nullptr) {
    AdamWLoop(a, a.weight_bf16, begin, end);
  } else {
    AdamWLoop(a, a.weight_f32, begin, end);
  }
}

// Sums of 64 rows are added up on their own first, so that the error grows with rows / 64 instead of rows.
template <class T>
CAROUSEL_INLINE void ColumnSum(float* y, const T* x, int64_t rows, int64_t columns, int64_t stride) {
  constexpr int64_t kBlockRows = 64;
  float total[kMaxSumColumns] = {};
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t end = begin + kBlockRows < rows ? begin + kBlockRows : rows;
    float block[kMaxSumColumns] = {};
    for (int64_t r = begin; r < end; ++r) {
      const T* row = x + r * stride;
      ForEachVec(columns, [&](int64_t c, auto count) {
        Store(block + c, Load(block + c, count) + Load(row + c, count), count);
      });
    }
    for (int64_t c = 0; c < columns; ++c) total[c] += block[c];
  }
  for (int64_t c = 0; c < columns; ++c) y[c] += total[c];
}
void ColumnSumF32(float* y, const float* x, int64_t rows, int64_t columns, int64_t stride) {
  ColumnSum(y, x, rows, columns, stride);
}
void ColumnSumBf16(float* y, const uint16_t* x, int64_t rows, int64_t columns, int64_t stride) {
  ColumnSum(y, x, rows, columns, stride);
}

// A square of a float is exact in double, so contraction cannot change the result.
double SquaredSum(const float* x, int64_t n) {
  constexpr int kSums = 16;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums; ++j) {
      const double value = x[i + j];
      sums[j] += value * value;
    }
  }
  for (int j = 0; i < n; ++i, ++j) {
    const double value = x[i];
    sums[j] += value * value;
  }
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return sums[0];
}
}  // namespace

const ElementwiseKernels& GetElementwiseKernels() {
  static constexpr ElementwiseKernels kernels = {
      .soft_cap_forward = SoftCapForward,
      .soft_cap_backward = SoftCapBackward,
      .f32_to_bf16 = F32ToBf16,
      .bf16_to_f32 = Bf16ToF32,
      .add = {{{Add<float, float, float>, Add<float, float, uint16_t>},
               {Add<float, uint16_t, float>, Add<float, uint16_t, uint16_t>}},
              {{Add<uint16_t, float, float>, Add<uint16_t, float, uint16_t>},
               {Add<uint16_t, uint16_t, float>, Add<uint16_t, uint16_t, uint16_t>}}},
      .adamw = AdamW,
      .column_sum_f32 = ColumnSumF32,
      .column_sum_bf16 = ColumnSumBf16,
      .squared_sum = SquaredSum,
  };
  return kernels;
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
