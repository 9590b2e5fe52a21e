// Parts of the specification of the mLSTM cell that forward and backward share: scratch of one (batch, head)
// pair, the gates of one chunk and the step from one chunk's state to the next. Symbols: mlstm_reference.h.
#pragma once
#include <algorithm>

#include "kernels/cpu/mlstm_internal.h"

namespace carousel::cpu {

inline float ToWide(bfloat16 x) { return static_cast<float>(x); }
inline float ToWide(float x) { return x; }
inline double ToWide(double x) { return x; }

// Scratch of one pair, W = wide type. K = DHQK, V = DHV, L = chunk length.
template <class W>
struct ReferenceScratch {
  ReferenceScratch(std::byte* base, const MlstmShape& s) {
    const int64_t L = MlstmChunkLength(s), K = s.DHQK, V = s.DHV, NC = CeilDiv(s.T, L);
    MlstmScratch scratch(base);
    for (W** x : {&F, &i_log, &m, &alpha, &a, &rho, &p}) *x = scratch.Take<W>(L);
    for (W** x : {&D, &S, &G}) *x = scratch.Take<W>(L * L);
    for (W** x : {&dq, &dk}) *x = scratch.Take<W>(L * K);
    for (W** x : {&dv, &du}) *x = scratch.Take<W>(L * V);
    C = scratch.Take<W>((NC + 1) * K * V);
    n = scratch.Take<W>((NC + 1) * K);
    dC = scratch.Take<W>(K * V);
    dn = scratch.Take<W>(K);
    bytes = scratch.used_bytes();
  }
  W *F, *i_log, *m, *alpha, *a, *rho, *p;  // (L)
  W *D, *S, *G;                            // (L, L)
  W *dq, *dk;                              // (L, K)
  W *dv, *du;                              // (L, V)
  W *C, *n;    // (NC + 1, K, V), (NC + 1, K): state before every chunk and at the end
  W *dC, *dn;  // (K, V), (K)
  int64_t bytes;
};

// One chunk: tokens t0 .. t0 + len - 1 of one pair.
struct ReferenceChunk {
  int64_t t0, len;
  bool sigmoid_input_gate;
};

// Fills F, i_log, D, alpha and m of one chunk. m_start is the stabiliser of the state before the chunk. A
// null given_m computes m; otherwise given_m[t] holds the forward's values, and they are used.
template <class W>
void ReferenceGates(const ReferenceScratch<W>& x, const ReferenceChunk& c, int64_t L, HeadRows<W> i_pre,
                    HeadRows<W> f_pre, const uint8_t* reset, W m_start, HeadRows<W> given_m) {
  for (int64_t i = 0; i < c.len; ++i) {
    x.F[i] = LogSigmoid(*f_pre[c.t0 + i]);
    x.i_log[i] = c.sigmoid_input_gate ? LogSigmoid(*i_pre[c.t0 + i]) : *i_pre[c.t0 + i];
  }
  int64_t begin = 0;       // first token in this chunk of the document that token i belongs to
  bool fresh = false;      // a document began in this chunk
  W from_start = m_start;  // b_i + m: sum of F over [begin, i], plus m (0 after a reset)
  for (int64_t i = 0; i < c.len; ++i) {
    if (reset != nullptr && reset[c.t0 + i]) {
      begin = i;
      fresh = true;
      from_start = 0;
    }
    from_start += x.F[i];
    // D~: the sum over (j, i] grows by F_i; a sum from j up has no cancellation
    W* const D = x.D + i * L;
    std::fill(D, D + c.len, W(0));
    for (int64_t j = begin; j < i; ++j) D[j] = x.p[j] + x.F[i];
    D[i] = x.i_log[i];
    std::copy(D + begin, D + i + 1, x.p + begin);  // p holds D~ of the last row
    W m = W(0);
    if (!c.sigmoid_input_gate) {
      m = from_start;
      for (int64_t j = begin; j <= i; ++j) m = std::max(m, D[j]);
    }
    if (given_m.data != nullptr) m = *given_m[c.t0 + i];
    x.m[i] = m;
    x.alpha[i] = fresh ? W(0) : std::exp(from_start - m);
    for (int64_t j = begin; j <= i; ++j) D[j] = std::exp(D[j] - m);
  }
}

// S_ij = s (q_i.k_j) D_ij and a_i.
template <class W, class T>
void ReferenceScores(const ReferenceScratch<W>& x, const ReferenceChunk& c, const MlstmShape& s,
                     HeadRows<T> q, HeadRows<T> k, const W* n) {
  const W scale = 1 / std::sqrt(static_cast<W>(s.DHQK));
  const int64_t L = MlstmChunkLength(s);
  for (int64_t i = 0; i < c.len; ++i) {
    const T* const q_i = q[c.t0 + i];
    W from_state = 0, inside = 0;
    for (int64_t d = 0; d < s.DHQK; ++d) from_state += n[d] * ToWide(q_i[d]);
    for (int64_t j = 0; j <= i; ++j) {
      W dot = 0;
      for (int64_t d = 0; d < s.DHQK; ++d) dot += ToWide(q_i[d]) * ToWide(k[c.t0 + j][d]);
      x.S[i * L + j] = scale * dot * x.D[i * L + j];
      inside += x.S[i * L + j];
    }
    x.a[i] = x.alpha[i] * scale * from_state + inside;
  }
}

// (C', n') from (C, n): to_C may be C itself, to_n alike.
template <class W, class T>
void ReferenceNextState(W* to_C, W* to_n, const W* C, const W* n, const ReferenceScratch<W>& x,
                        const ReferenceChunk& c, const MlstmShape& s, HeadRows<T> k, HeadRows<T> v) {
  const W decay = x.alpha[c.len - 1];
  const W* const w = x.D + (c.len - 1) * MlstmChunkLength(s);
  for (int64_t d = 0; d < s.DHQK; ++d) {
    for (int64_t e = 0; e < s.DHV; ++e) to_C[d * s.DHV + e] = decay == 0 ? W(0) : decay * C[d * s.DHV + e];
    to_n[d] = decay == 0 ? W(0) : decay * n[d];
    for (int64_t j = 0; j < c.len; ++j) {
      const W weighted_k = w[j] * ToWide(k[c.t0 + j][d]);
      for (int64_t e = 0; e < s.DHV; ++e) to_C[d * s.DHV + e] += weighted_k * ToWide(v[c.t0 + j][e]);
      to_n[d] += weighted_k;
    }
  }
}

// Loads the initial state of one pair (zero if there is none) and returns its m.
template <class W>
W ReferenceInitialState(W* C, W* n, const HeadState<W>& initial, const MlstmShape& s) {
  if (initial.C == nullptr) {
    std::fill(C, C + s.DHQK * s.DHV, W(0));
    std::fill(n, n + s.DHQK, W(0));
    return W(0);
  }
  std::copy(initial.C, initial.C + s.DHQK * s.DHV, C);
  std::copy(initial.n, initial.n + s.DHQK, n);
  return s.input_gate == InputGate::kSigmoid ? W(0) : *initial.m;
}
}  // namespace carousel::cpu
