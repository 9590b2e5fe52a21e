// One problem for the mLSTM cell with inputs in double, and a run of any implementation on it in any dtype.
// Every output and the workspace start as NaN, and every row is longer than its tensor, filled with a
// sentinel that must survive.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/base/random.h"
#include "kernels/cpu/mlstm.h"
#include "kernels/cpu/mlstm_reference.h"

namespace carousel::mlstm_test {

using Values = std::vector<double>;

// Inputs, token-major as in core/ops.h. Empty initial_C: no initial state; empty dC: no gradient of the last
// state.
struct Problem {
  MlstmShape shape;
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
  Values q, k, v, i_pre, f_pre, dh;
  std::vector<uint8_t> reset;  // empty: none
  Values initial_C, initial_n, initial_m;
  Values dC, dn;
  int64_t N() const { return shape.B * shape.T; }
};
struct Result {
  Values h, denominator, m, last_C, last_n, last_m;
  Values dq, dk, dv, di_pre, df_pre, dC, dn, dm;
};

struct Implementation {
  const char* name;
  bool reference = true;
  cpu::SimdLevel level = cpu::SimdLevel::kBase;
  bool use_tiles = false;
  int threads = 2;
};
// The fast implementations that this machine can run.
inline std::vector<Implementation> FastImplementations(DType compute) {
  using cpu::SimdLevel;
  const SimdLevel highest = cpu::DetectSimdLevel();
  std::vector<Implementation> all = {{"base", false, SimdLevel::kBase}};
  if (highest >= SimdLevel::kV3) all.push_back({"v3", false, SimdLevel::kV3});
  if (highest >= SimdLevel::kV4) all.push_back({"v4", false, SimdLevel::kV4});
  if (compute == DType::kBF16 && cpu::MlstmTilesAvailable(highest))
    all.push_back({"tiles", false, highest, true});
  return all;
}

inline Values Normals(int64_t n, uint64_t seed, uint64_t stream, double mean = 0, double deviation = 1) {
  Values x(n);
  for (int64_t e = 0; e < n; ++e) x[e] = mean + deviation * RandomNormal(seed, stream, e);
  return x;
}
struct GateStatistics {
  double i_mean = 0, f_mean = 3;
};
inline Problem RandomProblem(const MlstmShape& s, uint64_t seed, GateStatistics gates = {}) {
  Problem p;
  p.shape = s;
  const int64_t N = s.B * s.T;
  p.q = Normals(N * s.NH * s.DHQK, seed, 0);
  p.k = Normals(N * s.NH * s.DHQK, seed, 1);
  p.v = Normals(N * s.NH * s.DHV, seed, 2);
  p.i_pre = Normals(N * s.NH, seed, 3, gates.i_mean);
  p.f_pre = Normals(N * s.NH, seed, 4, gates.f_mean);
  p.dh = Normals(N * s.NH * s.DHV, seed, 5);
  return p;
}
inline void AddInitialState(Problem& p, uint64_t seed) {
  const MlstmShape& s = p.shape;
  p.initial_C = Normals(s.B * s.NH * s.DHQK * s.DHV, seed, 6);
  p.initial_n = Normals(s.B * s.NH * s.DHQK, seed, 7);
  p.initial_m = s.input_gate == InputGate::kSigmoid ? Values(s.B * s.NH, 0.0) : Normals(s.B * s.NH, seed, 8);
}
inline void AddLastGradient(Problem& p, uint64_t seed) {
  const MlstmShape& s = p.shape;
  p.dC = Normals(s.B * s.NH * s.DHQK * s.DHV, seed, 9);
  p.dn = Normals(s.B * s.NH * s.DHQK, seed, 10);
}
inline void RoundToBf16(Values& x) {
  for (double& e : x) e = static_cast<float>(bfloat16(static_cast<float>(e)));
}
inline void RoundToFloat(Values& x) {
  for (double& e : x) e = static_cast<float>(e);
}
// Inputs exactly representable in `compute` and its wide type, so that implementations can be compared.
inline void RoundInputs(Problem& p, DType compute) {
  for (Values* x : {&p.q, &p.k, &p.v, &p.dh}) compute == DType::kBF16 ? RoundToBf16(*x) : RoundToFloat(*x);
  for (Values* x : {&p.i_pre, &p.f_pre, &p.initial_C, &p.initial_n, &p.initial_m, &p.dC, &p.dn})
    RoundToFloat(*x);
}

template <class T>
T FromDouble(double x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<T>(static_cast<float>(x));
  }
}
template <class T>
double AsDouble(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<double>(static_cast<float>(x));
  }
}

