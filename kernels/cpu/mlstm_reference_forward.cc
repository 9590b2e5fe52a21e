// Forward of the mLSTM cell in plain loops. The formulas are in mlstm_reference.h.
#include "kernels/cpu/mlstm_reference.h"
#include "kernels/cpu/mlstm_reference_chunk.h"

namespace carousel::cpu {
namespace {

template <class T>
void ForwardHead(const MlstmForwardArgs& args, int64_t b, int64_t head, std::byte* slot) {
  using W = Wide<T>;
  const MlstmShape& s = args.shape;
  const int64_t K = s.DHQK, V = s.DHV, L = MlstmChunkLength(s);
  const W scale = 1 / std::sqrt(static_cast<W>(K));
  const bool sigmoid = s.input_gate == InputGate::kSigmoid;
  const ReferenceScratch<W> x(slot, s);
  const auto q = HeadRowsOf<T>(args.q, s, b, head, K), k = HeadRowsOf<T>(args.k, s, b, head, K);
  const auto v = HeadRowsOf<T>(args.v, s, b, head, V), h = HeadRowsOf<T>(args.h, s, b, head, V);
  const auto i_pre = HeadRowsOf<W>(args.i_pre, s, b, head, 1),
             f_pre = HeadRowsOf<W>(args.f_pre, s, b, head, 1);
  const auto m_out = HeadRowsOf<W>(args.m, s, b, head, 1);
  const auto denominator = HeadRowsOf<W>(args.denominator, s, b, head, 1);
  const uint8_t* const reset = ResetsOf(args.reset, s, b);

  W *const C = x.C, *const n = x.n;
  W m = ReferenceInitialState(C, n, HeadStateOf<W>(args.initial, s, b, head), s);
  for (int64_t t0 = 0; t0 < s.T; t0 += L) {
    const ReferenceChunk c = {t0, std::min(L, s.T - t0), sigmoid};
    ReferenceGates<W>(x, c, L, i_pre, f_pre, reset, m, /*given_m=*/{});
    ReferenceScores(x, c, s, q, k, n);
    for (int64_t i = 0; i < c.len; ++i) {
      // u_i
      W* const u = x.du;
      for (int64_t e = 0; e < V; ++e) {
        W from_state = 0, inside = 0;
        for (int64_t d = 0; d < K; ++d) from_state += C[d * V + e] * ToWide(q[t0 + i][d]);
        for (int64_t j = 0; j <= i; ++j) inside += x.S[i * L + j] * ToWide(v[t0 + j][e]);
        u[e] = x.alpha[i] * scale * from_state + inside;
      }
      // h_i; without a normalizer the sum itself
      const W floor = DenominatorFloor(x.m[i]);
      const W N = s.normalize ? std::max(std::abs(x.a[i]), floor) : W(1);
      const W divisor = s.normalize ? N + static_cast<W>(s.eps) : W(1);
      for (int64_t e = 0; e < V; ++e) h[t0 + i][e] = static_cast<T>(u[e] / divisor);
      *denominator[t0 + i] = N;
      *m_out[t0 + i] = x.m[i];
    }
    ReferenceNextState(C, n, C, n, x, c, s, k, v);
    m = x.m[c.len - 1];
  }
  if (const HeadState<W> last = HeadStateOf<W>(args.last, s, b, head); last.C != nullptr) {
    std::copy(C, C + K * V, last.C);
    std::copy(n, n + K, last.n);
    *last.m = m;
  }
}
}  // namespace

int64_t MlstmReferenceWorkspaceBytes(const MlstmShape& s, DType compute) {
  const int64_t slot_bytes = WideOf(compute) == DType::kF64 ? ReferenceScratch<double>(nullptr, s).bytes
                                                            : ReferenceScratch<float>(nullptr, s).bytes;
  return MlstmNumSlots(s) * slot_bytes + kMlstmAlign;
}

void MlstmReferenceForward(const MlstmForwardArgs& args, ThreadPool& pool) {
  DispatchFloat(args.q.dtype, [&]<class T>() {
    const int64_t slot_bytes = ReferenceScratch<Wide<T>>(nullptr, args.shape).bytes;
    ForEachHead(args.shape, args.workspace, slot_bytes, pool,
                [&](int64_t b, int64_t head, std::byte* slot) { ForwardHead<T>(args, b, head, slot); });
  });
}
}  // namespace carousel::cpu
