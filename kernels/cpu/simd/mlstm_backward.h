// Backward of the mLSTM cell, one (batch, head) pair. Formulas: kernels/cpu/mlstm_reference.h.
#pragma once
#include "kernels/cpu/simd/mlstm_chunk.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

template <class T, class Engine>
class MlstmBackwardHead {
 public:
  MlstmBackwardHead(const MlstmHeadDims& dims, const MlstmHeadBackward& head)
      : dims_(dims), head_(head), x_(head.scratch) {}

  void Run() {
    RecomputeStates();
    bool has_dC = head_.dlast.C != nullptr;
    if (has_dC) LoadState(x_.dC, x_.dn, dims_, head_.dlast);
    for (int64_t index = NumChunks() - 1; index >= 0; --index) {
      const MlstmChunk c = Chunk(index);
      const bool has_state = index > 0 || head_.initial.C != nullptr;
      Load(c);
      Weights(c, has_state ? C(index) : nullptr, has_state ? n(index) : nullptr);
      Queries(c, has_state ? C(index) : nullptr, n(index));
      KeysAndValues(c, has_dC);
      GateGradients(c, has_dC ? C(index + 1) : nullptr, n(index + 1));
      if (index > 0 || head_.dinitial.C != nullptr) {
        PreviousState(c, has_dC);
        has_dC = true;
      }
    }
    if (head_.dinitial.C != nullptr) WriteInitial(has_dC);
  }

 private:
  using Right = typename Engine::Right;
  int64_t NumChunks() const { return (dims_.T + dims_.L - 1) / dims_.L; }
  float* C(int64_t index) const {
    return x_.C + index * dims_.Kp * dims_.Vp;
  }  // the state before chunk `index`
  float* n(int64_t index) const { return x_.n + index * dims_.Kp; }
  MlstmChunk Chunk(int64_t index) const {
    const int64_t t0 = index * dims_.L, len = AtMost(dims_.L, dims_.T - t0);
    return {t0, len, PadRows(len)};
  }
  void Gates(const MlstmChunk& c) const {
    float m_start = c.t0 > 0 ? head_.m[c.t0 - 1] : 0.0f;
    if (c.t0 == 0 && head_.initial.C != nullptr && !dims_.sigmoid_input_gate) m_start = *head_.initial.m;
    MlstmGates(dims_, x_, c, head_.i_pre, head_.f_pre, head_.reset, m_start, head_.m);
  }

  // The state before every chunk, and at the end if a gradient arrives there.
  void RecomputeStates() const {
    if (head_.initial.C != nullptr) LoadState(C(0), n(0), dims_, head_.initial);
    const int64_t num_states = NumChunks() + (head_.dlast.C != nullptr ? 1 : 0);
    for (int64_t index = 0; index + 1 < num_states; ++index) {
      const MlstmChunk c = Chunk(index);
      Gates(c);
      const T* const k = CopyRows<T>(x_.k, head_.k, c.t0, c.len, c.rows, dims_.K, dims_.Kp);
      const T* const v = CopyRows<T>(x_.v, head_.v, c.t0, c.len, c.rows, dims_.V, dims_.Vp);
      const bool has_state = index > 0 || head_.initial.C != nullptr;
      MlstmNextState(engine_, dims_, x_, c, C(index + 1), n(index + 1), has_state ? C(index) : nullptr,
                     n(index), k, engine_.PackRight(v, c.rows, dims_.Vp, x_.pack_LV[0]), x_.pack_LK[0]);
    }
  }

  // Gates, q, k, v and du (in x.u).
  void Load(const MlstmChunk& c) {
    Gates(c);
    q_ = CopyRows<T>(x_.q, head_.q, c.t0, c.len, c.rows, dims_.K, dims_.Kp);
    k_ = CopyRows<T>(x_.k, head_.k, c.t0, c.len, c.rows, dims_.K, dims_.Kp);
    v_ = CopyRows<T>(x_.v, head_.v, c.t0, c.len, c.rows, dims_.V, dims_.Vp);
    NumeratorGradients<T>(dims_, x_, c, head_.dh, head_.denominator);
  }
  template <class E>
  CAROUSEL_INLINE VecF SimdLoad(const E* p) {
    return CAROUSEL_SIMD_NS::Load(p);
  }

