// The per-head norm with skip and output gate, one function per combination. Formulas: core/ops.h. For
// norm.cc alone.
#pragma once
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

// z of columns c, c + 1, .. of a head: forward and backward have the same bits of it.
template <bool kSkip, class Count>
CAROUSEL_INLINE VecF HeadNormZ(VecF xhat, VecF scale, const float* bias, VecF skip_weight, VecF skip,
                               int64_t c, Count count) {
  VecF z = Opaque(xhat * scale);
  if (bias != nullptr) z += Load(bias + c, count);
  if constexpr (kSkip) z += Opaque(skip_weight * skip);
  return z;
}

template <class T, RowGate kGate, bool kSkip>
static void HeadNormGateForward(const HeadNormGateForwardRows<T>& a, int64_t begin, int64_t end) {
  const float inverse = 1.0f / static_cast<float>(a.DHV);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t head = 0; head < a.NH; ++head) {
      const int64_t column = head * a.DHV;
      const T* h = a.h + r * a.NH * a.DHV + column;
      const T* o = kGate == RowGate::kNone ? nullptr : a.o_pre + r * a.o_stride + column;
      const T* skip = kSkip ? a.skip + r * a.skip_stride + column : nullptr;
      const float* scale = a.scale + column;
      const float* bias = a.bias == nullptr ? nullptr : a.bias + column;
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
        VecF skip_weight = {}, skipped = {};
        if constexpr (kSkip) {
          skip_weight = Load(a.skip_weight + column + c, count);
          skipped = Load(skip + c, count);
        }
        const VecF z = HeadNormZ<kSkip>((Load(h + c, count) - mean) * rstd, Load(scale + c, count), bias,
                                        skip_weight, skipped, c, count);
        if constexpr (kGate == RowGate::kNone) {
          Store(y + c, z, count);
        } else {
          const VecF o_pre = Load(o + c, count);
          VecF gate = Sigmoid(o_pre);
          if constexpr (kGate == RowGate::kSilu) gate *= o_pre;
          Store(y + c, gate * z, count);
        }
      });
    }
  }
}

CAROUSEL_INLINE void ZeroSums(float* sums, int64_t width) {
  if (sums == nullptr) return;
  for (int64_t c = 0; c < width; ++c) sums[c] = 0.0f;
}

// g = dy act(o), the gradient of z = xhat scale + b + skip_weight skip;
// dh = rstd (scale g - mean(scale g) - xhat mean(scale g xhat))
template <class T, RowGate kGate, bool kSkip>
static void HeadNormGateBackward(const HeadNormGateBackwardRows<T>& a, int64_t begin, int64_t end,
                                 const HeadNormGateSums& sums, float* scratch) {
  const int64_t width = a.NH * a.DHV;
  const float inverse = 1.0f / static_cast<float>(a.DHV);
  float* dweight = sums.dweight;
  float* dbias = sums.dbias;
  float* dskip_weight = kSkip ? sums.dskip_weight : nullptr;
  ZeroSums(dweight, width);
  ZeroSums(dbias, width);
  ZeroSums(dskip_weight, width);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t head = 0; head < a.NH; ++head) {
      const int64_t column = head * a.DHV;
      const T* h = a.h + r * width + column;
      const T* dy = a.dy + r * width + column;
      const T* o = kGate == RowGate::kNone ? nullptr : a.o_pre + r * a.o_stride + column;
      T* do_pre = kGate == RowGate::kNone ? nullptr : a.do_pre + r * a.do_stride + column;
      const T* skip = kSkip ? a.skip + r * a.skip_stride + column : nullptr;
      T* dskip = kSkip ? a.dskip + r * a.dskip_stride + column : nullptr;
      T* y = a.y == nullptr ? nullptr : a.y + r * width + column;
      const float* scale = a.scale + column;
      const float* bias = a.bias == nullptr ? nullptr : a.bias + column;
      const float mean = a.mean[r * a.NH + head], rstd = a.rstd[r * a.NH + head];
      VecF sum = {}, products = {};
      ForEachVec(a.DHV, [&](int64_t c, auto count) {
        const VecF xhat = (Load(h + c, count) - mean) * rstd;
        const VecF w = Load(scale + c, count);
        VecF o_pre = {}, gate = {}, skip_weight = {}, skipped = {};
        if constexpr (kGate != RowGate::kNone) {
          o_pre = Load(o + c, count);
          gate = Sigmoid(o_pre);
        }
        if constexpr (kSkip) {
          skip_weight = Load(a.skip_weight + column + c, count);
          skipped = Load(skip + c, count);
        }
        VecF g = Load(dy + c, count);  // 0 in missing lanes, and all that it multiplies
        if constexpr (kGate != RowGate::kNone) {
          g *= gate;
          const VecF z = HeadNormZ<kSkip>(xhat, w, bias, skip_weight, skipped, c, count);
          if constexpr (kGate == RowGate::kSigmoid) {
            Store(do_pre + c, g * (1.0f - gate) * z, count);
          } else {
            Store(do_pre + c, g * (1.0f + o_pre * (1.0f - gate)) * z, count);
            g *= o_pre;
            gate *= o_pre;
          }
          if (y != nullptr) Store(y + c, gate * z, count);
        } else {
          if (y != nullptr)
            Store(y + c, HeadNormZ<kSkip>(xhat, w, bias, skip_weight, skipped, c, count), count);
        }
        if constexpr (kSkip) {
          Store(dskip + c, g * skip_weight, count);
          Store(dskip_weight + column + c, Load(dskip_weight + column + c, count) + g * skipped, count);
        }
        const VecF g_xhat = g * xhat, dxhat = g * w;
        if (dweight != nullptr)
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
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
