// The hot loops of the simple ops for f32 and bf16, as functions on ranges of rows or elements. T is the
// compute type: float, or uint16_t holding bf16. Sums over rows are taken in ascending order; the caller cuts
// the work into ranges that depend on the shape alone.
#pragma once
#include <cstdint>

#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

template <class T>
struct RmsNormForwardRows {  // shapes and formulas: core/ops.h; contiguous rows of D
  T* y;
  float* rstd;
  float* sum;  // may be null
  const float* x;
  const T* delta;  // may be null
  const float* weight;
  const float* bias;  // may be null
  int64_t D;
  float eps;
};
template <class T>
struct RmsNormBackwardRows {
  float* dx;
  T* dx_rounded;  // may be null
  T* y;           // may be null, may be dy
  const T* dy;
  const float* dresidual;  // may be null
  const float* x;
  const float* weight;
  const float* bias;  // may be null
  const float* rstd;
  int64_t D;
};
// `scale`: the norm's factor per column, ones if it has none.
template <class T>
struct LayerNormForwardRows {
  T* y;
  float* mean;
  float* rstd;
  float* sum;  // may be null
  const float* x;
  const T* delta;  // may be null
  const float* scale;
  const float* bias;  // may be null
  int64_t D;
  float eps;
};
template <class T>
struct LayerNormBackwardRows {
  float* dx;
  T* dx_rounded;  // may be null
  T* y;           // may be null, may be dy
  const T* dy;
  const float* dresidual;  // may be null
  const float* x;
  const float* scale;
  const float* bias;  // may be null
  const float* mean;
  const float* rstd;
  int64_t D;
};
template <class T>
struct HeadNormGateForwardRows {
  T* y;
  float* mean;
  float* rstd;
  const T* h;
  const T* o_pre;  // read where there is a gate
  int64_t o_stride;
  const float* scale;
  const float* bias;  // may be null
  const T* skip;      // these two: read where there is a skip
  const float* skip_weight;
  int64_t skip_stride;
  int64_t NH, DHV;
  float eps;
};
template <class T>
struct HeadNormGateBackwardRows {
  T* dh;
  T* y;  // may be null, may be dy
  T* do_pre;
  int64_t do_stride;
  T* dskip;
  int64_t dskip_stride;
  const T* dy;
  const T* h;
  const T* o_pre;
  int64_t o_stride;
  const float* scale;
  const float* bias;  // may be null
  const T* skip;
  const float* skip_weight;
  int64_t skip_stride;
  const float* mean;
  const float* rstd;
  int64_t NH, DHV;
};
// Sums over rows that a backward pass writes, NH*DHV each. dbias may be null; dskip_weight: used where there
// is a skip.
struct HeadNormGateSums {
  float* dweight;
  float* dbias;
  float* dskip_weight;
};
enum class RowGate { kNone, kSigmoid, kSilu };
constexpr int kNumRowGates = 3;

template <class T>
struct GluForwardRows {
  T* y;
  const T* gate;
  const T* up;
  int64_t F, gate_stride, up_stride;
};
template <class T>
struct GluBackwardRows {
  T* dgate;
  T* dup;
  T* y;  // may be null
  const T* dy;
  const T* gate;
  const T* up;
  int64_t F, dgate_stride, dup_stride, gate_stride, up_stride;
};
enum class RowActivation { kSilu, kGelu };
constexpr int kNumRowActivations = 2;

template <class T>
struct CrossEntropyRows {
  float* loss;
  T* dlogits;  // may be null
  const float* logits;
  const int32_t* targets;
  uint8_t* correct;  // may be null
  int64_t V;
  float soft_cap;
};
// The same loss by parts of the vocabulary.
struct CrossEntropyStatsRows {
  float* stats;  // (n, 4)
  const float* logits;
  const int32_t* targets;
  int64_t V, first_id;
  float soft_cap;
};
template <class T>
struct CrossEntropyFromStatsRows {
  float* loss;
  T* dlogits;           // may be null
  uint8_t* correct;     // may be null
  const float* stats;   // (num_parts, n, 4)
  const float* logits;  // read if there is dlogits
  const int32_t* targets;
  int64_t num_parts, n, V, first_id;
  float soft_cap;
};
struct AdamWRange {
  float* master;
  float* m;
  float* v;
  float* weight_f32;      // at most one of these two
  uint16_t* weight_bf16;  // is not null
  const float* grad;
  float lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, grad_scale;
  float m_scale, v_scale;  // 1 / (1 - beta^step)
};

