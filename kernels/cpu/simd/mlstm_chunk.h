// Parts of the mLSTM cell that the forward and the backward of one chunk share: loads and stores of padded
// rows, the gates, the scores and the step from one chunk's state to the next. Symbols:
// kernels/cpu/mlstm_reference.h and mlstm_kernels.h. `rows` is the number of tokens of the chunk, padded.
#pragma once
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "kernels/cpu/simd/mlstm_products.h"
#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

CAROUSEL_INLINE int64_t PadRows(int64_t n) { return (n + kMlstmPad - 1) / kMlstmPad * kMlstmPad; }
CAROUSEL_INLINE void FillZero(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 0.0f;
}
CAROUSEL_INLINE int64_t AtMost(int64_t a, int64_t b) { return a < b ? a : b; }

// to (rows, padded) = rows t0 .. t0+len-1, `width` columns of x, the bits unchanged; zeros around.
template <class T>
static T* CopyRows(void* memory, const MlstmComputeRows& x, int64_t t0, int64_t len, int64_t rows,
                   int64_t width, int64_t padded) {
  T* const to = static_cast<T*>(memory);
  for (int64_t i = 0; i < len; ++i) {
    const T* const from = static_cast<const T*>(x.data) + (t0 + i) * x.stride;
    T* const row = to + i * padded;
    __builtin_memcpy(row, from, width * sizeof(T));
    if (width < padded) __builtin_memset(row + width, 0, (padded - width) * sizeof(T));
  }
  if (len < rows) __builtin_memset(to + len * padded, 0, (rows - len) * padded * sizeof(T));
  return to;
}
// Asks for row t of x ahead of use. A head's columns are short pieces far apart, which the processor's own
// prefetching does not follow; a few rows at a time, between other work, keep within the number of
// outstanding requests.
template <class T, int kForWrite = 0>
CAROUSEL_INLINE void PrefetchRow(const MlstmComputeRows& x, int64_t t, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const T* const row = static_cast<const T*>(x.data) + t * x.stride;
  for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(row + c, kForWrite, /*locality=*/2);
}
CAROUSEL_INLINE void StoreRounded(float* p, VecF x) { Store(p, x); }
CAROUSEL_INLINE void StoreRounded(uint16_t* p, VecF x) {
#if defined(__AVX512BF16__)  // one instruction; as ToBf16, but subnormal numbers become zero
  *reinterpret_cast<UnalignedVecU16*>(p) =
      reinterpret_cast<VecU16>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  Store(p, x);
#endif
}
// x row t (width columns) = row * factor.
template <class T>
static void StoreRow(const MlstmComputeRows& x, int64_t t, const float* row, float factor, int64_t width) {
  T* const to = static_cast<T*>(x.data) + t * x.stride;
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) StoreRounded(to + c, Load(row + c) * factor);
  if (c < width) StorePart(to + c, Load(row + c) * factor, width - c);
}
// to = kept * from + sum over rows of weight[i] * X row i; from may be null. Four chains, joined in a fixed
// order.
template <class T>
static void WeightedRowSum(float* to, const float* from, float kept, const T* X, const float* weight,
                           int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c += kLanes) {
    VecF sum[4] = {};
    for (int64_t i = 0; i < rows; i += 4) {  // rows is a multiple of kMlstmPad
      for (int r = 0; r < 4; ++r) sum[r] += Load(X + (i + r) * cols + c) * weight[i + r];
    }
    const VecF added = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    Store(to + c, from == nullptr ? added : Load(from + c) * kept + added);
  }
}

// One chunk of one pair.
struct MlstmChunk {
  int64_t t0, len, rows;
};

