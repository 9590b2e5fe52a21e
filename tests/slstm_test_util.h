// One problem for the sLSTM cell with inputs in double, and a run of any implementation on it in any dtype.
// Outputs and the workspace start as NaN, accumulated gradients at a value that must survive.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "kernels/cpu/cpu_ops.h"

namespace carousel::slstm_test {

using Values = std::vector<double>;

// A state or its gradient, each (B, NH*D); all empty if there is none.
struct State {
  Values y, c, n, m;
  bool given() const { return !y.empty(); }
};
// Inputs, laid out as in core/ops.h.
struct Problem {
  SlstmShape shape = {};
  Values wx, R, b;
  Values dy;                   // empty: forward only
  std::vector<uint8_t> reset;  // empty: none
  State initial;
  State dlast;  // its m is not used
  double gradient_clip = 0;
  bool gradient_cut = false;

  int64_t N() const { return shape.B * shape.T; }
  int64_t Width() const { return shape.NH * shape.D; }
};
struct Result {
  Values y, c, n, m;
  State last;
  Values dwx, dR, db;
  State dinitial;
};

inline Values Normals(int64_t count, uint64_t seed, uint64_t stream, double mean = 0, double deviation = 1) {
  Values x(count);
  for (int64_t e = 0; e < count; ++e)
    x[e] = mean + deviation * RandomNormal(seed, stream, static_cast<uint64_t>(e));
  return x;
}
// R of variance 1 / D, forget gates a little open, as after some training.
inline Problem RandomProblem(const SlstmShape& s, uint64_t seed) {
  Problem p;
  p.shape = s;
  p.wx = Normals(p.N() * 4 * p.Width(), seed, 0);
  p.R = Normals(4 * p.Width() * s.D, seed, 1, 0, 1 / std::sqrt(static_cast<double>(s.D)));
  p.b = Normals(4 * p.Width(), seed, 2, 0.3);
  p.dy = Normals(p.N() * p.Width(), seed, 3);
  return p;
}
// A state as a sequence leaves it: n > 0 and |c| <= n.
inline void AddInitialState(Problem& p, uint64_t seed) {
  const int64_t count = p.shape.B * p.Width();
  p.initial.y = Normals(count, seed, 4, 0, 0.5);
  p.initial.c = Normals(count, seed, 5);
  p.initial.n = Normals(count, seed, 6);
  p.initial.m = Normals(count, seed, 7);
  for (int64_t e = 0; e < count; ++e)
    p.initial.n[e] = std::abs(p.initial.n[e]) + std::abs(p.initial.c[e]) + 0.2;
}
inline void AddLastGradient(Problem& p, uint64_t seed) {
  const int64_t count = p.shape.B * p.Width();
  p.dlast.y = Normals(count, seed, 8);
  p.dlast.c = Normals(count, seed, 9);
  p.dlast.n = Normals(count, seed, 10);
}
// Inputs exactly representable in `compute` and its wide type, so that implementations can be compared.
inline void RoundInputs(Problem& p, DType compute) {
  const auto to_float = [](double x) { return static_cast<double>(static_cast<float>(x)); };
  for (Values* x : {&p.R, &p.dy}) {
    for (double& e : *x)
      e = compute == DType::kBF16 ? static_cast<float>(bfloat16(static_cast<float>(e))) : to_float(e);
  }
  for (Values* x : {&p.wx, &p.b, &p.initial.y, &p.initial.c, &p.initial.n, &p.initial.m, &p.dlast.y,
                    &p.dlast.c, &p.dlast.n}) {
    for (double& e : *x) e = to_float(e);
  }
}

template <class T>
T FromDouble(double x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<T>(static_cast<float>(x));
  }
}
// Memory of one tensor.
template <class T>
class Storage {
 public:
  Storage(std::initializer_list<int64_t> dims, double value) : tensor_(nullptr, DTypeOf<T>::value, dims) {
    memory_.assign(tensor_.num_elems(), FromDouble<T>(value));
    tensor_.data = memory_.data();
  }
  Storage(std::initializer_list<int64_t> dims, const Values& x) : Storage(dims, 0.0) {
    EXPECT_EQ(x.size(), memory_.size());
    for (size_t e = 0; e < x.size(); ++e) memory_[e] = FromDouble<T>(x[e]);
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  Tensor tensor() const { return tensor_; }
  Values values() const {
    Values x(memory_.size());
    for (size_t e = 0; e < x.size(); ++e) {
      if constexpr (std::is_same_v<T, double>) {
        x[e] = memory_[e];
      } else {
        x[e] = static_cast<double>(static_cast<float>(memory_[e]));
      }
    }
    return x;
  }

 private:
  std::vector<T> memory_;
  Tensor tensor_;
};
template <class W>
struct StateStorage {
  explicit StateStorage(const Problem& p)
      : y({p.shape.B, p.Width()}, NAN),
        c({p.shape.B, p.Width()}, NAN),
        n({p.shape.B, p.Width()}, NAN),
        m({p.shape.B, p.Width()}, NAN) {}
  StateStorage(const Problem& p, const State& x)
      : y({p.shape.B, p.Width()}, x.y),
        c({p.shape.B, p.Width()}, x.c),
        n({p.shape.B, p.Width()}, x.n),
        m({p.shape.B, p.Width()}, x.m.empty() ? Values(x.y.size(), NAN) : x.m) {}
  SlstmState state() const { return {y.tensor(), c.tensor(), n.tensor(), m.tensor()}; }
  State values() const { return {y.values(), c.values(), n.values(), m.values()}; }
  Storage<W> y, c, n, m;
};

struct RunOptions {
  bool in_place = false;      // `gates` is the memory of wx, `last` that of the initial state
  bool without_last = false;  // no `last` and no `dinitial`
  double accumulated = 0;     // what drecurrent and dbias hold before
};
// Forward and, unless the problem has no dy, backward.
template <class T>
Result RunAs(const Problem& p, const cpu::CpuOptions& cpu_options, const RunOptions& options = {}) {
  using W = Wide<T>;
  const SlstmShape& s = p.shape;
  const int64_t N = p.N(), width = p.Width();
  cpu::CpuOps ops(cpu_options);
  const int64_t workspace_bytes = ops.SlstmWorkspaceBytes(s, DTypeOf<T>::value);
  // not aligned; all bits set: NaN in every float type; the last bytes must survive
  std::vector<uint8_t> workspace(workspace_bytes + 65, 0xff);
  std::fill(workspace.end() - 64, workspace.end(), 0x5a);
  const Tensor workspace_tensor(workspace.data() + 1, DType::kU8, {workspace_bytes});
  std::vector<uint8_t> reset = p.reset;
  const Tensor reset_tensor = reset.empty() ? Tensor() : Tensor(reset.data(), DType::kU8, {N});
  const Storage<W> wx({N, 4 * width}, p.wx), separate_gates({N, 4 * width}, NAN), bias({4 * width}, p.b);
  const Storage<W>& gates = options.in_place ? wx : separate_gates;
  const Storage<T> R({4 * width, s.D}, p.R), y({N, width}, NAN);
  const Storage<W> c({N, width}, NAN), n({N, width}, NAN), m({N, width}, NAN);
  const State none = {Values(s.B * width, 0.0), Values(s.B * width, 0.0), Values(s.B * width, 0.0), {}};
  const StateStorage<W> initial(p, p.initial.given() ? p.initial : none),
      initial_copy(p, p.initial.given() ? p.initial : none), separate_last(p);
  const StateStorage<W>& last = options.in_place ? initial : separate_last;
  ops.SlstmForward({.y = y.tensor(),
                    .gates = gates.tensor(),
                    .c = c.tensor(),
                    .n = n.tensor(),
                    .m = m.tensor(),
                    .last = options.without_last ? SlstmState() : last.state(),
                    .wx = wx.tensor(),
                    .recurrent = R.tensor(),
                    .bias = bias.tensor(),
                    .reset = reset_tensor,
                    .initial = p.initial.given() ? initial.state() : SlstmState(),
                    .workspace = workspace_tensor,
                    .shape = s});
  Result r;
  r.y = y.values();
  r.c = c.values();
  r.n = n.values();
  r.m = m.values();
  if (!options.without_last) r.last = last.values();
  if (!p.dy.empty() || p.N() == 0) {
    std::fill(workspace.begin(), workspace.end() - 64, 0xff);
    const Storage<T> dy({N, width}, p.dy), dwx({N, 4 * width}, NAN);
    const Storage<W> dR({4 * width, s.D}, options.accumulated), db({4 * width}, options.accumulated);
    const StateStorage<W> dinitial(p), dlast(p, p.dlast.given() ? p.dlast : none);
    SlstmState dlast_state = dlast.state();
    dlast_state.m = {};
    ops.SlstmBackward({.dwx = dwx.tensor(),
                       .drecurrent = dR.tensor(),
                       .dbias = db.tensor(),
                       .dinitial = options.without_last ? SlstmState() : dinitial.state(),
                       .dy = dy.tensor(),
                       .dlast = p.dlast.given() ? dlast_state : SlstmState(),
                       .y = y.tensor(),
                       .gates = gates.tensor(),
                       .c = c.tensor(),
                       .n = n.tensor(),
                       .m = m.tensor(),
                       .recurrent = R.tensor(),
                       .reset = reset_tensor,
                       .initial = p.initial.given() ? initial_copy.state() : SlstmState(),
                       .workspace = workspace_tensor,
                       .shape = s,
                       .gradient_clip = p.gradient_clip,
                       .gradient_cut = p.gradient_cut});
    r.dwx = dwx.values();
    r.dR = dR.values();
    r.db = db.values();
    if (!options.without_last) r.dinitial = dinitial.values();
  }
  for (size_t e = workspace.size() - 64; e < workspace.size(); ++e)
    EXPECT_EQ(workspace[e], 0x5a) << "written beyond the workspace";
  return r;
}
inline cpu::CpuOptions Reference() { return {.num_threads = 2, .reference = true}; }
inline Result Specification(const Problem& p, const RunOptions& options = {}) {
  return RunAs<double>(p, Reference(), options);
}

// |a - b| / |b| in the Euclidean norm; |a - b| where b is zero. NaN and infinity come through.
inline double RelativeError(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (size_t e = 0; e < b.size() && e < a.size(); ++e) {
    difference += (a[e] - b[e]) * (a[e] - b[e]);
    size += b[e] * b[e];
  }
  return std::sqrt(size > 0 ? difference / size : difference);
}

struct NamedValues {
  const char* name;
  const Values* values;
};
inline std::vector<NamedValues> OutputsOf(const Result& r) {
  return {{"y", &r.y},           {"c", &r.c},           {"n", &r.n},           {"m", &r.m},
          {"last.y", &r.last.y}, {"last.c", &r.last.c}, {"last.n", &r.last.n}, {"last.m", &r.last.m}};
}
inline std::vector<NamedValues> GradientsOf(const Result& r) {
  return {{"dwx", &r.dwx},
          {"drecurrent", &r.dR},
          {"dbias", &r.db},
          {"dinitial.y", &r.dinitial.y},
          {"dinitial.c", &r.dinitial.c},
          {"dinitial.n", &r.dinitial.n},
          {"dinitial.m", &r.dinitial.m}};
}
inline std::vector<NamedValues> AllOf(const Result& r) {
  std::vector<NamedValues> all = OutputsOf(r);
  for (const NamedValues& x : GradientsOf(r)) all.push_back(x);
  return all;
}
// Every tensor of both results agrees to `tolerance`, relative in its norm.
inline void ExpectClose(const Result& a, const Result& b, double tolerance) {
  const auto x = AllOf(a), y = AllOf(b);
  for (size_t e = 0; e < x.size(); ++e)
    EXPECT_LE(RelativeError(*x[e].values, *y[e].values), tolerance) << x[e].name;
}
inline void ExpectEqualBits(const std::vector<NamedValues>& a, const std::vector<NamedValues>& b) {
  for (size_t e = 0; e < a.size(); ++e) EXPECT_EQ(*a[e].values, *b[e].values) << a[e].name;
}

// Tokens [begin, end) of every sequence of x (B, T, ...), a tensor of `count` = B*T rows.
template <class E>
std::vector<E> Tokens(const std::vector<E>& x, const SlstmShape& s, int64_t begin, int64_t end) {
  if (x.empty()) return {};
  const int64_t row = static_cast<int64_t>(x.size()) / (s.B * s.T);
  std::vector<E> part;
  for (int64_t b = 0; b < s.B; ++b)
    part.insert(part.end(), x.begin() + (b * s.T + begin) * row, x.begin() + (b * s.T + end) * row);
  return part;
}
// The problem of tokens [begin, end), from `initial`; dlast is kept for the last segment only.
inline Problem Segment(const Problem& p, int64_t begin, int64_t end, const State& initial) {
  Problem part = p;
  part.shape.T = end - begin;
  part.wx = Tokens(p.wx, p.shape, begin, end);
  part.dy = Tokens(p.dy, p.shape, begin, end);
  part.reset = Tokens(p.reset, p.shape, begin, end);
  part.initial = initial;
  if (end != p.shape.T) part.dlast = {};
  return part;
}
}  // namespace carousel::slstm_test
