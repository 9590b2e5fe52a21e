// RMS norm with the residual addition, and the per-head norm with the output gate. Formulas: core/ops.h.
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

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
      VecF value = Load(s + c, count) * rstd * Load(a.weight + c, count);
      if (a.bias != nullptr) value += Load(a.bias + c, count);
      Store(y + c, value, count);
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
    });
  }
}

template <class T>
void HeadNormGateForward(const HeadNormGateForwardRows<T>& a, int64_t begin, int64_t end) {
  const float inverse = 1.0f / static_cast<float>(a.DHV);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t head = 0; head < a.NH; ++head) {
      const int64_t column = head * a.DHV;
      const T* h = a.h + r * a.NH * a.DHV + column;
      const T* o = a.o_pre + r * a.o_stride + column;
      const float* weight = a.weight + column;
      VecF sum = {};
      ForEachVec(a.DHV, [&](int64_t c, auto count) { sum += Load(h + c, count); });
      const float mean = SumLanes(sum) * inverse;
      VecF squares = {};
      ForEachVec(a.DHV, [&](int64_t c, auto count) {
        const VecF centred = Load(h + c, count, mean) - mean;  // 0 in missing lanes
        squares += centred * centred;
      });
      const float rstd = 1.0f / __builtin_sqrtf(SumLanes(squares) * inverse + a.eps);
      a.mean[r * a.NH + head] = mean;
      a.rstd[r * a.NH + head] = rstd;
      T* y = a.y + r * a.NH * a.DHV + column;
      ForEachVec(a.DHV, [&](int64_t c, auto count) {
        VecF z = (Load(h + c, count) - mean) * rstd * Load(weight + c, count);
        if (a.bias != nullptr) z += Load(a.bias + column + c, count);
        Store(y + c, Sigmoid(Load(o + c, count)) * z, count);
      });
    }
  }
}

// g = dy sigmoid(o), the gradient of z = xhat w + b; dh = rstd (w g - mean(w g) - xhat mean(w g xhat))
template <class T>
void HeadNormGateBackward(const HeadNormGateBackwardRows<T>& a, int64_t begin, int64_t end, float* dweight,
                          float* dbias, float* scratch) {
  const int64_t width = a.NH * a.DHV;
  const float inverse = 1.0f / static_cast<float>(a.DHV);
  for (int64_t c = 0; c < width; ++c) dweight[c] = 0.0f;
  if (dbias != nullptr) {
    for (int64_t c = 0; c < width; ++c) dbias[c] = 0.0f;
  }
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t head = 0; head < a.NH; ++head) {
      const int64_t column = head * a.DHV;
      const T* h = a.h + r * width + column;
      const T* dy = a.dy + r * width + column;
      const T* o = a.o_pre + r * a.o_stride + column;
      T* do_pre = a.do_pre + r * a.do_stride + column;
      const float* weight = a.weight + column;
      const float mean = a.mean[r * a.NH + head], rstd = a.rstd[r * a.NH + head];
      VecF sum = {}, products = {};
      ForEachVec(a.DHV, [&](int64_t c, auto count) {
        const VecF xhat = (Load(h + c, count) - mean) * rstd;
        const VecF w = Load(weight + c, count);
        const VecF gate = Sigmoid(Load(o + c, count));
        const VecF g = Load(dy + c, count) * gate;
        VecF z = xhat * w;
        if (a.bias != nullptr) z += Load(a.bias + column + c, count);
        Store(do_pre + c, g * (1.0f - gate) * z, count);
        const VecF g_xhat = g * xhat, dxhat = g * w;  // 0 in missing lanes, where dy is 0
        Store(dweight + column + c, Load(dweight + column + c, count) + g_xhat, count);
        if (dbias != nullptr) Store(dbias + column + c, Load(dbias + column + c, count) + g, count);
        sum += dxhat;
        products += dxhat * xhat;
        Store(scratch + c, dxhat, count);
      });
      const float mean_dxhat = SumLanes(sum) * inverse;
      const float mean_product = SumLanes(products) * inverse;
      T* dh = a.dh + r * width + column;
      ForEachVec(a.DHV, [&](int64_t c, auto count) {
        const VecF xhat = (Load(h + c, count) - mean) * rstd;
        Store(dh + c, (Load(scratch + c, count) - mean_dxhat - xhat * mean_product) * rstd, count);
      });
    }
  }
}

template <class T>
constexpr NormKernels<T> kKernels = {
    .rms_norm_forward = RmsNormForward<T>,
    .rms_norm_backward = RmsNormBackward<T>,
    .head_norm_gate_forward = HeadNormGateForward<T>,
    .head_norm_gate_backward = HeadNormGateBackward<T>,
};
}  // namespace

const NormKernels<float>& GetNormKernelsF32() { return kKernels<float>; }
const NormKernels<uint16_t>& GetNormKernelsBf16() { return kKernels<uint16_t>; }
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
