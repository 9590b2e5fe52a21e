// Backward of the mLSTM cell in plain loops. The formulas are in mlstm_reference.h.
#include "kernels/cpu/mlstm_reference.h"
#include "kernels/cpu/mlstm_reference_chunk.h"

namespace carousel::cpu {
namespace {

// One (batch, head) pair.
template <class T>
class HeadBackward {
 public:
  using W = Wide<T>;
  HeadBackward(const MlstmBackwardArgs& args, int64_t b, int64_t head, std::byte* slot)
      : args_(args),
        s_(args.shape),
        x_(slot, s_),
        q_(HeadRowsOf<T>(args.q, s_, b, head, s_.DHQK)),
        k_(HeadRowsOf<T>(args.k, s_, b, head, s_.DHQK)),
        v_(HeadRowsOf<T>(args.v, s_, b, head, s_.DHV)),
        h_(HeadRowsOf<T>(args.h, s_, b, head, s_.DHV)),
        dh_(HeadRowsOf<T>(args.dh, s_, b, head, s_.DHV)),
        dq_(HeadRowsOf<T>(args.dq, s_, b, head, s_.DHQK)),
        dk_(HeadRowsOf<T>(args.dk, s_, b, head, s_.DHQK)),
        dv_(HeadRowsOf<T>(args.dv, s_, b, head, s_.DHV)),
        i_pre_(HeadRowsOf<W>(args.i_pre, s_, b, head, 1)),
        f_pre_(HeadRowsOf<W>(args.f_pre, s_, b, head, 1)),
        di_pre_(HeadRowsOf<W>(args.di_pre, s_, b, head, 1)),
        df_pre_(HeadRowsOf<W>(args.df_pre, s_, b, head, 1)),
        m_(HeadRowsOf<W>(args.m, s_, b, head, 1)),
        denominator_(HeadRowsOf<W>(args.denominator, s_, b, head, 1)),
        reset_(ResetsOf(args.reset, s_, b)),
        initial_(HeadStateOf<W>(args.initial, s_, b, head)),
        dlast_(HeadStateOf<W>(args.dlast, s_, b, head)),
        dinitial_(HeadStateOf<W>(args.dinitial, s_, b, head)) {}

  void Run() {
    RecomputeStates();
    StartFromLast();
    for (int64_t c = CeilDiv(s_.T, L_) - 1; c >= 0; --c) {
      const ReferenceChunk chunk = Chunk(c);
      Gates(chunk);
      ReferenceScores(x_, chunk, s_, q_, k_, N(c));
      Weights(chunk);
      Queries(chunk, C(c), N(c));
      KeysAndValues(chunk);
      GateGradients(chunk, C(c + 1), N(c + 1));
      PreviousState(chunk);
    }
    WriteInitial();
  }

 private:
  W* C(int64_t c) const { return x_.C + c * s_.DHQK * s_.DHV; }  // the state before chunk c
  W* N(int64_t c) const { return x_.n + c * s_.DHQK; }
  ReferenceChunk Chunk(int64_t c) const {
    return {c * L_, std::min(L_, s_.T - c * L_), s_.input_gate == InputGate::kSigmoid};
  }
  void Gates(const ReferenceChunk& c) {
    ReferenceGates<W>(x_, c, L_, i_pre_, f_pre_, reset_, c.t0 == 0 ? m_start_ : *m_[c.t0 - 1], m_);
  }

  void RecomputeStates() {
    m_start_ = ReferenceInitialState(C(0), N(0), initial_, s_);
    for (int64_t c = 0; c * L_ < s_.T; ++c) {
      Gates(Chunk(c));
      ReferenceNextState(C(c + 1), N(c + 1), C(c), N(c), x_, Chunk(c), s_, k_, v_);
    }
  }