// Fills f, g, m, floor, alpha (first to last) and w (last to first) of one chunk; 0 in padding. m_start: the
// stabiliser before the chunk. given_m.data != null: the forward's stabilisers, which are used then.
static inline void MlstmGates(const MlstmHeadDims& dims, const MlstmHeadScratch& x, const MlstmChunk& c,
                              const MlstmWideRows& i_pre, const MlstmWideRows& f_pre, const uint8_t* reset,
                              float m_start, const MlstmWideRows& given_m) {
  float *const F = x.f, *const i_log = x.g;
  for (int64_t i = 0; i < c.len; ++i) F[i] = f_pre[c.t0 + i], i_log[i] = i_pre[c.t0 + i];
  FillZero(F + c.len, c.rows - c.len);
  FillZero(i_log + c.len, c.rows - c.len);
  FillZero(x.m, c.rows);
  if (dims.sigmoid_input_gate) {  // f = sigmoid(f_pre), g = sigmoid(i_pre), m = 0
    for (int64_t i = 0; i < c.rows; i += kLanes) {
      Store(x.f + i, Sigmoid(Load(F + i)));
      Store(x.g + i, Sigmoid(Load(i_log + i)));
      Store(x.floor + i, Broadcast(1.0f));
    }
  } else {
    for (int64_t i = 0; i < c.rows; i += kLanes) Store(F + i, LogSigmoid(Load(F + i)));
    // m_t = max(F_t + m_(t-1), i_t); F becomes the exponent of f
    float m = m_start;
    for (int64_t i = 0; i < c.len; ++i) {
      if (reset != nullptr && reset[c.t0 + i]) m = 0.0f;
      const float kept = F[i] + m;
      m = given_m.data != nullptr ? given_m[c.t0 + i] : Max(kept, i_log[i]);
      F[i] = kept - m;
      i_log[i] -= m;
      x.m[i] = m;
    }
    for (int64_t i = 0; i < c.rows; i += kLanes) {
      Store(x.f + i, Exp(Load(F + i)));
      Store(x.g + i, Exp(Load(i_log + i)));
      Store(x.floor + i, Exp(Min(-Load(x.m + i), Broadcast(80.0f))));
    }
  }
  for (int64_t i = 0; i < c.len; ++i) {
    if (reset != nullptr && reset[c.t0 + i]) x.f[i] = 0.0f;  // nothing before a reset is kept
    if (!(x.g[i] > kMlstmNegligible)) x.g[i] = 0.0f;
  }
  float alpha = 1.0f, later = 1.0f;
  FillZero(x.alpha + c.len, c.rows - c.len);
  FillZero(x.w + c.len, c.rows - c.len);
  FillZero(x.g + c.len, c.rows - c.len);
  for (int64_t i = 0; i < c.len; ++i) {
    alpha *= x.f[i];
    alpha = alpha > kMlstmNegligible ? alpha : 0.0f;
    x.alpha[i] = alpha;
  }
  for (int64_t j = c.len - 1; j >= 0; --j) {
    const float w = later * x.g[j];
    x.w[j] = w > kMlstmNegligible ? w : 0.0f;
    later *= x.f[j];
    later = later > kMlstmNegligible ? later : 0.0f;
  }
}

// Row i of D from row i - 1, on the columns that row i has (a multiple of kMlstmPad): calls body(column, D
// values). x.decay_row holds the row; start with zeros.
template <class Body>
CAROUSEL_INLINE void NextDecayRow(const MlstmHeadScratch& x, int64_t i, Body&& body) {
  const VecF f = Broadcast(x.f[i]), g = Broadcast(x.g[i]);
  VecI lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  const int64_t cols = (i / kMlstmPad + 1) * kMlstmPad;
  for (int64_t j = 0; j < cols; j += kLanes) {
    VecF D = Load(x.decay_row + j) * f;
    D = D > kMlstmNegligible ? D : VecF{};
    D = lane == static_cast<int32_t>(i - j) ? g : D;
    Store(x.decay_row + j, D);
    body(j, D);
  }
}

