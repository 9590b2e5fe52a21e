// RMS norm and layer norm with the residual addition, and the table of the norms. Formulas: core/ops.h.
#include "kernels/cpu/simd/head_norm.h"
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

// The forward's y of columns c, c + 1, .. of a row, out of xhat: the backward gives the same bits.
template <class T, class Count>
CAROUSEL_INLINE void StoreNormed(T* y, VecF xhat, const float* scale, const float* bias, int64_t c,
                                 Count count) {
  VecF value = Opaque(xhat * Load(scale + c, count));
  if (bias != nullptr) value += Load(bias + c, count);
  Store(y + c, value, count);
}

template <class T>
void RmsNormForward(const RmsNormForwardRows<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* s = a.x + r * a.D;
    VecF squares = {};
    if (a.sum != nullptr) {
      // s = x + delta, kept
      float* sum = a.sum + r * a.D;
      ForEachVec(a.D, [&](int64_t c, auto count) {
        VecF value = Load(s + c, count);
        if (a.delta != nullptr) value += Load(a.delta + r * a.D + c, count);
        squares += value * value;
        Store(sum + c, value, count);
      });
      s = sum;
    } else {
      ForEachVec(a.D, [&](int64_t c, auto count) {
        const VecF value = Load(s + c, count);
        squares += value * value;
      });
    }
    const float rstd = 1.0f / __builtin_sqrtf(SumLanes(squares) / static_cast<float>(a.D) + a.eps);
    a.rstd[r] = rstd;
    T* y = a.y + r * a.D;
    ForEachVec(a.D, [&](int64_t c, auto count) {
      StoreNormed(y, Load(s + c, count) * rstd, a.weight, a.bias, c, count);
    });
  }
}

// xhat = x rstd; dx = rstd (w dy - xhat mean(w dy xhat)) + dresidual
template <class T>
void RmsNormBackward(const RmsNormBackwardRows<T>& a, int64_t begin, int64_t end, float* dweight,
                     float* dbias) {
  for (int64_t c = 0; c < a.D; ++c) dweight[c] = 0.0f;
  if (dbias != nullptr) {
    for (int64_t c = 0; c < a.D; ++c) dbias[c] = 0.0f;
  }
  for (int64_t r = begin; r < end; ++r) {
    const float* x = a.x + r * a.D;
    const T* dy = a.dy + r * a.D;
    const float rstd = a.rstd[r];
    VecF products = {};
    ForEachVec(a.D, [&](int64_t c, auto count) {
      const VecF g = Load(dy + c, count);
      const VecF g_xhat = g * (Load(x + c, count) * rstd);
      products += g_xhat * Load(a.weight + c, count);
      Store(dweight + c, Load(dweight + c, count) + g_xhat, count);
      if (dbias != nullptr) Store(dbias + c, Load(dbias + c, count) + g, count);
    });
    const float mean = SumLanes(products) / static_cast<float>(a.D);
    float* dx = a.dx + r * a.D;
    ForEachVec(a.D, [&](int64_t c, auto count) {
      const VecF xhat = Load(x + c, count) * rstd;
      VecF value = (Load(dy + c, count) * Load(a.weight + c, count) - xhat * mean) * rstd;
      if (a.dresidual != nullptr) value += Load(a.dresidual + r * a.D + c, count);
      Store(dx + c, value, count);
      if (a.dx_rounded != nullptr) Store(a.dx_rounded + r * a.D + c, value, count);
      if (a.y != nullptr) StoreNormed(a.y + r * a.D, xhat, a.weight, a.bias, c, count);
    });
  }
}

template <class T>
void LayerNormForward(const LayerNormForwardRows<T>& a, int64_t begin, int64_t end) {
  const float inverse = 1.0f / static_cast<float>(a.D);
  for (int64_t r = begin; r < end; ++r) {
    const float* s = a.x + r * a.D;
    VecF total = {};
    if (a.sum != nullptr) {
      // s = x + delta, kept
      float* sum = a.sum + r * a.D;
      ForEachVec(a.D, [&](int64_t c, auto count) {
        VecF value = Load(s + c, count);
        if (a.delta != nullptr) value += Load(a.delta + r * a.D + c, count);
        total += value;
        Store(sum + c, value, count);
      });
      s = sum;
    } else {
      ForEachVec(a.D, [&](int64_t c, auto count) { total += Load(s + c, count); });
    }
    const float mean = SumLanes(total) * inverse;
    VecF squares = {};
    ForEachVec(a.D, [&](int64_t c, auto count) {
      const VecF centred = Load(s + c, count, mean) - mean;  // 0 in missing lanes
      squares += centred * centred;
    });
    const float rstd = 1.0f / __builtin_sqrtf(SumLanes(squares) * inverse + a.eps);
    a.mean[r] = mean;
    a.rstd[r] = rstd;
    T* y = a.y + r * a.D;
    ForEachVec(a.D, [&](int64_t c, auto count) {
      StoreNormed(y, (Load(s + c, count) - mean) * rstd, a.scale, a.bias, c, count);
    });
  }
}