// Memory of one tensor with `extra` unused elements after every row.
template <class T>
class Storage {
 public:
  static constexpr float kSentinel = 77.0f;
  Storage(int64_t rows, int64_t cols, int64_t extra)
      : rows_(rows), cols_(cols), stride_(cols + extra), memory_(rows * stride_, FromDouble<T>(kSentinel)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) memory_[r * stride_ + c] = FromDouble<T>(std::nan(""));
    }
  }
  Storage(const Values& x, int64_t rows, int64_t cols, int64_t extra) : Storage(rows, cols, extra) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) memory_[r * stride_ + c] = FromDouble<T>(x[r * cols + c]);
    }
  }
  Tensor tensor() {
    Tensor t(memory_.data(), DTypeOf<T>::value, {rows_, cols_});
    t.row_stride = stride_;
    return t;
  }
  Values values() const {
    Values x(rows_ * cols_);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) x[r * cols_ + c] = AsDouble(memory_[r * stride_ + c]);
      for (int64_t c = cols_; c < stride_; ++c) {
        EXPECT_EQ(AsDouble(memory_[r * stride_ + c]), kSentinel) << "written beyond row " << r;
      }
    }
    return x;
  }

 private:
  int64_t rows_, cols_, stride_;
  std::vector<T> memory_;
};

template <class W>
struct StateStorage {
  explicit StateStorage(const MlstmShape& s)
      : C(s.B * s.NH * s.DHQK * s.DHV, W(NAN)),
        n(s.B * s.NH * s.DHQK, W(NAN)),
        m(s.B * s.NH, W(NAN)),
        shape(s) {}
  StateStorage(const MlstmShape& s, const Values& C_in, const Values& n_in, const Values& m_in)
      : C(C_in.begin(), C_in.end()), n(n_in.begin(), n_in.end()), m(m_in.begin(), m_in.end()), shape(s) {}
  MlstmState state() {
    const MlstmShape& s = shape;
    const DType wide = DTypeOf<W>::value;
    MlstmState result = {
        Tensor(C.data(), wide, {s.B, s.NH, s.DHQK, s.DHV}), Tensor(n.data(), wide, {s.B, s.NH, s.DHQK}), {}};
    if (!m.empty()) result.m = Tensor(m.data(), wide, {s.B, s.NH});
    return result;
  }
  std::vector<W> C, n, m;
  MlstmShape shape;
};

// Forward and, unless the problem has no dh, backward. last_in_place: `last` is the same memory as `initial`.
template <class T>
Result RunAs(const Problem& p, const Implementation& implementation, bool last_in_place = false) {
  using W = Wide<T>;
  const MlstmShape& s = p.shape;
  const int64_t N = p.N(), NH = s.NH, QK = NH * s.DHQK, HV = NH * s.DHV;
  cpu::ThreadPool pool(implementation.threads);
  const DType compute = DTypeOf<T>::value;
  const int64_t workspace_bytes = cpu::MlstmWorkspaceBytes(s, compute);
  std::vector<uint8_t> workspace(workspace_bytes + 1, 0xff);  // all bits set: NaN in every float type
  const Tensor workspace_tensor(workspace.data() + 1, DType::kU8, {workspace_bytes});
  Storage<T> q(p.q, N, QK, 3), k(p.k, N, QK, 5), v(p.v, N, HV, 7), h(N, HV, 2);
  Storage<W> i_pre(p.i_pre, N, NH, 1), f_pre(p.f_pre, N, NH, 2), denominator(N, NH, 0), m(N, NH, 0);
  std::vector<uint8_t> reset = p.reset;
  StateStorage<W> initial(s, p.initial_C, p.initial_n, p.initial_m), initial_copy = initial, last(s);
  const bool has_initial = !p.initial_C.empty(), has_dlast = !p.dC.empty();
  StateStorage<W>& last_memory = last_in_place ? initial : last;

  const MlstmForwardArgs forward = {.h = h.tensor(),
                                    .denominator = denominator.tensor(),
                                    .m = m.tensor(),
                                    .last = last_memory.state(),
                                    .q = q.tensor(),
                                    .k = k.tensor(),
                                    .v = v.tensor(),
                                    .i_pre = i_pre.tensor(),
                                    .f_pre = f_pre.tensor(),
                                    .reset = reset.empty() ? Tensor() : Tensor(reset.data(), DType::kU8, {N}),
                                    .initial = has_initial ? initial.state() : MlstmState(),
                                    .workspace = workspace_tensor,
                                    .shape = s};
  if (implementation.reference) {
    cpu::MlstmReferenceForward(forward, pool);
  } else {
    cpu::MlstmForward(forward, pool, implementation.level, implementation.use_tiles);
  }
  const auto to_double = [](const std::vector<W>& x) { return Values(x.begin(), x.end()); };
  Result r;
  r.h = h.values();
  r.denominator = denominator.values();
  r.m = m.values();
  r.last_C = to_double(last_memory.C);
  r.last_n = to_double(last_memory.n);
  r.last_m = to_double(last_memory.m);
  if (p.dh.empty()) return r;

  std::fill(workspace.begin(), workspace.end(), 0xff);
  Storage<T> dh(p.dh, N, HV, 4), dq(N, QK, 6), dk(N, QK, 1), dv(N, HV, 3);
  Storage<W> di_pre(N, NH, 3), df_pre(N, NH, 1);
  StateStorage<W> dlast(s, p.dC, p.dn, {}), dinitial(s);
  const MlstmBackwardArgs backward = {.dq = dq.tensor(),
                                      .dk = dk.tensor(),
                                      .dv = dv.tensor(),
                                      .di_pre = di_pre.tensor(),
                                      .df_pre = df_pre.tensor(),
                                      .dinitial = dinitial.state(),
                                      .dh = dh.tensor(),
                                      .dlast = has_dlast ? dlast.state() : MlstmState(),
                                      .q = forward.q,
                                      .k = forward.k,
                                      .v = forward.v,
                                      .i_pre = forward.i_pre,
                                      .f_pre = forward.f_pre,
                                      .reset = forward.reset,
                                      .initial = has_initial ? initial_copy.state() : MlstmState(),
                                      .h = forward.h,
                                      .denominator = forward.denominator,
                                      .m = forward.m,
                                      .workspace = workspace_tensor,
                                      .shape = s,
                                      .normalizer_gradient = p.normalizer_gradient};
  if (implementation.reference) {
    cpu::MlstmReferenceBackward(backward, pool);
  } else {
    cpu::MlstmBackward(backward, pool, implementation.level, implementation.use_tiles);
  }
  r.dq = dq.values();
  r.dk = dk.values();
  r.dv = dv.values();
  r.di_pre = di_pre.values();
  r.df_pre = df_pre.values();
  r.dC = to_double(dinitial.C);
  r.dn = to_double(dinitial.n);
  r.dm = to_double(dinitial.m);
  return r;
}
inline Result Specification(const Problem& p) { return RunAs<double>(p, {"reference"}); }

