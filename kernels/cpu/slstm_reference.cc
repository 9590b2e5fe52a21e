#include "kernels/cpu/slstm_reference.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/slstm_internal.h"

namespace carousel::cpu {
namespace {

// (y, c, n, m) before or after a token: elements of one head of one sequence. Null pointers stand for zeros.
template <class T>
struct HeadState {
  using W = Wide<T>;
  const T* y = nullptr;          // after a token of this call,
  const W* initial_y = nullptr;  // or of the initial state
  const W *c = nullptr, *n = nullptr, *m = nullptr;
  // the recurrent operand
  W Y(int64_t e) const {
    if (y != nullptr) return static_cast<W>(y[e]);
    return initial_y != nullptr ? static_cast<W>(static_cast<T>(initial_y[e])) : W(0);
  }
  W C(int64_t e) const { return c != nullptr ? c[e] : W(0); }
  W N(int64_t e) const { return n != nullptr ? n[e] : W(0); }
  W M(int64_t e) const { return m != nullptr ? m[e] : W(0); }
};

// The state that token t of sequence b starts from. Args: of the forward or the backward pass.
template <class T, class Args>
HeadState<T> StateBefore(const Args& a, int64_t b, int64_t head, int64_t t) {
  using W = Wide<T>;
  const SlstmShape& s = a.shape;
  const int64_t row = b * s.T + t, width = s.NH * s.D;
  if (t < s.T && SlstmStarts(a.reset, row)) return {};
  if (t > 0) {
    const int64_t at = (row - 1) * width + head * s.D;
    return {a.y.template as<T>() + at, nullptr, a.c.template as<W>() + at, a.n.template as<W>() + at,
            a.m.template as<W>() + at};
  }
  if (!a.initial.y.defined()) return {};
  const int64_t at = b * width + head * s.D;
  return {nullptr, a.initial.y.template as<W>() + at, a.initial.c.template as<W>() + at,
          a.initial.n.template as<W>() + at, a.initial.m.template as<W>() + at};
}

template <class W>
W LogSigmoid(W x) {
  return (x < 0 ? x : x * 0) - std::log1p(std::exp(-std::abs(x)));
}
template <class W>
W Sigmoid(W x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

template <class W>
struct InputForget {
  W i, f;
};
// The stabilised gates from d = raw^i - lambda.
template <class W>
InputForget<W> GatesOf(W d, bool fresh) {
  const W smaller = std::exp(-std::abs(d));  // NaN comes through
  return {.i = fresh || d >= 0 ? W(1) : smaller, .f = d < 0 ? W(1) : smaller};
}

template <class T>
void ForwardHead(const SlstmForwardArgs& a, int64_t b, int64_t head) {
  using W = Wide<T>;
  const SlstmShape& s = a.shape;
  const int64_t width = s.NH * s.D, D = s.D;
  for (int64_t t = 0; t < s.T; ++t) {
    const HeadState<T> before = StateBefore<T>(a, b, head, t);
    const int64_t row = b * s.T + t, at = row * width + head * D;
    for (int64_t e = 0; e < D; ++e) {
      W raw[kSlstmGates];
      for (int64_t g = 0; g < kSlstmGates; ++g) {
        const int64_t unit = (g * s.NH + head) * D + e;
        const T* const R = a.recurrent.as<T>() + unit * D;
        W sum = 0;
        for (int64_t in = 0; in < D; ++in) sum += static_cast<W>(R[in]) * before.Y(in);
        raw[g] = a.wx.as<W>()[row * 4 * width + unit] + sum + a.bias.as<W>()[unit];
      }
      const W lambda = before.M(e) + LogSigmoid(raw[1]), d = raw[0] - lambda;
      const bool fresh = before.N(e) == 0;
      const auto [i, f] = GatesOf(d, fresh);
      const W z = std::tanh(raw[2]), o = Sigmoid(raw[3]);
      const W c = f * before.C(e) + i * z, n = f * before.N(e) + i;
      a.c.as<W>()[at + e] = c;
      a.n.as<W>()[at + e] = n;
      a.m.as<W>()[at + e] = fresh || d >= 0 ? raw[0] : lambda;
      a.y.as<T>()[at + e] = static_cast<T>(o * c / n);
      const W kept[kSlstmGates] = {d, Sigmoid(-raw[1]), z, o};
      for (int64_t g = 0; g < kSlstmGates; ++g)
        a.gates.as<W>()[row * 4 * width + (g * s.NH + head) * D + e] = kept[g];
    }
  }
  if (!a.last.y.defined()) return;
  const HeadState<T> after = StateBefore<T>(a, b, head, s.T);
  const int64_t at = b * width + head * D;
  for (int64_t e = 0; e < D; ++e) {
    // without a token the state passes through, y unrounded
    a.last.y.as<W>()[at + e] = after.initial_y != nullptr ? after.initial_y[e] : after.Y(e);
    a.last.c.as<W>()[at + e] = after.C(e);
    a.last.n.as<W>()[at + e] = after.N(e);
    a.last.m.as<W>()[at + e] = after.M(e);
  }
}

// Scratch of the backward pass. By (sequence, head): dc, dn, dr (D) each and draw (4, D); by sequence: dbias.
template <class W>
struct Scratch {
  Scratch(SlstmScratch memory, const SlstmShape& s)
      : pairs(memory.Take<W>(s.B * s.NH * 7 * s.D)), dbias(memory.Take<W>(s.B * 4 * s.NH * s.D)) {
    needed_bytes = memory.needed_bytes();
  }
  W *pairs, *dbias;
  int64_t needed_bytes;
};

template <class T>
void BackwardHead(const SlstmBackwardArgs& a, int64_t b, int64_t head, const Scratch<Wide<T>>& scratch) {
  using W = Wide<T>;
  const SlstmShape& s = a.shape;
  const int64_t width = s.NH * s.D, D = s.D, state_at = b * width + head * D;
  W *const dc = scratch.pairs + (b * s.NH + head) * 7 * D, *const dn = dc + D, *const dr = dc + 2 * D,
           *const draw = dc + 3 * D;
  W* const dbias = scratch.dbias + b * 4 * width;
  const bool has_dlast = a.dlast.y.defined();
  for (int64_t e = 0; e < D; ++e) {
    dr[e] = has_dlast ? a.dlast.y.as<W>()[state_at + e] : W(0);
    dc[e] = has_dlast ? a.dlast.c.as<W>()[state_at + e] : W(0);
    dn[e] = has_dlast ? a.dlast.n.as<W>()[state_at + e] : W(0);
    for (int64_t g = 0; g < kSlstmGates; ++g) dbias[(g * s.NH + head) * D + e] = 0;
  }
  const W clip = static_cast<W>(a.gradient_clip);
  for (int64_t t = s.T - 1; t >= 0; --t) {
    const HeadState<T> before = StateBefore<T>(a, b, head, t);
    const int64_t row = b * s.T + t, at = row * width + head * D;
    for (int64_t e = 0; e < D; ++e) {
      W kept[kSlstmGates];
      for (int64_t g = 0; g < kSlstmGates; ++g)
        kept[g] = a.gates.as<W>()[row * 4 * width + (g * s.NH + head) * D + e];
      const auto [i, f] = GatesOf(kept[0], before.N(e) == 0);
      const W one_minus_f = kept[1], z = kept[2], o = kept[3];
      const W c = a.c.as<W>()[at + e], n = a.n.as<W>()[at + e];
      const W recurrent = a.gradient_cut ? W(0) : clip > 0 ? std::clamp(dr[e], -clip, clip) : dr[e];
      const W dy = static_cast<W>(a.dy.as<T>()[at + e]) + recurrent;
      dc[e] += dy * o / n;
      dn[e] -= dy * o * c / n / n;
      draw[e] = i * (z * dc[e] + dn[e]);
      draw[D + e] = f * (before.C(e) * dc[e] + before.N(e) * dn[e]) * one_minus_f;
      draw[2 * D + e] = i * (1 - z * z) * dc[e];
      draw[3 * D + e] = dy * (1 - o) * o * c / n;
      for (int64_t g = 0; g < kSlstmGates; ++g) {
        const int64_t unit = (g * s.NH + head) * D + e;
        a.dwx.as<T>()[row * 4 * width + unit] = static_cast<T>(draw[g * D + e]);
        dbias[unit] += draw[g * D + e];
      }
      dc[e] *= f;
      dn[e] *= f;
    }
    const bool starts = SlstmStarts(a.reset, row);
    for (int64_t in = 0; in < D; ++in) {
      W sum = 0;
      for (int64_t g = 0; g < kSlstmGates; ++g) {
        const T* const R = a.recurrent.as<T>() + (g * s.NH + head) * D * D + in;
        for (int64_t e = 0; e < D; ++e) sum += static_cast<W>(R[e * D]) * draw[g * D + e];
      }
      dr[in] = starts ? W(0) : sum;
      if (starts) dc[in] = dn[in] = 0;
    }
  }
  if (!a.dinitial.y.defined()) return;
  const bool has_initial = a.initial.y.defined();
  for (int64_t e = 0; e < D; ++e) {
    const W c0 = has_initial ? a.initial.c.as<W>()[state_at + e] : W(0);
    const W n0 = has_initial ? a.initial.n.as<W>()[state_at + e] : W(0);
    a.dinitial.y.as<W>()[state_at + e] = a.gradient_cut ? W(0) : dr[e];
    a.dinitial.c.as<W>()[state_at + e] = dc[e];
    a.dinitial.n.as<W>()[state_at + e] = dn[e];
    a.dinitial.m.as<W>()[state_at + e] = n0 == 0 ? W(0) : c0 * dc[e] + n0 * dn[e];
  }
}

// Row `unit` of drecurrent, and its element of dbias.
template <class T>
void BackwardWeights(const SlstmBackwardArgs& a, int64_t unit, const Scratch<Wide<T>>& scratch) {
  using W = Wide<T>;
  const SlstmShape& s = a.shape;
  const int64_t width = s.NH * s.D, head = unit / s.D % s.NH;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t t = 0; t < s.T; ++t) {
      const HeadState<T> before = StateBefore<T>(a, b, head, t);
      const W draw = static_cast<W>(a.dwx.as<T>()[(b * s.T + t) * 4 * width + unit]);
      for (int64_t in = 0; in < s.D; ++in) a.drecurrent.as<W>()[unit * s.D + in] += draw * before.Y(in);
    }
  }
  W sum = 0;
  for (int64_t b = 0; b < s.B; ++b) sum += scratch.dbias[b * 4 * width + unit];
  a.dbias.as<W>()[unit] += sum;
}
}  // namespace

