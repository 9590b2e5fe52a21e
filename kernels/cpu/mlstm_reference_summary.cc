// What a segment of a sequence does to the state before it, in plain loops over its tokens. Symbols:
// mlstm_reference.h. With r the last token of the segment at which a document begins, or its first token:
//   D~_t = i_t + sum of F over (t, T)     for t >= r
//   m = max over t of D~_t, and of the sum of F over [r, T) if a document begins at r; 0 for kSigmoid
//   C = sum of exp(D~_t - m) k_t v_t^T,  n = sum of exp(D~_t - m) k_t
//   G = sum of all F; -infinity if a document begins in the segment
// Backward, over the tokens t before the first reset, with A_t = exp(sum of F over [0, t] + m_0 - m_t):
//   dC = sum of s A_t q_t du_t^T,  dn = sum of s A_t rho_t q_t,  rho_t with a_t = s n_t.q_t
// No sum of F is a difference of others. 2 DHQK DHV operations per token and pair in both.
#include <limits>

#include "kernels/cpu/mlstm_reference_chunk.h"
#include "kernels/cpu/mlstm_summary.h"
#include "kernels/cpu/mlstm_summary_views.h"

namespace carousel::cpu {
namespace {

template <class T>
void SummaryHead(const MlstmSummaryArgs& args, int64_t b, int64_t head) {
  using W = Wide<T>;
  constexpr W kInfinity = std::numeric_limits<W>::infinity();
  const MlstmShape& s = args.shape;
  const int64_t K = s.DHQK, V = s.DHV;
  const bool sigmoid = s.input_gate == InputGate::kSigmoid;
  const auto k = HeadRowsOf<T>(args.k, s, b, head, K), v = HeadRowsOf<T>(args.v, s, b, head, V);
  const auto i_pre = HeadRowsOf<W>(args.i_pre, s, b, head, 1),
             f_pre = HeadRowsOf<W>(args.f_pre, s, b, head, 1);
  const uint8_t* const reset = ResetsOf(args.reset, s, b);
  const SummaryViews<W> out(args.summary.as<W>(), s, b, head);

  // Calls fn(t, D~_t) from the last token to the first of the last document.
  bool cut = false;
  W after;  // sum of F over (t, T)
  const auto from_the_end = [&](auto&& fn) {
    after = 0;
    for (int64_t t = s.T - 1; t >= 0; --t) {
      fn(t, after + (sigmoid ? LogSigmoid(*i_pre[t]) : *i_pre[t]));
      after += LogSigmoid(*f_pre[t]);
      cut = reset != nullptr && reset[t];
      if (cut) return;
    }
  };
  W m = -kInfinity;
  from_the_end([&](int64_t, W D) { m = std::max(m, D); });
  if (cut) m = std::max(m, after);
  if (sigmoid) m = 0;
  *out.state.m = m;
  *out.G = cut ? -kInfinity : after;
  std::fill(out.state.C, out.state.C + K * V, W(0));
  std::fill(out.state.n, out.state.n + K, W(0));
  from_the_end([&](int64_t t, W D) {
    const W weight = D == -kInfinity ? W(0) : std::exp(D - m);
    if (weight == 0) return;
    for (int64_t d = 0; d < K; ++d) {
      const W weighted_k = weight * ToWide(k[t][d]);
      for (int64_t e = 0; e < V; ++e) out.state.C[d * V + e] += weighted_k * ToWide(v[t][e]);
      out.state.n[d] += weighted_k;
    }
  });
}

template <class T>
void SummaryBackwardHead(const MlstmSummaryBackwardArgs& args, int64_t b, int64_t head, std::byte* slot) {
  using W = Wide<T>;
  const MlstmShape& s = args.shape;
  const int64_t K = s.DHQK, V = s.DHV;
  const W scale = 1 / std::sqrt(static_cast<W>(K));
  const bool sigmoid = s.input_gate == InputGate::kSigmoid;
  const bool exact = s.normalize && args.normalizer_gradient == NormalizerGradient::kExact;
  const auto q = HeadRowsOf<T>(args.q, s, b, head, K), k = HeadRowsOf<T>(args.k, s, b, head, K);
  const auto h = HeadRowsOf<T>(args.h, s, b, head, V), dh = HeadRowsOf<T>(args.dh, s, b, head, V);
  const auto i_pre = HeadRowsOf<W>(args.i_pre, s, b, head, 1),
             f_pre = HeadRowsOf<W>(args.f_pre, s, b, head, 1);
  const auto m = HeadRowsOf<W>(args.m, s, b, head, 1),
             denominator = HeadRowsOf<W>(args.denominator, s, b, head, 1);
  const uint8_t* const reset = ResetsOf(args.reset, s, b);
  const HeadState<W> initial = HeadStateOf<W>(args.initial, s, b, head);
  const HeadState<W> out = StateGradientOf(args.dstate.as<W>(), s, b, head);
  std::fill(out.C, out.C + K * V, W(0));
  std::fill(out.n, out.n + K, W(0));

  const ReferenceScratch<W> x(slot, s);
  W* const n = x.n;  // after token t
  W m_before = 0;
  std::fill(n, n + K, W(0));
  if (initial.C != nullptr) {
    std::copy(initial.n, initial.n + K, n);
    if (!sigmoid) m_before = *initial.m;
  }
  W from_start = m_before;  // sum of F over [0, t], plus m_0
  for (int64_t t = 0; t < s.T && !(reset != nullptr && reset[t]); ++t) {
    const W F = LogSigmoid(*f_pre[t]);
    const W m_t = sigmoid ? W(0) : *m[t];
    const W f = std::exp(F + m_before - m_t);
    const W g = std::exp((sigmoid ? LogSigmoid(*i_pre[t]) : *i_pre[t]) - m_t);
    m_before = m_t;
    from_start += F;
    const W from_state = scale * std::exp(from_start - m_t);
    if (from_state == 0) return;  // and so for all later tokens
    const W divisor = s.normalize ? *denominator[t] + static_cast<W>(s.eps) : W(1);
    W n_dot_q = 0, dh_dot_h = 0, rho = 0;
    for (int64_t d = 0; d < K; ++d) {
      n[d] = f * n[d] + g * ToWide(k[t][d]);
      n_dot_q += n[d] * ToWide(q[t][d]);
    }
    for (int64_t e = 0; e < V; ++e) dh_dot_h += ToWide(dh[t][e]) * ToWide(h[t][e]);
    if (exact && scale * std::abs(n_dot_q) > DenominatorFloor(m_t)) {
      rho = (n_dot_q < 0 ? dh_dot_h : -dh_dot_h) / divisor;
    }
    for (int64_t d = 0; d < K; ++d) {
      const W weighted_q = from_state * ToWide(q[t][d]);
      for (int64_t e = 0; e < V; ++e) out.C[d * V + e] += weighted_q * (ToWide(dh[t][e]) / divisor);
      out.n[d] += weighted_q * rho;
    }
  }
}
}  // namespace

void MlstmReferenceSummary(const MlstmSummaryArgs& args, ThreadPool& pool) {
  DispatchFloat(args.k.dtype, [&]<class T>() {
    ForEachHead(args.shape, args.workspace, /*slot_bytes=*/0, pool,
                [&](int64_t b, int64_t head, std::byte*) { SummaryHead<T>(args, b, head); });
  });
}
void MlstmReferenceSummaryBackward(const MlstmSummaryBackwardArgs& args, ThreadPool& pool) {
  DispatchFloat(args.q.dtype, [&]<class T>() {
    const int64_t slot_bytes = ReferenceScratch<Wide<T>>(nullptr, args.shape).bytes;
    ForEachHead(args.shape, args.workspace, slot_bytes, pool, [&](int64_t b, int64_t head, std::byte* slot) {
      SummaryBackwardHead<T>(args, b, head, slot);
    });
  });
}
}  // namespace carousel::cpu