// ---- tables, one per file of this folder

template <class T>
struct NormKernels {  // norm.cc, head_norm.h. Rows [begin, end).
  void (*rms_norm_forward)(const RmsNormForwardRows<T>&, int64_t begin, int64_t end);
  // Writes this range's sums over rows: dweight (D), and dbias (D) unless null.
  void (*rms_norm_backward)(const RmsNormBackwardRows<T>&, int64_t begin, int64_t end, float* dweight,
                            float* dbias);
  void (*layer_norm_forward)(const LayerNormForwardRows<T>&, int64_t begin, int64_t end);
  // Writes this range's sums over rows, as above.
  void (*layer_norm_backward)(const LayerNormBackwardRows<T>&, int64_t begin, int64_t end, float* dweight,
                              float* dbias);
  // Indices: RowGate, whether there is a skip.
  void (*head_norm_gate_forward[kNumRowGates][2])(const HeadNormGateForwardRows<T>&, int64_t begin,
                                                  int64_t end);
  // Writes this range's sums over rows. scratch: DHV floats.
  void (*head_norm_gate_backward[kNumRowGates][2])(const HeadNormGateBackwardRows<T>&, int64_t begin,
                                                   int64_t end, const HeadNormGateSums& sums, float* scratch);
};

template <class T>
struct ActivationKernels {  // activation.cc. Rows [begin, end).
  // Index: RowActivation.
  void (*glu_forward[kNumRowActivations])(const GluForwardRows<T>&, int64_t begin, int64_t end);
  void (*glu_backward[kNumRowActivations])(const GluBackwardRows<T>&, int64_t begin, int64_t end);
  // scratch: 2 * V floats.
  void (*cross_entropy)(const CrossEntropyRows<T>&, int64_t begin, int64_t end, float* scratch);
  // scratch: V floats.
  void (*cross_entropy_stats)(const CrossEntropyStatsRows&, int64_t begin, int64_t end, float* scratch);
  void (*cross_entropy_from_stats)(const CrossEntropyFromStatsRows<T>&, int64_t begin, int64_t end);
};

struct ElementwiseKernels {  // elementwise.cc
  // y = cap tanh(x / cap); y may be x.
  void (*soft_cap_forward)(float* y, const float* x, int64_t n, float cap);
  // dx = dy (1 - (y / cap)^2); dx may be dy.
  void (*soft_cap_backward)(float* dx, const float* dy, const float* y, int64_t n, float cap);
  void (*f32_to_bf16)(uint16_t* y, const float* x, int64_t n);
  void (*bf16_to_f32)(float* y, const uint16_t* x, int64_t n);
  // y = a + b. Indices: y is bf16, a is bf16, b is bf16. y may be a or b.
  void (*add[2][2][2])(void* y, const void* a, const void* b, int64_t n);
  // Elements [begin, end).
  void (*adamw)(const AdamWRange&, int64_t begin, int64_t end);
  // y[c] += sum over rows r of x[r * stride + c], for c in [0, columns), columns <= kMaxSumColumns.
  void (*column_sum_f32)(float* y, const float* x, int64_t rows, int64_t columns, int64_t stride);
  void (*column_sum_bf16)(float* y, const uint16_t* x, int64_t rows, int64_t columns, int64_t stride);
  // Sum of squares of n floats in double: 16 interleaved sums, then a balanced tree. The same bits at every
  // level.
  double (*squared_sum)(const float* x, int64_t n);
};
constexpr int64_t kMaxSumColumns = 256;
}  // namespace carousel::cpu

CAROUSEL_DECLARE_SIMD(NormKernels<float>, GetNormKernelsF32)
CAROUSEL_DECLARE_SIMD(NormKernels<uint16_t>, GetNormKernelsBf16)
CAROUSEL_DECLARE_SIMD(ActivationKernels<float>, GetActivationKernelsF32)
CAROUSEL_DECLARE_SIMD(ActivationKernels<uint16_t>, GetActivationKernelsBf16)
CAROUSEL_DECLARE_SIMD(ElementwiseKernels, GetElementwiseKernels)
#if defined(__x86_64__)
// Once more with AVX-512 BF16, for processors with matrix tiles.
namespace carousel::cpu::simd_tiles {
const NormKernels<uint16_t>& GetNormKernelsBf16();
const ActivationKernels<uint16_t>& GetActivationKernelsBf16();
}  // namespace carousel::cpu::simd_tiles
#endif
