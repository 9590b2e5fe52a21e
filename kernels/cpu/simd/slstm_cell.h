// The elementwise part of the sLSTM cell: gates, states and their gradients, for the sequences of a group and
// one token. Formulas: kernels/cpu/slstm_reference.h. T is the compute type, Operand what the products read.
#pragma once
#include "kernels/cpu/simd/simd_math.h"
#include "kernels/cpu/simd/slstm_kernels.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {

// e^x for x <= 0 or NaN; 0 below -87, where results would not be normal numbers.
CAROUSEL_INLINE VecF ExpOfNegative(VecF x) {
  const VecF bounded = Max(VecF{} - 87.0f, x);  // NaN stays
  return x < -87.0f ? VecF{} : ExpInRange(bounded);
}
// ln(1 + x) for 0 <= x <= 1 or NaN; inverse = 1 / (1 + x). Polynomial: Cephes, logf.
CAROUSEL_INLINE VecF Log1pOfFraction(VecF x, VecF inverse) {
  const VecF u = x + 1.0f;
  const VecF lost = (x - (u - 1.0f)) * inverse;
  const auto halve = u > 1.41421356f;
  const VecF f = (halve ? u * 0.5f : u) - 1.0f;
  const VecF e = halve ? Broadcast(1.0f) : VecF{};
  VecF p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  VecF y = e * -2.12194440e-4f + f;
  y = f * f * (f * p - 0.5f) + y;
  return (e * 0.693359375f + y) + lost;
}

// The stabilised input and forget gate from d = raw^i - lambda and n before the token.
struct SlstmInputForget {
  [[gnu::always_inline]] SlstmInputForget(VecF d, VecF n) {
    const VecF smaller = ExpOfNegative(d < 0.0f ? d : -d);
    input_wins = (n == 0.0f) | (d >= 0.0f);
    i = input_wins ? Broadcast(1.0f) : smaller;
    f = d < 0.0f ? Broadcast(1.0f) : smaller;
  }
  VecI input_wins;  // m is raw^i, not lambda
  VecF i, f;
};

// A row of an operand is what the next product reads: y as it was rounded to T.
CAROUSEL_INLINE VecF RoundedTo(const float*, VecF x) { return x; }
CAROUSEL_INLINE VecF RoundedTo(const uint16_t*, VecF x) { return ToF32(ToBf16(x)); }

// Where the elements of one head of sequence b stand before token t: rows of NH*D.
struct SlstmBefore {
  const float *c, *n, *m;
};
template <class Arrays>
CAROUSEL_INLINE SlstmBefore StateBefore(const SlstmDims& d, const Arrays& a, const float* m, int64_t head,
                                        int64_t b, int64_t t) {
  const int64_t row = b * d.T + t;
  if (a.reset != nullptr && a.reset[row] != 0) return {a.zeros, a.zeros, a.zeros};
  if (t > 0) {
    const int64_t at = (row - 1) * d.width() + head * d.D;
    return {a.c + at, a.n + at, m == nullptr ? nullptr : m + at};
  }
  if (a.initial.y == nullptr) return {a.zeros, a.zeros, a.zeros};
  const int64_t at = b * d.width() + head * d.D;
  return {a.initial.c + at, a.initial.n + at, a.initial.m + at};
}

// Asks for the memory of SlstmCellForward with these arguments. The rows of a group's sequences lie far
// apart, so nothing else would fetch them in time.
template <class T>
CAROUSEL_INLINE void SlstmPrefetchForward(const SlstmDims& d, const SlstmForwardArrays& a, int64_t head,
                                          int64_t first, int64_t count, int64_t t, int64_t panel) {
  const int64_t unit = panel * kSlstmUnits, width = d.width();
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = (first + r) * d.T + t, at = row * width + head * d.D + unit;
    const int64_t gates_at = row * 4 * width + head * d.D + unit;
    for (int64_t gate = 0; gate < 4; ++gate) {
      __builtin_prefetch(a.wx + gates_at + gate * width);
      if (a.gates != a.wx) __builtin_prefetch(a.gates + gates_at + gate * width);
    }
    __builtin_prefetch(a.c + at);
    __builtin_prefetch(a.n + at);
    __builtin_prefetch(a.m + at);
    __builtin_prefetch(static_cast<const T*>(a.y) + at);
  }
}