// |a - b| / |b| in the Euclidean norm; |a - b| where b is zero. NaN and infinity come through.
inline double RelativeError(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (size_t e = 0; e < b.size(); ++e) {
    difference += (a[e] - b[e]) * (a[e] - b[e]);
    size += b[e] * b[e];
  }
  return std::sqrt(size > 0 ? difference / size : difference);
}
inline double LargestError(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t e = 0; e < b.size(); ++e) {
    const double error = std::abs(a[e] - b[e]);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}

// Gradients of tokens with operands and results in bf16 (2^-9 relative each) and sums in f32: at most twice the error
// of the official kernels' scheme in simulation, 3e-3 to 4e-3, 6e-3 for f_pre.
inline void ExpectGradientsWithinBf16(const Result& r, const Result& expected) {
  EXPECT_LE(RelativeError(r.dq, expected.dq), 8e-3);
  EXPECT_LE(RelativeError(r.dk, expected.dk), 8e-3);
  EXPECT_LE(RelativeError(r.dv, expected.dv), 8e-3);
  EXPECT_LE(RelativeError(r.di_pre, expected.di_pre), 8e-3);
  EXPECT_LE(RelativeError(r.df_pre, expected.df_pre), 1.2e-2);
}

struct NamedValues {
  const char* name;
  const Values* values;
};
inline std::vector<NamedValues> OutputsOf(const Result& r) {
  return {{"h", &r.h},           {"denominator", &r.denominator}, {"m", &r.m},
          {"last_C", &r.last_C}, {"last_n", &r.last_n},           {"last_m", &r.last_m}};
}
inline std::vector<NamedValues> GradientsOf(const Result& r) {
  return {{"dq", &r.dq},         {"dk", &r.dk}, {"dv", &r.dv}, {"di_pre", &r.di_pre},
          {"df_pre", &r.df_pre}, {"dC", &r.dC}, {"dn", &r.dn}, {"dm", &r.dm}};
}
inline std::vector<NamedValues> AllOf(const Result& r) {
  std::vector<NamedValues> all = OutputsOf(r);
  for (const NamedValues& x : GradientsOf(r)) all.push_back(x);
  return all;
}
// Every value of both results agrees to `tolerance`, relative in the norm of each tensor.
inline void ExpectClose(const Result& a, const Result& b, double tolerance) {
  const auto x = AllOf(a), y = AllOf(b);
  for (size_t e = 0; e < x.size(); ++e) {
    EXPECT_LE(RelativeError(*x[e].values, *y[e].values), tolerance) << x[e].name;
  }
}
}  // namespace carousel::mlstm_test