  // S, a, rho and G = D (du.v + rho); G is scaled by s. dq = s alpha (du C^T), the part of Queries that rho
  // needs.
  //
  // rho has dh.h = du.u, u the numerator, which is taken from the very products that G holds and not from the
  // h that the forward rounded: where one pair dominates, du.v + rho cancels, and does so exactly only if
  // both come from the same numbers.
  void Weights(const MlstmChunk& c, const float* C, const float* n) {
    const int64_t Kp = dims_.Kp, Vp = dims_.Vp;
    engine_.Multiply(x_.S, c.rows, c.rows, false, engine_.PackLeft(q_, c.rows, Kp, x_.pack_LK[0]),
                     engine_.PackRightTransposed(k_, c.rows, Kp, x_.pack_LK[1]), Kp, Causal::kLowerOutput);
    MlstmScores(dims_, x_, c, q_, n, [&](int64_t i) {
      PrefetchRow<T, 1>(head_.dq, c.t0 + i, dims_.K);
      PrefetchRow<T, 1>(head_.dk, c.t0 + i, dims_.K);
      if (c.t0 == 0) return;
      PrefetchRow<T>(head_.dh, c.t0 - dims_.L + i, dims_.V);
    });
    engine_.Multiply(x_.G, c.rows, c.rows, false, engine_.PackLeft(x_.u, c.rows, Vp, x_.pack_LV[0]),
                     engine_.PackRightTransposed(v_, c.rows, Vp, x_.pack_LV[1]), Vp, Causal::kLowerOutput);
    if (C != nullptr) {
      engine_.Multiply(
          x_.dq, c.rows, Kp, false,
          engine_.PackLeft(x_.u, c.rows, Vp, x_.pack_LV[0], {.row = x_.alpha, .constant = dims_.scale}),
          engine_.PackRightTransposed(C, Kp, Vp, x_.pack_KV), Vp);
    }
    const bool exact = dims_.normalize && dims_.exact_normalizer_gradient;
    if (exact) {
      for (int64_t i = 0; i < c.len; ++i) {
        VecF dot{};
        for (int64_t j = 0; j <= i; j += kLanes)  // S is zero after the diagonal
          dot += SimdLoad(x_.S + i * c.rows + j) * SimdLoad(x_.G + i * c.rows + j);
        if (C != nullptr) {
          for (int64_t d = i * Kp; d < (i + 1) * Kp; d += kLanes)
            dot += SimdLoad(q_ + d) * SimdLoad(x_.dq + d);
        }
        Store(x_.partial + i * kLanes, dot);
      }
      FillZero(x_.partial + c.len * kLanes, (c.rows - c.len) * kLanes);
      SumRows(x_.rho, x_.partial, c.rows);
    }
    FillZero(x_.decay_row, c.rows);
    for (int64_t i = 0; i < c.len; ++i) {
      PrefetchRow<T, 1>(head_.dv, c.t0 + i, dims_.V);
      if (c.t0 > 0) {
        PrefetchRow<T>(head_.q, c.t0 - dims_.L + i, dims_.K);
        PrefetchRow<T>(head_.k, c.t0 - dims_.L + i, dims_.K);
        PrefetchRow<T>(head_.v, c.t0 - dims_.L + i, dims_.V);
      }
      const float a = x_.a[i], magnitude = a < 0.0f ? -a : a;
      const float minus_sign = a < 0.0f ? 1.0f : -1.0f;
      x_.rho[i] = exact && magnitude > x_.floor[i] ? minus_sign * x_.rho[i] * x_.inverse[i] : 0.0f;
      float* const G = x_.G + i * c.rows;
      NextDecayRow(
          x_, i, [&](int64_t j, VecF D) { Store(G + j, (SimdLoad(G + j) + x_.rho[i]) * (D * dims_.scale)); });
    }
    FillZero(x_.G + c.len * c.rows, (c.rows - c.len) * c.rows);
    FillZero(x_.rho + c.len, c.rows - c.len);
  }

