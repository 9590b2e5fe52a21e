// What a segment of a sequence does to the state before it, and what its outputs say of the gradient of that
// state: passes of one (batch, head) pair that form no scores. Meaning: core/ops.h (MlstmSummary,
// MlstmSummaryBackward); formulas of the cell: kernels/cpu/mlstm_reference.h. Per token and pair 2 DHQK DHV
// operations, those of the one product that forward makes for the next state; forward makes twice as many and
// those of the scores besides, 2 L (DHQK + DHV).
#pragma once
#include "kernels/cpu/simd/mlstm_chunk.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

// Tokens are taken from the last to the first of the last document, with weights in units of the segment's
// end: no sum of earlier chunks is scaled. Twice over the gates, once over k and v.
template <class T, class Engine>
class MlstmSummaryHead {
 public:
  MlstmSummaryHead(const MlstmHeadDims& dims, const MlstmHeadSummary& head)
      : dims_(dims), head_(head), x_(head.scratch) {}

  void Run() {
    bool cut = false;
    for (int64_t t = dims_.T - 1; t >= 0 && head_.reset != nullptr && !cut; --t) {
      cut = head_.reset[t] != 0;
      if (cut) begin_ = t;
    }
    constexpr float kInfinity = __builtin_inff();
    float m = -kInfinity;
    const double G = FromTheEnd(0.0f, [&](const MlstmChunk& c) {
      for (int64_t i = 0; i < c.len; ++i) m = Max(m, x_.w[i]);
    });
    if (cut) m = Max(m, static_cast<float>(G));  // the stabiliser of a document begins at 0
    if (dims_.sigmoid_input_gate) m = 0.0f;
    *head_.state.m = m;
    *head_.G = cut ? -kInfinity : static_cast<float>(G);

    FillZero(x_.C, dims_.Kp * dims_.Vp);
    FillZero(x_.n, dims_.Kp);
    FromTheEnd(m > -kInfinity ? m : 0.0f, [&](const MlstmChunk& c) { Add(c); });
    StoreState(head_.state, dims_, x_.C, x_.n);
  }

 private:
  // Calls body(chunk) from the last chunk to that of token begin_, with i + (sum of F after the token) - m in
  // x.w; -infinity before begin_ and after the chunk. Returns the sum of all F.
  template <class Body>
  double FromTheEnd(float m, Body&& body) const {
    double after = 0.0;
    for (int64_t index = (dims_.T + dims_.L - 1) / dims_.L - 1; index >= begin_ / dims_.L; --index) {
      const int64_t t0 = index * dims_.L, len = AtMost(dims_.L, dims_.T - t0);
      const MlstmChunk c = {t0, len, PadRows(len)};
      for (int64_t i = 0; i < len; ++i) x_.f[i] = head_.f_pre[t0 + i], x_.g[i] = head_.i_pre[t0 + i];
      FillZero(x_.f + len, c.rows - len);
      FillZero(x_.g + len, c.rows - len);
      for (int64_t i = 0; i < c.rows; i += kLanes) {
        Store(x_.f + i, LogSigmoid(Load(x_.f + i)));
        if (dims_.sigmoid_input_gate) Store(x_.g + i, LogSigmoid(Load(x_.g + i)));
        Store(x_.w + i, Broadcast(-__builtin_inff()));
      }
      for (int64_t i = len - 1; i >= 0 && t0 + i >= begin_; --i) {
        x_.w[i] = static_cast<float>(after + static_cast<double>(x_.g[i]) - static_cast<double>(m));
        after += static_cast<double>(x_.f[i]);
      }
      body(c);
    }
    return after;
  }

  // C += sum of w k v^T, n += sum of w k, w = exp(x.w). Chunks whose weights are all negligible are not read.
  void Add(const MlstmChunk& c) const {
    bool any = false;
    for (int64_t i = 0; i < c.rows; i += kLanes) {
      const VecF w = Exp(Load(x_.w + i));
      Store(x_.w + i, w > kMlstmNegligible ? w : VecF{});
    }
    for (int64_t i = 0; i < c.len; ++i) any |= x_.w[i] != 0.0f;
    if (!any) return;
    const T* const k = CopyRows<T>(x_.k, head_.k, c.t0, c.len, c.rows, dims_.K, dims_.Kp);
    const T* const v = CopyRows<T>(x_.v, head_.v, c.t0, c.len, c.rows, dims_.V, dims_.Vp);
    engine_.Multiply(x_.C, dims_.Kp, dims_.Vp, /*accumulate=*/true,
                     engine_.PackLeftTransposed(k, c.rows, dims_.Kp, x_.pack_LK[0], {.row = x_.w}),
                     engine_.PackRight(v, c.rows, dims_.Vp, x_.pack_LV[0]), c.rows);
    WeightedRowSum(x_.n, x_.n, 1.0f, k, x_.w, c.rows, dims_.Kp);
  }

  const Engine engine_{};
  const MlstmHeadDims& dims_;
  const MlstmHeadSummary& head_;
  const MlstmHeadScratch& x_;
  int64_t begin_ = 0;  // the first token of the last document
};

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
