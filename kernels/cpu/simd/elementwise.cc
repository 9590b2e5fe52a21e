// Elementwise loops, sums over rows, the AdamW update. Formulas: core/ops.h.
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

void SoftCapForward(float* y, const float* x, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  ForEachVec(
      n, [&](int64_t i) { Store(y + i, Tanh(Load(x + i) * inverse) * cap); },
      [&](int64_t i, int64_t count) {
        StorePart(y + i, Tanh(LoadPart(x + i, count) * inverse) * cap, count);
      });
}

void SoftCapBackward(float* dx, const float* dy, const float* y, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  for (int64_t i = 0; i < n; ++i) {
    const float t = y[i] * inverse;
    dx[i] = dy[i] * (1.0f - t * t);
  }
}

template <class Y, class X>
CAROUSEL_INLINE void Convert(Y* y, const X* x, int64_t n) {
  ForEachVec(
      n, [&](int64_t i) { Store(y + i, Load(x + i)); },
      [&](int64_t i, int64_t count) { StorePart(y + i, LoadPart(x + i, count), count); });
}
void F32ToBf16(uint16_t* y, const float* x, int64_t n) { Convert(y, x, n); }
void Bf16ToF32(float* y, const uint16_t* x, int64_t n) { Convert(y, x, n); }

template <class Y, class A, class B>
void Add(void* y_any, const void* a_any, const void* b_any, int64_t n) {
  Y* y = static_cast<Y*>(y_any);
  const A* a = static_cast<const A*>(a_any);
  const B* b = static_cast<const B*>(b_any);
  ForEachVec(
      n, [&](int64_t i) { Store(y + i, Load(a + i) + Load(b + i)); },
      [&](int64_t i, int64_t count) {
        StorePart(y + i, LoadPart(a + i, count) + LoadPart(b + i, count), count);
      });
}

// No division by bias corrections per element: m_scale and v_scale hold their inverses.
template <bool kWeightF32, bool kWeightBf16>
CAROUSEL_INLINE void AdamWLoop(const AdamWRange& a, int64_t begin, int64_t end) {
  const float one_minus_beta1 = 1.0f - a.beta1, one_minus_beta2 = 1.0f - a.beta2;
  const auto update = [&](VecF grad, VecF& master, VecF& m, VecF& v) {
    const VecF g = grad * a.grad_scale;
    m = m * a.beta1 + g * one_minus_beta1;
    v = v * a.beta2 + g * g * one_minus_beta2;
    VecF root = v * a.v_scale;
    for (int lane = 0; lane < kLanes; ++lane) root[lane] = __builtin_sqrtf(root[lane]);
    master = master - (m * a.m_scale / (root + a.eps) + master * a.weight_decay) * a.lr;
  };
  ForEachVec(
      end - begin,
      [&](int64_t offset) {
        const int64_t i = begin + offset;
        VecF master = Load(a.master + i), m = Load(a.m + i), v = Load(a.v + i);
        update(Load(a.grad + i), master, m, v);
        Store(a.master + i, master);
        Store(a.m + i, m);
        Store(a.v + i, v);
        if constexpr (kWeightF32) Store(a.weight_f32 + i, master);
        if constexpr (kWeightBf16) Store(a.weight_bf16 + i, master);
      },
      [&](int64_t offset, int64_t count) {
        const int64_t i = begin + offset;
        VecF master = LoadPart(a.master + i, count), m = LoadPart(a.m + i, count),
             v = LoadPart(a.v + i, count);
        update(LoadPart(a.grad + i, count), master, m, v);
        StorePart(a.master + i, master, count);
        StorePart(a.m + i, m, count);
        StorePart(a.v + i, v, count);
        if constexpr (kWeightF32) StorePart(a.weight_f32 + i, master, count);
        if constexpr (kWeightBf16) StorePart(a.weight_bf16 + i, master, count);
      });
}
void AdamW(const AdamWRange& a, int64_t begin, int64_t end) {
  if (a.weight_f32 != nullptr) {
    AdamWLoop<true, false>(a, begin, end);
  } else if (a.weight_bf16 != nullptr) {
    AdamWLoop<false, true>(a, begin, end);
  } else {
    AdamWLoop<false, false>(a, begin, end);
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
      ForEachVec(
          columns, [&](int64_t c) { Store(block + c, Load(block + c) + Load(row + c)); },
          [&](int64_t c, int64_t count) {
            StorePart(block + c, LoadPart(block + c, count) + LoadPart(row + c, count), count);
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