// xhat = (x - mean) rstd; dx = rstd (scale dy - mean(scale dy) - xhat mean(scale dy xhat)) + dresidual
template <class T>
void LayerNormBackward(const LayerNormBackwardRows<T>& a, int64_t begin, int64_t end, float* dweight,
                       float* dbias) {
  const float inverse = 1.0f / static_cast<float>(a.D);
  for (int64_t c = 0; c < a.D; ++c) dweight[c] = 0.0f;
  if (dbias != nullptr) {
    for (int64_t c = 0; c < a.D; ++c) dbias[c] = 0.0f;
  }
  for (int64_t r = begin; r < end; ++r) {
    const float* x = a.x + r * a.D;
    const T* dy = a.dy + r * a.D;
    const float mean = a.mean[r], rstd = a.rstd[r];
    VecF sum = {}, products = {};
    ForEachVec(a.D, [&](int64_t c, auto count) {
      const VecF g = Load(dy + c, count);  // 0 in missing lanes
      const VecF xhat = (Load(x + c, count) - mean) * rstd;
      const VecF dxhat = g * Load(a.scale + c, count);
      sum += dxhat;
      products += dxhat * xhat;
      Store(dweight + c, Load(dweight + c, count) + g * xhat, count);
      if (dbias != nullptr) Store(dbias + c, Load(dbias + c, count) + g, count);
    });
    const float mean_dxhat = SumLanes(sum) * inverse;
    const float mean_product = SumLanes(products) * inverse;
    float* dx = a.dx + r * a.D;
    ForEachVec(a.D, [&](int64_t c, auto count) {
      const VecF xhat = (Load(x + c, count) - mean) * rstd;
      const VecF dxhat = Load(dy + c, count) * Load(a.scale + c, count);
      VecF value = (dxhat - mean_dxhat - xhat * mean_product) * rstd;
      if (a.dresidual != nullptr) value += Load(a.dresidual + r * a.D + c, count);
      Store(dx + c, value, count);
      if (a.dx_rounded != nullptr) Store(a.dx_rounded + r * a.D + c, value, count);
      if (a.y != nullptr) StoreNormed(a.y + r * a.D, xhat, a.scale, a.bias, c, count);
    });
  }
}

template <class T>
constexpr NormKernels<T> kKernels = {
    .rms_norm_forward = RmsNormForward<T>,
    .rms_norm_backward = RmsNormBackward<T>,
    .layer_norm_forward = LayerNormForward<T>,
    .layer_norm_backward = LayerNormBackward<T>,
    .head_norm_gate_forward =
        {{HeadNormGateForward<T, RowGate::kNone, false>, HeadNormGateForward<T, RowGate::kNone, true>},
         {HeadNormGateForward<T, RowGate::kSigmoid, false>, HeadNormGateForward<T, RowGate::kSigmoid, true>},
         {HeadNormGateForward<T, RowGate::kSilu, false>, HeadNormGateForward<T, RowGate::kSilu, true>}},
    .head_norm_gate_backward = {{HeadNormGateBackward<T, RowGate::kNone, false>,
                                 HeadNormGateBackward<T, RowGate::kNone, true>},
                                {HeadNormGateBackward<T, RowGate::kSigmoid, false>,
                                 HeadNormGateBackward<T, RowGate::kSigmoid, true>},
                                {HeadNormGateBackward<T, RowGate::kSilu, false>,
                                 HeadNormGateBackward<T, RowGate::kSilu, true>}},
};
}  // namespace

const NormKernels<float>& GetNormKernelsF32() { return kKernels<float>; }
const NormKernels<uint16_t>& GetNormKernelsBf16() { return kKernels<uint16_t>; }
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
