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

// The stabilised input and forget gate from d = raw^i - lambda, n before the token and smaller = e^-|d|.
struct SlstmInputForget {
  [[gnu::always_inline]] SlstmInputForget(VecF d, VecF n, VecF smaller) {
    input_wins = (n == 0.0f) | (d >= 0.0f);
    i = input_wins ? Broadcast(1.0f) : smaller;
    f = d < 0.0f ? Broadcast(1.0f) : smaller;
  }
  VecI input_wins;  // i is 1, and m is raw^i, not lambda
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

// Asks for the memory that SlstmCellForward uses for one sequence. The rows of a group's sequences lie far
// apart, so nothing else would fetch them in time.
template <class T>
CAROUSEL_INLINE void SlstmPrefetchForward(const SlstmDims& d, const SlstmForwardArrays& a, int64_t head,
                                          int64_t b, int64_t t, int64_t panel) {
  const int64_t row = b * d.T + t, width = d.width(), unit = head * d.D + panel * kSlstmUnits;
  for (int64_t gate = 0; gate < 4; ++gate) {
    __builtin_prefetch(a.wx + (row * 4 + gate) * width + unit);
    if (a.gates != a.wx) __builtin_prefetch(a.gates + (row * 4 + gate) * width + unit);
  }
  __builtin_prefetch(a.c + row * width + unit);
  __builtin_prefetch(a.n + row * width + unit);
  __builtin_prefetch(a.m + row * width + unit);
  __builtin_prefetch(static_cast<const T*>(a.y) + row * width + unit);
}

// Where one sequence's elements of a panel are.
template <class T, class Operand>
struct SlstmCellRow {
  const float *raw, *wx;
  const float *c0, *n0, *m0;  // before the token
  float *gates, *c, *n, *m;
  T* y;
  Operand* operand;  // may be null
};

// Elements e, e + 1, .. of kRows sequences, side by side: one alone would wait for its own chain of
// exponentials most of the time.
template <int kRows, class T, class Operand, class Part>
CAROUSEL_INLINE void SlstmCellUnits(const SlstmCellRow<T, Operand>* rows, const float* bias, int64_t width,
                                    int64_t e, Part part) {
  VecF raw[4][kRows], small[kRows], inverse[kRows], log_f[kRows], lambda[kRows], gap[kRows], smaller[kRows];
  VecF z[kRows], o[kRows], c[kRows], n[kRows];
  for (int r = 0; r < kRows; ++r) {
    for (int gate = 0; gate < 4; ++gate) {
      raw[gate][r] =
          (Load(rows[r].wx + gate * width + e, part) + Load(rows[r].raw + gate * kSlstmUnits + e)) +
          Load(bias + gate * width + e, part);
    }
  }
  // log sigmoid(raw^f) and sigmoid(-raw^f) from the same exponential
  for (int r = 0; r < kRows; ++r) small[r] = ExpOfNegative(raw[1][r] < 0.0f ? raw[1][r] : -raw[1][r]);
  for (int r = 0; r < kRows; ++r) inverse[r] = Reciprocal(small[r] + 1.0f);
  for (int r = 0; r < kRows; ++r) {
    log_f[r] = (raw[1][r] < 0.0f ? raw[1][r] : VecF{}) - Log1pOfFraction(small[r], inverse[r]);
    lambda[r] = Load(rows[r].m0 + e, part) + log_f[r];
    gap[r] = raw[0][r] - lambda[r];
  }
  for (int r = 0; r < kRows; ++r) o[r] = Sigmoid(raw[3][r]);
  for (int r = 0; r < kRows; ++r) z[r] = Tanh(raw[2][r]);
  for (int r = 0; r < kRows; ++r) smaller[r] = ExpOfNegative(gap[r] < 0.0f ? gap[r] : -gap[r]);
  for (int r = 0; r < kRows; ++r) {
    const VecF n0 = Load(rows[r].n0 + e, part);
    const SlstmInputForget gate(gap[r], n0, smaller[r]);
    // i z without a product where i is 1: a sum of two products could be fused in two ways
    c[r] = gate.f * Load(rows[r].c0 + e, part) + (gate.input_wins ? z[r] : smaller[r] * z[r]);
    n[r] = gate.f * n0 + gate.i;
    Store(rows[r].m + e, gate.input_wins ? raw[0][r] : lambda[r], part);
  }
  for (int r = 0; r < kRows; ++r) {
    const VecF y = o[r] * c[r] * Reciprocal(n[r]);
    Store(rows[r].y + e, y, part);
    if (rows[r].operand != nullptr)
      Store(rows[r].operand + e, RoundedTo(static_cast<const T*>(nullptr), y), part);
    Store(rows[r].c + e, c[r], part);
    Store(rows[r].n + e, n[r], part);
    Store(rows[r].gates + e, gap[r], part);
    Store(rows[r].gates + width + e, raw[1][r] < 0.0f ? inverse[r] : small[r] * inverse[r], part);
    Store(rows[r].gates + 2 * width + e, z[r], part);
    Store(rows[r].gates + 3 * width + e, o[r], part);
  }
}

// Units of one panel for `count` sequences. raw: R y, rows of [gate][unit]; operand: rows of Dp, null if
// there is no next token. Not inlined: forward and step run the same instructions, so they give the same
// bits.
template <class T, class Operand>
[[gnu::noinline]] static void SlstmCellForward(const SlstmDims& d, const SlstmForwardArrays& a, int64_t head,
                                               int64_t first, int64_t count, int64_t t, int64_t panel,
                                               const float* raw, Operand* operand) {
  const int64_t unit = panel * kSlstmUnits, width = d.width();
  const int64_t units = d.D - unit < kSlstmUnits ? d.D - unit : kSlstmUnits;
  const float* const bias = a.bias + head * d.D + unit;
  const auto row_of = [&](int64_t r) {
    const int64_t row = (first + r) * d.T + t, at = row * width + head * d.D + unit;
    const int64_t gates_at = row * 4 * width + head * d.D + unit;
    const SlstmBefore before = StateBefore(d, a, a.m, head, first + r, t);
    return SlstmCellRow<T, Operand>{raw + r * 4 * kSlstmUnits,
                                    a.wx + gates_at,
                                    before.c + unit,
                                    before.n + unit,
                                    before.m + unit,
                                    a.gates + gates_at,
                                    a.c + at,
                                    a.n + at,
                                    a.m + at,
                                    static_cast<T*>(a.y) + at,
                                    operand == nullptr ? nullptr : operand + r * d.Dp + unit};
  };
  // the panel that is made next
  const bool last = panel + 1 == d.num_panels();
  const int64_t next_t = last ? t + 1 : t, next_panel = last ? 0 : panel + 1;
  for (int64_t r = 0; r < count; r += 2) {
    for (int64_t ahead = r; ahead < r + 2 && ahead < count && next_t < d.T; ++ahead)
      SlstmPrefetchForward<T>(d, a, head, first + ahead, next_t, next_panel);
    if (r + 1 < count) {
      const SlstmCellRow<T, Operand> rows[2] = {row_of(r), row_of(r + 1)};
      ForEachVec(units, [&](int64_t e, auto part) { SlstmCellUnits<2>(rows, bias, width, e, part); });
    } else {
      const SlstmCellRow<T, Operand> row = row_of(r);
      ForEachVec(units, [&](int64_t e, auto part) { SlstmCellUnits<1>(&row, bias, width, e, part); });
    }
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
    const VecF gap = Load(kept, part);
    const SlstmInputForget gate(gap, n0, ExpOfNegative(gap < 0.0f ? gap : -gap));
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