// x.S: from q.k to S = s (q.k) D, and a = alpha s n.q + row sums of S. n is null where the state is zero.
// ahead(i) is called for every token: room for prefetches.
template <class T, class Ahead>
CAROUSEL_INLINE void MlstmScores(const MlstmHeadDims& dims, const MlstmHeadScratch& x, const MlstmChunk& c,
                                 const T* q, const float* n, Ahead&& ahead) {
  FillZero(x.decay_row, c.rows);
  for (int64_t i = 0; i < c.len; ++i) {
    ahead(i);
    float* const S = x.S + i * c.rows;
    VecF sum{};
    NextDecayRow(x, i, [&](int64_t j, VecF D) {
      const VecF score = Load(S + j) * dims.scale * D;
      Store(S + j, score);
      sum += score;
    });
    if (n != nullptr) {
      VecF dot{};
      for (int64_t d = 0; d < dims.Kp; d += kLanes) dot += Load(q + i * dims.Kp + d) * Load(n + d);
      sum += dot * (dims.scale * x.alpha[i]);
    }
    Store(x.partial + i * kLanes, sum);
  }
  FillZero(x.S + c.len * c.rows, (c.rows - c.len) * c.rows);
  FillZero(x.partial + c.len * kLanes, (c.rows - c.len) * kLanes);
  SumRows(x.a, x.partial, c.rows);
}

// x.u = du = dh / (N + eps), rows of zeros after the chunk, and x.inverse = 1 / (N + eps).
template <class T>
static void NumeratorGradients(const MlstmHeadDims& dims, const MlstmHeadScratch& x, const MlstmChunk& c,
                               const MlstmComputeRows& dh_rows, const MlstmWideRows& denominator) {
  const int64_t V = dims.V, Vp = dims.Vp;
  for (int64_t i = 0; i < c.len; ++i) {
    const int64_t t = c.t0 + i;
    const T* const dh = static_cast<const T*>(dh_rows.data) + t * dh_rows.stride;
    float* const du = x.u + i * Vp;
    x.inverse[i] = dims.normalize ? 1.0f / (denominator[t] + dims.eps) : 1.0f;
    int64_t e = 0;
    for (; e + kLanes <= V; e += kLanes) Store(du + e, Load(dh + e) * x.inverse[i]);
    if (e < V) {
      Store(du + e, LoadPart(dh + e, V - e) * x.inverse[i]);
      e += kLanes;
    }
    for (; e < Vp; e += kLanes) Store(du + e, VecF{});
  }
  FillZero(x.u + c.len * Vp, (c.rows - c.len) * Vp);
}

// to = factor * from over n values; exactly zero if factor is.
static inline void ScaleState(float* to, const float* from, float factor, int64_t n) {
  if (factor == 0.0f) return FillZero(to, n);
  for (int64_t i = 0; i < n; i += kLanes) Store(to + i, Load(from + i) * factor);
}

// (to_C, to_n) = the state after the chunk from its k (rows, Kp) and the right operand of its v. C is null
// where the state before it is zero. to_C may be C.
template <class Engine, class T>
static void MlstmNextState(const Engine& engine, const MlstmHeadDims& dims, const MlstmHeadScratch& x,
                           const MlstmChunk& c, float* to_C, float* to_n, const float* C, const float* n,
                           const T* k, const typename Engine::Right& v, float* pack) {
  const float kept = x.alpha[c.len - 1];
  const bool accumulate = C != nullptr && kept != 0.0f;
  if (accumulate) ScaleState(to_C, C, kept, dims.Kp * dims.Vp);
  engine.Multiply(to_C, dims.Kp, dims.Vp, accumulate,
                  engine.PackLeftTransposed(k, c.rows, dims.Kp, pack, {.row = x.w}), v, c.rows);
  WeightedRowSum(to_n, accumulate ? n : nullptr, kept, k, x.w, c.rows, dims.Kp);
}

// C (Kp, Vp), n (Kp) padded from a state (K, V), (K), and back.
static inline void LoadState(float* C, float* n, const MlstmHeadDims& dims, const MlstmHeadState& from) {
  FillZero(C, dims.Kp * dims.Vp);
  FillZero(n, dims.Kp);
  for (int64_t d = 0; d < dims.K; ++d) {
    for (int64_t e = 0; e < dims.V; ++e) C[d * dims.Vp + e] = from.C[d * dims.V + e];
    n[d] = from.n[d];
  }
}
static inline void StoreState(const MlstmHeadState& to, const MlstmHeadDims& dims, const float* C,
                              const float* n) {
  for (int64_t d = 0; d < dims.K; ++d) {
    for (int64_t e = 0; e < dims.V; ++e) to.C[d * dims.V + e] = C[d * dims.Vp + e];
    to.n[d] = n[d];
  }
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