// Units of one panel for `count` sequences. raw: R y, rows of [gate][unit]; operand: rows of Dp, null if
// there is no next token. Not inlined: forward and step run the same instructions, so they give the same
// bits.
template <class T, class Operand>
[[gnu::noinline]] static void SlstmCellForward(SlstmDims d, SlstmForwardArrays a, int64_t head, int64_t first,
                                               int64_t count, int64_t t, int64_t panel, const float* raw,
                                               Operand* operand) {
  const int64_t unit = panel * kSlstmUnits, width = d.width();
  const int64_t units = d.D - unit < kSlstmUnits ? d.D - unit : kSlstmUnits;
  const float* const bias = a.bias + head * d.D + unit;
  for (int64_t r = 0; r < count; ++r, raw += 4 * kSlstmUnits) {
    const int64_t row = (first + r) * d.T + t, at = row * width + head * d.D + unit;
    const SlstmBefore before = StateBefore(d, a, a.m, head, first + r, t);
    const int64_t gates_at = row * 4 * width + head * d.D + unit;
    ForEachVec(units, [&](int64_t e, auto part) {
      const auto raw_of = [&](int64_t gate) {
        return (Load(a.wx + gates_at + gate * width + e, part) + Load(raw + gate * kSlstmUnits + e)) +
               Load(bias + gate * width + e, part);
      };
      const VecF raw_i = raw_of(0), raw_f = raw_of(1);
      const VecF z = Tanh(raw_of(2)), o = Sigmoid(raw_of(3));
      const VecF c0 = Load(before.c + unit + e, part), n0 = Load(before.n + unit + e, part);
      // log sigmoid(raw^f) and sigmoid(-raw^f) from the same exponential
      const VecF small = ExpOfNegative(raw_f < 0.0f ? raw_f : -raw_f), inverse = Reciprocal(small + 1.0f);
      const VecF log_f = (raw_f < 0.0f ? raw_f : VecF{}) - Log1pOfFraction(small, inverse);
      const VecF one_minus_f = raw_f < 0.0f ? inverse : small * inverse;
      const VecF lambda = Load(before.m + unit + e, part) + log_f, gap = raw_i - lambda;
      const SlstmInputForget gate(gap, n0);
      const VecF c = gate.f * c0 + gate.i * z, n = gate.f * n0 + gate.i;
      const VecF y = o * c * Reciprocal(n);
      float* const kept = a.gates + gates_at + e;
      Store(kept, gap, part);
      Store(kept + width, one_minus_f, part);
      Store(kept + 2 * width, z, part);
      Store(kept + 3 * width, o, part);
      Store(a.c + at + e, c, part);
      Store(a.n + at + e, n, part);
      Store(a.m + at + e, gate.input_wins ? raw_i : lambda, part);
      Store(static_cast<T*>(a.y) + at + e, y, part);
      if (operand != nullptr) {
        Store(operand + r * d.Dp + unit + e, RoundedTo(static_cast<const T*>(nullptr), y), part);
      }
    });
  }
}

// Running gradients of one sequence of a head: rows of Dp floats.
struct SlstmRunning {
  float *dc, *dn, *dr;  // gradients of c, n and, through R, of y after the token
  float* dbias;         // [gate][Dp]: sums of draw
};

// Asks for the memory of SlstmCellBackward with these arguments.
template <class T>
CAROUSEL_INLINE void SlstmPrefetchBackward(const SlstmDims& d, const SlstmBackwardArrays& a, int64_t head,
                                           int64_t b, int64_t t) {
  const int64_t row = b * d.T + t, width = d.width();
  for (int64_t e = 0; e < d.D; e += kSlstmUnits) {
    const int64_t at = row * width + head * d.D + e, gates_at = row * 4 * width + head * d.D + e;
    for (int64_t gate = 0; gate < 4; ++gate) {
      __builtin_prefetch(a.gates + gates_at + gate * width);
      __builtin_prefetch(static_cast<const T*>(a.dwx) + gates_at + gate * width);
    }
    __builtin_prefetch(static_cast<const T*>(a.dy) + at);
    if (t == 0) continue;
    __builtin_prefetch(a.c + at - width);  // c and n of the token itself were read for the token after it
    __builtin_prefetch(a.n + at - width);
  }
}

// One token of sequence b: dwx, the operand draw [gate][Dp], and `running` taken over the token.
template <class T, class Operand>
CAROUSEL_INLINE void SlstmCellBackward(const SlstmDims& d, const SlstmBackwardArrays& a, int64_t head,
                                       int64_t b, int64_t t, const SlstmRunning& running, Operand* draw) {
  const int64_t row = b * d.T + t, width = d.width(), at = row * width + head * d.D;
  const int64_t gates_at = row * 4 * width + head * d.D;
  const SlstmBefore before = StateBefore(d, a, nullptr, head, b, t);
  const VecF limit = Broadcast(a.clip > 0.0f ? a.clip : __builtin_inff());
  ForEachVec(d.D, [&](int64_t e, auto part) {
    const float* const kept = a.gates + gates_at + e;
    const VecF n0 = Load(before.n + e, part), c0 = Load(before.c + e, part);
    const SlstmInputForget gate(Load(kept, part), n0);
    const VecF one_minus_f = Load(kept + width, part), z = Load(kept + 2 * width, part),
               o = Load(kept + 3 * width, part);
    // Min and Max hand on a NaN in their second argument
    const VecF dr = a.cut ? VecF{} : Min(limit, Max(-limit, Load(running.dr + e)));
    const VecF dy = Load(static_cast<const T*>(a.dy) + at + e, part) + dr;
    const VecF inverse_n = Reciprocal(Load(a.n + at + e, part, 1.0f));
    const VecF y = o * Load(a.c + at + e, part) * inverse_n;
    const VecF dc = Load(running.dc + e) + dy * o * inverse_n, dn = Load(running.dn + e) - dy * y * inverse_n;
    const VecF gradients[4] = {gate.i * (z * dc + dn), gate.f * (c0 * dc + n0 * dn) * one_minus_f,
                               gate.i * (1.0f - z * z) * dc, dy * (1.0f - o) * y};
    T* const dwx = static_cast<T*>(a.dwx) + gates_at + e;
    for (int g = 0; g < 4; ++g) {
      Store(dwx + g * width, gradients[g], part);
      Store(draw + g * d.Dp + e, gradients[g], part);
      Store(running.dbias + g * d.Dp + e, Load(running.dbias + g * d.Dp + e) + gradients[g]);
    }
    Store(running.dc + e, dc * gate.f);
    Store(running.dn + e, dn * gate.f);
  });
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
