// What a segment of a sequence does to the state before it, and what its outputs say of the gradient of that
// state: passes of one (batch, head) pair that form no scores. Meaning: core/ops.h (MlstmSummary,
// MlstmSummaryBackward); formulas of the cell: kernels/cpu/mlstm_reference.h. Per token and pair 2 DHQK DHV
// operations, those of the one product that forward makes for the next state; forward makes twice as many and
// those of the scores besides, 2 L (DHQK + DHV).
#pragma once
#include "kernels/cpu/simd/mlstm_chunk.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

// The stabiliser of no state at all. Finite, so that differences of two of them are numbers.
constexpr float kNoStabiliser = -1e30f;

template <class T, class Engine>
static void MlstmSummaryHead(const MlstmHeadDims& dims, const MlstmHeadSummary& head) {
  const Engine engine{};
  const MlstmHeadScratch& x = head.scratch;
  int64_t begin = 0;  // of the last document
  bool cut = false;
  for (int64_t t = dims.T - 1; t >= 0 && head.reset != nullptr && !cut; --t) {
    cut = head.reset[t] != 0;
    if (cut) begin = t;
  }
  double G = cut ? -__builtin_inf() : 0.0;
  float m = dims.sigmoid_input_gate ? 0.0f : kNoStabiliser;
  bool has_state = false;
  for (int64_t t0 = begin / dims.L * dims.L; t0 < dims.T; t0 += dims.L) {
    const int64_t len = AtMost(dims.L, dims.T - t0);
    const MlstmChunk c = {t0, len, PadRows(len)};
    if (!cut) {
      for (int64_t i = 0; i < len; ++i) x.a[i] = head.f_pre[t0 + i];
      FillZero(x.a + len, c.rows - len);
      for (int64_t i = 0; i < c.rows; i += kLanes) Store(x.a + i, LogSigmoid(Load(x.a + i)));
      for (int64_t i = 0; i < len; ++i) G += static_cast<double>(x.a[i]);
    }
    MlstmGates(dims, x, c, head.i_pre, head.f_pre, head.reset, m, {});
    const T* const k = CopyRows<T>(x.k, head.k, t0, len, c.rows, dims.K, dims.Kp);
    const T* const v = CopyRows<T>(x.v, head.v, t0, len, c.rows, dims.V, dims.Vp);
    MlstmNextState(engine, dims, x, c, x.C, x.n, has_state ? x.C : nullptr, x.n, k,
                   engine.PackRight(v, c.rows, dims.Vp, x.pack_LV[0]), x.pack_LK[0]);
    has_state = true;
    m = x.m[len - 1];
  }
  if (!has_state) {  // no token
    FillZero(x.C, dims.Kp * dims.Vp);
    FillZero(x.n, dims.Kp);
  }
  StoreState(head.state, dims, x.C, x.n);
  *head.state.m = m < kNoStabiliser / 2 ? -__builtin_inff() : m;
  *head.G = static_cast<float>(G);
}

template <class T, class Engine>
class MlstmSummaryBackwardHead {
 public:
  MlstmSummaryBackwardHead(const MlstmHeadDims& dims, const MlstmHeadSummaryBackward& head)
      : dims_(dims), head_(head), x_(head.scratch) {}

  void Run() {
    const int64_t Kp = dims_.Kp, Vp = dims_.Vp;
    FillZero(x_.C, Kp * Vp);
    FillZero(x_.dn, Kp);
    FillZero(x_.n, Kp);
    float m = 0.0f;
    if (head_.initial.C != nullptr) {
      for (int64_t d = 0; d < dims_.K; ++d) x_.n[d] = head_.initial.n[d];
      if (!dims_.sigmoid_input_gate) m = *head_.initial.m;
    }
    float kept = 1.0f;  // of the state before the segment, at the beginning of the chunk
    for (int64_t t0 = 0; t0 < dims_.T && kept != 0.0f; t0 += dims_.L) {
      const int64_t len = AtMost(dims_.L, dims_.T - t0);
      const MlstmChunk c = {t0, len, PadRows(len)};
      MlstmGates(dims_, x_, c, head_.i_pre, head_.f_pre, head_.reset, m, head_.m);
      m = x_.m[len - 1];
      for (int64_t i = 0; i < len; ++i) {
        const float alpha = x_.alpha[i] * kept;
        x_.alpha[i] = alpha > kMlstmNegligible ? alpha : 0.0f;
      }
      kept = x_.alpha[len - 1];
      const T* const q = CopyRows<T>(x_.q, head_.q, t0, len, c.rows, dims_.K, Kp);
      NumeratorGradients<T>(dims_, x_, c, head_.dh, head_.denominator);
      if (exact_) ThroughNormaliser(c, q);
      engine_.Multiply(x_.C, Kp, Vp, /*accumulate=*/t0 > 0,
                       engine_.PackLeftTransposed(q, c.rows, Kp, x_.pack_LK[0],
                                                  {.row = x_.alpha, .constant = dims_.scale}),
                       engine_.PackRight(x_.u, c.rows, Vp, x_.pack_LV[0]), c.rows);
    }
    StoreState(head_.dstate, dims_, x_.C, x_.dn);
  }

 private:
  // dn += sum of s alpha rho q. The denominator's sign is that of n.q, for which n goes from token to token.
  void ThroughNormaliser(const MlstmChunk& c, const T* q) {
    const int64_t Kp = dims_.Kp;
    const T* const k = CopyRows<T>(x_.k, head_.k, c.t0, c.len, c.rows, dims_.K, Kp);
    for (int64_t i = 0; i < c.len; ++i) {
      const VecF f = Broadcast(x_.f[i]), g = Broadcast(x_.g[i]);
      VecF dot{};
      for (int64_t d = 0; d < Kp; d += kLanes) {
        const VecF n = f * Load(x_.n + d) + g * Load(k + i * Kp + d);
        Store(x_.n + d, n);
        dot += n * Load(q + i * Kp + d);
      }
      Store(x_.partial + i * kLanes, dot);
    }
    FillZero(x_.partial + c.len * kLanes, (c.rows - c.len) * kLanes);
    SumRows(x_.a, x_.partial, c.rows);
    for (int64_t i = 0; i < c.len; ++i) {
      const T* const h = static_cast<const T*>(head_.h.data) + (c.t0 + i) * head_.h.stride;
      const float* const du = x_.u + i * dims_.Vp;
      VecF dot{};
      int64_t e = 0;
      for (; e + kLanes <= dims_.V; e += kLanes) dot += Load(h + e) * Load(du + e);
      if (e < dims_.V) dot += LoadPart(h + e, dims_.V - e) * Load(du + e);
      Store(x_.partial + i * kLanes, dot);
    }
    SumRows(x_.rho, x_.partial, c.rows);
    for (int64_t i = 0; i < c.rows; ++i) {
      const float a = dims_.scale * x_.a[i], magnitude = a < 0.0f ? -a : a;
      const float rho = magnitude > x_.floor[i] ? (a < 0.0f ? x_.rho[i] : -x_.rho[i]) : 0.0f;
      x_.rho[i] = dims_.scale * x_.alpha[i] * rho;
    }
    WeightedRowSum(x_.dn, x_.dn, 1.0f, q, x_.rho, c.rows, Kp);
  }

  const Engine engine_{};
  const MlstmHeadDims& dims_;
  const MlstmHeadSummaryBackward& head_;
  const MlstmHeadScratch& x_;  // x.C is dC
  const bool exact_ = dims_.normalize && dims_.exact_normalizer_gradient;
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