int64_t SlstmReferenceWorkspaceBytes(const SlstmShape& s, DType compute) {
  return WideOf(compute) == DType::kF64 ? Scratch<double>({}, s).needed_bytes
                                        : Scratch<float>({}, s).needed_bytes;
}

void SlstmReferenceForward(const SlstmForwardArgs& a, ThreadPool& pool) {
  const SlstmShape& s = a.shape;
  DispatchFloat(a.y.dtype, [&]<class T>() {
    pool.ParallelFor(s.B * s.NH, [&](int64_t pair) { ForwardHead<T>(a, pair / s.NH, pair % s.NH); });
  });
}

void SlstmReferenceBackward(const SlstmBackwardArgs& a, ThreadPool& pool) {
  const SlstmShape& s = a.shape;
  DispatchFloat(a.y.dtype, [&]<class T>() {
    const Scratch<Wide<T>> scratch(SlstmScratch(a.workspace), s);
    pool.ParallelFor(s.B * s.NH,
                     [&](int64_t pair) { BackwardHead<T>(a, pair / s.NH, pair % s.NH, scratch); });
    pool.ParallelFor(4 * s.NH * s.D, [&](int64_t unit) { BackwardWeights<T>(a, unit, scratch); });
  });
}
}  // namespace carousel::cpu