  // dq = s (G k + alpha (du C^T + rho n)), with s already in G and the part with C already in dq
  void Queries(const MlstmChunk& c, const float* C, const float* n) {
    const int64_t Kp = dims_.Kp;
    engine_.Multiply(x_.dq, c.rows, Kp, C != nullptr,
                     engine_.PackLeft(x_.G, c.rows, c.rows, x_.pack_LL, {}, Causal::kInnerUpToRow),
                     engine_.PackRight(k_, c.rows, Kp, x_.pack_LK[0]), c.rows, Causal::kInnerUpToRow);
    for (int64_t i = 0; i < c.len; ++i) {
      float* const dq = x_.dq + i * Kp;
      const float through_n = dims_.scale * x_.alpha[i] * x_.rho[i];
      if (C != nullptr && through_n != 0.0f) {
        for (int64_t d = 0; d < Kp; d += kLanes)
          Store(dq + d, SimdLoad(dq + d) + SimdLoad(n + d) * through_n);
      }
      StoreRow<T>(head_.dq, c.t0 + i, dq, 1.0f, dims_.K);
    }
  }

  // dk = s G^T q + w (v dC'^T + dn'),  dv = S^T du + w k dC'
  void KeysAndValues(const MlstmChunk& c, bool has_dC) {
    const int64_t Kp = dims_.Kp, Vp = dims_.Vp;
    engine_.Multiply(x_.dk, c.rows, Kp, false,
                     engine_.PackLeftTransposed(x_.G, c.rows, c.rows, x_.pack_LL, {}, Causal::kInnerFromRow),
                     engine_.PackRight(q_, c.rows, Kp, x_.pack_LK[0]), c.rows, Causal::kInnerFromRow);
    if (has_dC) {
      engine_.Multiply(x_.dk, c.rows, Kp, true,
                       engine_.PackLeft(v_, c.rows, Vp, x_.pack_LV[0], {.row = x_.w}),
                       engine_.PackRightTransposed(x_.dC, Kp, Vp, x_.pack_KV), Vp);
    }
    for (int64_t j = 0; j < c.len; ++j) {
      float* const dk = x_.dk + j * Kp;
      if (has_dC) {
        for (int64_t d = 0; d < Kp; d += kLanes)
          Store(dk + d, SimdLoad(dk + d) + SimdLoad(x_.dn + d) * x_.w[j]);
      }
      StoreRow<T>(head_.dk, c.t0 + j, dk, 1.0f, dims_.K);
    }
    du_ = engine_.PackRight(x_.u, c.rows, Vp, x_.pack_LV[1]);
    float* const dv = x_.dv;
    engine_.Multiply(dv, c.rows, Vp, false,
                     engine_.PackLeftTransposed(x_.S, c.rows, c.rows, x_.pack_LL, {}, Causal::kInnerFromRow),
                     du_, c.rows, Causal::kInnerFromRow);
    if (has_dC) {
      engine_.Multiply(dv, c.rows, Vp, true, engine_.PackLeft(k_, c.rows, Kp, x_.pack_LK[0], {.row = x_.w}),
                       engine_.PackRight(x_.dC, Kp, Vp, x_.pack_KV), Kp);
    }
    for (int64_t j = 0; j < c.len; ++j) StoreRow<T>(head_.dv, c.t0 + j, dv + j * Vp, 1.0f, dims_.V);
  }

