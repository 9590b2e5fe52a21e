// Forward of the mLSTM cell, one (batch, head) pair. Formulas: kernels/cpu/mlstm_reference.h.
#pragma once
#include "kernels/cpu/simd/mlstm_chunk.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

template <class T, class Engine>
static void MlstmForwardHead(const MlstmHeadDims& dims, const MlstmHeadForward& head) {
  const Engine engine{};
  const MlstmHeadScratch& x = head.scratch;
  const int64_t Kp = dims.Kp, Vp = dims.Vp;
  bool has_state = head.initial.C != nullptr;
  float m = has_state && !dims.sigmoid_input_gate ? *head.initial.m : 0.0f;
  if (has_state) LoadState(x.C, x.n, dims, head.initial);

  for (int64_t t0 = 0; t0 < dims.T; t0 += dims.L) {
    const int64_t len = AtMost(dims.L, dims.T - t0);
    const MlstmChunk c = {t0, len, PadRows(len)};
    MlstmGates(dims, x, c, head.i_pre, head.f_pre, head.reset, m, {});
    const T* const q = CopyRows<T>(x.q, head.q, t0, len, c.rows, dims.K, Kp);
    const T* const k = CopyRows<T>(x.k, head.k, t0, len, c.rows, dims.K, Kp);
    const auto v =
        engine.PackRight(CopyRows<T>(x.v, head.v, t0, len, c.rows, dims.V, Vp), c.rows, Vp, x.pack_LV[0]);

    // S and a
    engine.Multiply(x.S, c.rows, c.rows, false, engine.PackLeft(q, c.rows, Kp, x.pack_LK[0]),
                    engine.PackRightTransposed(k, c.rows, Kp, x.pack_LK[1]), Kp, Causal::kLowerOutput);
    MlstmScores(dims, x, c, q, has_state ? x.n : nullptr, [&](int64_t i) {
      PrefetchRow<T, 1>(head.h, t0 + i, dims.V);
      const int64_t next = t0 + len + i;
      if (next >= dims.T) return;
      PrefetchRow<T>(head.q, next, dims.K);
      PrefetchRow<T>(head.k, next, dims.K);
      PrefetchRow<T>(head.v, next, dims.V);
    });

    // u = S v + alpha s q C
    engine.Multiply(x.u, c.rows, Vp, false,
                    engine.PackLeft(x.S, c.rows, c.rows, x.pack_LL, {}, Causal::kInnerUpToRow), v, c.rows,
                    Causal::kInnerUpToRow);
    if (has_state) {
      engine.Multiply(x.u, c.rows, Vp, true,
                      engine.PackLeft(q, c.rows, Kp, x.pack_LK[0], {.row = x.alpha, .constant = dims.scale}),
                      engine.PackRight(x.C, Kp, Vp, x.pack_KV), Kp);
    }

    // h = u / (N + eps)
    for (int64_t i = 0; i < len; ++i) {
      const float a = x.a[i] < 0.0f ? -x.a[i] : x.a[i];
      const float N = dims.normalize ? Max(a, x.floor[i]) : 1.0f;
      StoreRow<T>(head.h, t0 + i, x.u + i * Vp, dims.normalize ? 1.0f / (N + dims.eps) : 1.0f, dims.V);
      head.denominator[t0 + i] = N;
      head.m[t0 + i] = x.m[i];
    }

    // the state after the chunk, where somebody will read it
    m = x.m[len - 1];
    if (t0 + len < dims.T || head.last.C != nullptr) {
      MlstmNextState(engine, dims, x, c, x.C, x.n, has_state ? x.C : nullptr, x.n, k, v, x.pack_LK[0]);
      has_state = true;
    }
  }
  if (head.last.C != nullptr) {
    if (!has_state) {  // no token, no initial state
      FillZero(x.C, Kp * Vp);
      FillZero(x.n, Kp);
    }
    StoreState(head.last, dims, x.C, x.n);
    *head.last.m = m;
  }
}

// One token: C' = f C + g k v^T, n' = f n + g k, h = C'^T s q / (max(|n'.s q|, e^-m) + eps). No scratch is
// used; the state is read and written once.
template <class T>
static void MlstmStepHead(const MlstmHeadDims& dims, const MlstmHeadForward& head) {
  const bool has_state = head.initial.C != nullptr && !(head.reset != nullptr && head.reset[0]);
  const bool writes = head.last.C != nullptr;
  const T *const q = static_cast<const T*>(head.q.data), *const k = static_cast<const T*>(head.k.data);
  const T* const v = static_cast<const T*>(head.v.data);
  T* const h = static_cast<T*>(head.h.data);
  float f, g, m = 0.0f;
  if (dims.sigmoid_input_gate) {
    f = Sigmoid(head.f_pre[0]);
    g = Sigmoid(head.i_pre[0]);
  } else {
    const float kept = LogSigmoid(head.f_pre[0]) + (has_state ? *head.initial.m : 0.0f);
    m = Max(kept, head.i_pre[0]);
    f = Exp(kept - m);
    g = Exp(head.i_pre[0] - m);
  }
  const float floor = dims.sigmoid_input_gate ? 1.0f : Exp(Min(-m, 80.0f));

  float a = 0.0f;
  for (int64_t d = 0; d < dims.K; ++d) {
    const float n = (has_state ? f * head.initial.n[d] : 0.0f) + g * ToF32(k[d]);
    a += n * ToF32(q[d]);
    if (writes) head.last.n[d] = n;
  }
  a *= dims.scale;
  const float N = dims.normalize ? Max(a < 0.0f ? -a : a, floor) : 1.0f;
  const float inverse = dims.normalize ? 1.0f / (N + dims.eps) : 1.0f;

  // kBlock columns of C at a time, so that u stays in registers
  constexpr int kBlock = 4;
  int64_t e = 0;
  for (; e + kBlock * kLanes <= dims.V; e += kBlock * kLanes) {
    VecF u[kBlock] = {}, v_e[kBlock];
    for (int r = 0; r < kBlock; ++r) v_e[r] = Load(v + e + r * kLanes);
    for (int64_t d = 0; d < dims.K; ++d) {
      const VecF gain = Broadcast(g * ToF32(k[d])), q_d = Broadcast(dims.scale * ToF32(q[d]));
      for (int r = 0; r < kBlock; ++r) {
        const int64_t at = d * dims.V + e + r * kLanes;
        VecF C = gain * v_e[r];
        if (has_state) C += f * Load(head.initial.C + at);
        if (writes) Store(head.last.C + at, C);
        u[r] += q_d * C;
      }
    }
    for (int r = 0; r < kBlock; ++r) Store(h + e + r * kLanes, u[r] * inverse);
  }
  for (; e < dims.V; ++e) {
    float u = 0.0f;
    for (int64_t d = 0; d < dims.K; ++d) {
      const int64_t at = d * dims.V + e;
      float C = g * ToF32(k[d]) * ToF32(v[e]);
      if (has_state) C += f * head.initial.C[at];
      if (writes) head.last.C[at] = C;
      u += dims.scale * ToF32(q[d]) * C;
    }
    StoreOne(h + e, u * inverse);
  }
  head.denominator[0] = N;
  head.m[0] = m;
  if (writes) *head.last.m = m;
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