  void StartFromLast() {
    std::fill(x_.dC, x_.dC + s_.DHQK * s_.DHV, W(0));
    std::fill(x_.dn, x_.dn + s_.DHQK, W(0));
    if (dlast_.C == nullptr) return;
    std::copy(dlast_.C, dlast_.C + s_.DHQK * s_.DHV, x_.dC);
    std::copy(dlast_.n, dlast_.n + s_.DHQK, x_.dn);
  }

  // du_i, rho_i, G_ij
  void Weights(const ReferenceChunk& c) {
    const int64_t V = s_.DHV;
    for (int64_t i = 0; i < c.len; ++i) {
      const int64_t t = c.t0 + i;
      const W divisor = s_.normalize ? *denominator_[t] + static_cast<W>(s_.eps) : W(1);
      W dh_dot_h = 0;
      for (int64_t e = 0; e < V; ++e) {
        x_.du[i * V + e] = ToWide(dh_[t][e]) / divisor;
        dh_dot_h += ToWide(dh_[t][e]) * ToWide(h_[t][e]);
      }
      const bool through_normalizer = s_.normalize &&
                                      args_.normalizer_gradient == NormalizerGradient::kExact &&
                                      std::abs(x_.a[i]) > DenominatorFloor(x_.m[i]);
      const W sign = x_.a[i] < 0 ? W(-1) : W(1);
      x_.rho[i] = through_normalizer ? -dh_dot_h / divisor * sign : W(0);
      for (int64_t j = 0; j <= i; ++j) {
        W du_dot_v = 0;
        for (int64_t e = 0; e < V; ++e) du_dot_v += x_.du[i * V + e] * ToWide(v_[c.t0 + j][e]);
        x_.G[i * L_ + j] = x_.D[i * L_ + j] * (du_dot_v + x_.rho[i]);
      }
    }
  }

  // dq_i
  void Queries(const ReferenceChunk& c, const W* C, const W* n) {
    const int64_t K = s_.DHQK, V = s_.DHV;
    for (int64_t i = 0; i < c.len; ++i) {
      for (int64_t d = 0; d < K; ++d) {
        W inside = 0, from_state = x_.rho[i] * n[d];
        for (int64_t j = 0; j <= i; ++j) inside += x_.G[i * L_ + j] * ToWide(k_[c.t0 + j][d]);
        for (int64_t e = 0; e < V; ++e) from_state += C[d * V + e] * x_.du[i * V + e];
        x_.dq[i * K + d] = scale_ * (inside + x_.alpha[i] * from_state);
        dq_[c.t0 + i][d] = static_cast<T>(x_.dq[i * K + d]);
      }
    }
  }

  // dk_j, dv_j
  void KeysAndValues(const ReferenceChunk& c) {
    const int64_t K = s_.DHQK, V = s_.DHV;
    const W* const w = x_.D + (c.len - 1) * L_;
    for (int64_t j = 0; j < c.len; ++j) {
      for (int64_t d = 0; d < K; ++d) {
        W inside = 0, from_state = x_.dn[d];
        for (int64_t i = j; i < c.len; ++i) inside += x_.G[i * L_ + j] * ToWide(q_[c.t0 + i][d]);
        for (int64_t e = 0; e < V; ++e) from_state += x_.dC[d * V + e] * ToWide(v_[c.t0 + j][e]);
        x_.dk[j * K + d] = scale_ * inside + w[j] * from_state;
        dk_[c.t0 + j][d] = static_cast<T>(x_.dk[j * K + d]);
      }
      for (int64_t e = 0; e < V; ++e) {
        W inside = 0, from_state = 0;
        for (int64_t i = j; i < c.len; ++i) inside += x_.S[i * L_ + j] * x_.du[i * V + e];
        for (int64_t d = 0; d < K; ++d) from_state += x_.dC[d * V + e] * ToWide(k_[c.t0 + j][d]);
        dv_[c.t0 + j][e] = static_cast<T>(inside + w[j] * from_state);
      }
    }
  }