  // di = k.dk, dF from the end of the chunk. C, n: the state after it (C null where no gradient arrives
  // there).
  void GateGradients(const MlstmChunk& c, const float* C, const float* n) const {
    const int64_t Kp = dims_.Kp, size = Kp * dims_.Vp;
    float dF = 0.0f;
    if (C != nullptr) {
      VecF sum[4] = {};  // four chains; Kp * Vp is a multiple of 4 vectors
      for (int64_t e = 0; e < size; e += 4 * kLanes) {
        for (int r = 0; r < 4; ++r) sum[r] += SimdLoad(C + e + r * kLanes) * SimdLoad(x_.dC + e + r * kLanes);
      }
      VecF dot{};
      for (int64_t d = 0; d < Kp; d += kLanes) dot += SimdLoad(n + d) * SimdLoad(x_.dn + d);
      dF = SumLanes((sum[0] + sum[1]) + (sum[2] + sum[3]) + dot);
    }
    RowDots(x_.a, q_, x_.dq, c.rows);        // q.dq
    RowDots(x_.inverse, k_, x_.dk, c.rows);  // k.dk
    for (int64_t i = c.len - 1; i >= 0; --i) {
      const int64_t t = c.t0 + i;
      const float di = x_.inverse[i];
      head_.di_pre[t] = dims_.sigmoid_input_gate ? di * Sigmoid(-head_.i_pre[t]) : di;
      dF += x_.a[i] - di;
      const bool begins =
          (head_.reset != nullptr && head_.reset[t]) || (t == 0 && head_.initial.C == nullptr);
      if (begins) dF = 0.0f;
      x_.partial[i] = dF;
      x_.m[i] = -head_.f_pre[t];
    }
    for (int64_t i = 0; i < c.rows; i += kLanes) Store(x_.m + i, Sigmoid(SimdLoad(x_.m + i)));
    for (int64_t i = 0; i < c.len; ++i) head_.df_pre[c.t0 + i] = x_.partial[i] * x_.m[i];
  }
  void RowDots(float* dots, const T* x, const float* y, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i) {
      VecF dot{};
      for (int64_t d = i * dims_.Kp; d < (i + 1) * dims_.Kp; d += kLanes)
        dot += SimdLoad(x + d) * SimdLoad(y + d);
      Store(x_.partial + i * kLanes, dot);
    }
    SumRows(dots, x_.partial, rows);
  }

  // dC = alpha_last dC' + (s alpha q)^T du, dn = alpha_last dn' + sum of s alpha rho q
  void PreviousState(const MlstmChunk& c, bool has_dC) {
    const int64_t Kp = dims_.Kp, Vp = dims_.Vp;
    const float kept = x_.alpha[c.len - 1];
    const bool accumulate = has_dC && kept != 0.0f;
    if (accumulate) ScaleState(x_.dC, x_.dC, kept, Kp * Vp);
    engine_.Multiply(
        x_.dC, Kp, Vp, accumulate,
        engine_.PackLeftTransposed(q_, c.rows, Kp, x_.pack_LK[0], {.row = x_.alpha, .constant = dims_.scale}),
        du_, c.rows);
    for (int64_t i = 0; i < c.rows; ++i) x_.inverse[i] = dims_.scale * x_.alpha[i] * x_.rho[i];
    WeightedRowSum(x_.dn, accumulate ? x_.dn : nullptr, kept, q_, x_.inverse, c.rows, Kp);
  }

  // dm = <C, dC> + <n, dn>
  void WriteInitial(bool has_dC) {
    if (!has_dC) {  // no token and no gradient of the last state
      FillZero(x_.dC, dims_.Kp * dims_.Vp);
      FillZero(x_.dn, dims_.Kp);
    }
    float dm = 0.0f;
    if (head_.initial.C != nullptr && !dims_.sigmoid_input_gate) {
      VecF sum{};
      const int64_t size = dims_.Kp * dims_.Vp;
      for (int64_t e = 0; e < size; e += kLanes) sum += SimdLoad(C(0) + e) * SimdLoad(x_.dC + e);
      for (int64_t d = 0; d < dims_.Kp; d += kLanes) sum += SimdLoad(n(0) + d) * SimdLoad(x_.dn + d);
      dm = SumLanes(sum);
    }
    StoreState(head_.dinitial, dims_, x_.dC, x_.dn);
    *head_.dinitial.m = dm;
  }

  const Engine engine_{};
  const MlstmHeadDims& dims_;
  const MlstmHeadBackward& head_;
  const MlstmHeadScratch& x_;
  const T *q_ = nullptr, *k_ = nullptr, *v_ = nullptr;  // the chunk's rows, padded
  Right du_{};
};
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