  // di_j and dF_t. C and n are the state after the chunk, x_.dC and x_.dn still its gradient.
  void GateGradients(const ReferenceChunk& c, const W* C, const W* n) {
    const int64_t K = s_.DHQK;
    W dF = 0;
    for (int64_t e = 0; e < K * s_.DHV; ++e) dF += C[e] * x_.dC[e];
    for (int64_t d = 0; d < K; ++d) dF += n[d] * x_.dn[d];
    for (int64_t i = c.len - 1; i >= 0; --i) {
      const int64_t t = c.t0 + i;
      W q_dot_dq = 0, k_dot_dk = 0;
      for (int64_t d = 0; d < K; ++d) q_dot_dq += ToWide(q_[t][d]) * x_.dq[i * K + d];
      for (int64_t d = 0; d < K; ++d) k_dot_dk += ToWide(k_[t][d]) * x_.dk[i * K + d];
      *di_pre_[t] = c.sigmoid_input_gate ? k_dot_dk * SigmoidOfMinus(*i_pre_[t]) : k_dot_dk;
      dF += q_dot_dq - k_dot_dk;
      const bool begins = (reset_ != nullptr && reset_[t]) || (t == 0 && initial_.C == nullptr);
      if (begins)
        dF = 0;  // nothing before t, so nothing is forgotten; the sum starts again for the document before
      *df_pre_[t] = dF * SigmoidOfMinus(*f_pre_[t]);
    }
  }

  // dC, dn before the chunk from those after it
  void PreviousState(const ReferenceChunk& c) {
    const int64_t K = s_.DHQK, V = s_.DHV;
    const W decay = x_.alpha[c.len - 1];
    for (int64_t d = 0; d < K; ++d) {
      for (int64_t e = 0; e < V; ++e) x_.dC[d * V + e] *= decay;
      x_.dn[d] *= decay;
      for (int64_t i = 0; i < c.len; ++i) {
        const W weighted_q = scale_ * x_.alpha[i] * ToWide(q_[c.t0 + i][d]);
        for (int64_t e = 0; e < V; ++e) x_.dC[d * V + e] += weighted_q * x_.du[i * V + e];
        x_.dn[d] += weighted_q * x_.rho[i];
      }
    }
  }

  void WriteInitial() {
    if (dinitial_.C == nullptr) return;
    W dm = 0;
    for (int64_t e = 0; e < s_.DHQK * s_.DHV; ++e) dm += C(0)[e] * x_.dC[e];
    for (int64_t d = 0; d < s_.DHQK; ++d) dm += N(0)[d] * x_.dn[d];
    std::copy(x_.dC, x_.dC + s_.DHQK * s_.DHV, dinitial_.C);
    std::copy(x_.dn, x_.dn + s_.DHQK, dinitial_.n);
    *dinitial_.m = s_.input_gate == InputGate::kSigmoid ? W(0) : dm;
  }

  const MlstmBackwardArgs& args_;
  const MlstmShape& s_;
  const int64_t L_ = MlstmChunkLength(s_);
  const W scale_ = 1 / std::sqrt(static_cast<W>(s_.DHQK));
  const ReferenceScratch<W> x_;
  const HeadRows<T> q_, k_, v_, h_, dh_, dq_, dk_, dv_;
  const HeadRows<W> i_pre_, f_pre_, di_pre_, df_pre_, m_, denominator_;
  const uint8_t* const reset_;
  const HeadState<W> initial_, dlast_, dinitial_;
  W m_start_ = 0;
};
}  // namespace

void MlstmReferenceBackward(const MlstmBackwardArgs& args, ThreadPool& pool) {
  DispatchFloat(args.q.dtype, [&]<class T>() {
    const int64_t slot_bytes = ReferenceScratch<Wide<T>>(nullptr, args.shape).bytes;
    ForEachHead(args.shape, args.workspace, slot_bytes, pool, [&](int64_t b, int64_t head, std::byte* slot) {
      HeadBackward<T>(args, b, head, slot).Run();
    });
  });
}
}  // namespace carousel::cpu
