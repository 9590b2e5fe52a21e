// Causal depthwise convolution with optional SiLU, forward and backward, in one pass over the rows each.
//
// Tokens away from every border go in tiles of kTileRows, whose taps are in registers. A token near a border
// (of its sequence, of a document) goes alone, with two numbers that say what is left of the sums:
//   depth(t)  how many tokens back the taps of t reach, at most K-1;
//   reach(t)  how many tokens ahead there are that read t, at most K-1.
// Both kinds add in the same order. Backward runs from the last token to the first and keeps the dp of the
// next K-1 tokens in a ring: token t in row t % ring_rows.
#include "kernels/cpu/simd/causal_conv.h"

#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

constexpr int kTileRows = 4;

CAROUSEL_INLINE int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Sequence b: rows is for token 0, and without the states and resets of other sequences.
template <class T>
CausalConvRows<T> Sequence(CausalConvRows<T> rows, int64_t b) {
  rows.x += b * rows.num_tokens * rows.x_stride;
  if (rows.reset != nullptr) rows.reset += b * rows.num_tokens;
  if (rows.initial != nullptr) rows.initial += b * (rows.K - 1) * rows.C;
  return rows;
}
// Whether the tokens first .. last exist and are of one document.
template <class T>
bool Unbroken(const CausalConvRows<T>& s, int64_t first, int64_t last) {
  if (first < 0 || last >= s.num_tokens) return false;
  for (int64_t t = first + 1; s.reset != nullptr && t <= last; ++t) {
    if (s.reset[t] != 0) return false;
  }
  return true;
}
template <class T>
int64_t Depth(const CausalConvRows<T>& s, int64_t t) {
  const int64_t limit = s.initial == nullptr ? Smaller(s.K - 1, t) : s.K - 1;
  int64_t depth = 0;
  while (depth < limit && (s.reset == nullptr || t < depth || s.reset[t - depth] == 0)) ++depth;
  return depth;
}
template <class T>
int64_t Reach(const CausalConvRows<T>& s, int64_t t) {
  const int64_t limit = Smaller(s.K - 1, s.num_tokens - 1 - t);
  int64_t reach = 0;
  while (reach < limit && (s.reset == nullptr || s.reset[t + reach + 1] == 0)) ++reach;
  return reach;
}

// The inputs that the taps of tokens t .. t + kRows - 1 read, for one vector of channels: (i, j) is what tap
// j of token t + i reads. kK is K, or 0 if it is not known here.
template <int kK, int kRows, class T, class Count>
struct TileTaps {
  [[gnu::always_inline]] TileTaps(const CausalConvRows<T>& s, int64_t t, int64_t c, Count count)
      : from(s.x + (t - (s.K - 1)) * s.x_stride + c), stride(s.x_stride), count(count) {
    for (int n = 0; n < kRows + kK - 1 && kK > 0; ++n) loaded[n] = Load(from + n * stride, count);
  }
  [[gnu::always_inline]] VecF operator()(int64_t i, int64_t j) const {
    return kK > 0 ? loaded[i + j] : Load(from + (i + j) * stride, count);
  }
  const T* from;
  int64_t stride;
  Count count;
  VecF loaded[kK > 0 ? kRows + kK - 1 : 1];
};
// The same of one token near a border: a tap that reaches back more than `depth` tokens reads 0.
template <class T, class Count>
struct BorderTaps {
  [[gnu::always_inline]] VecF operator()(int64_t, int64_t j) const {
    const int64_t back = s.K - 1 - j;
    if (back > depth) return VecF{};
    return back <= t ? Load(s.x + (t - back) * s.x_stride + c, count)
                     : Load(s.initial + (s.K - 1 + t - back) * s.C + c, count);
  }
  const CausalConvRows<T>& s;
  int64_t t, depth, c;
  Count count;
};

// p of kRows tokens.
template <int kK, int kRows, class T, class Taps, class Count>
CAROUSEL_INLINE void PreActivations(VecF* p, const CausalConvRows<T>& s, const Taps& taps, int64_t c,
                                    Count count) {
  const int64_t K = kK > 0 ? kK : s.K;
  const VecF bias = s.bias == nullptr ? VecF{} : Load(s.bias + c, count);
  for (int i = 0; i < kRows; ++i) p[i] = bias;
  for (int64_t j = 0; j < K; ++j) {
    const VecF weight = Load(s.weight + j * s.C + c, count);
    for (int i = 0; i < kRows; ++i) p[i] += weight * taps(i, j);
  }
}

// ---- forward. y points at the row of token t.

template <int kK, int kRows, class T, class Taps, class Count>
CAROUSEL_INLINE void ForwardVec(const CausalConvRows<T>& s, const Taps& taps, T* y, int64_t y_stride,
                                int64_t c, Count count) {
  VecF p[kRows];
  PreActivations<kK, kRows>(p, s, taps, c, count);
  for (int i = 0; i < kRows; ++i) {
    Store(y + i * y_stride + c, s.silu ? p[i] * Sigmoid(p[i]) : p[i], count);
  }
}
template <int kK, class T>
void ForwardTile(CausalConvRows<T> s, int64_t t, T* y, int64_t y_stride) {
  ForEachVec(s.C, [&](int64_t c, auto count) {
    const TileTaps<kK, kTileRows, T, decltype(count)> taps(s, t, c, count);
    ForwardVec<kK, kTileRows>(s, taps, y, y_stride, c, count);
  });
}
template <class T>
void ForwardAtBorder(CausalConvRows<T> s, int64_t t, T* y, int64_t y_stride) {
  const int64_t depth = Depth(s, t);
  ForEachVec(s.C, [&](int64_t c, auto count) {
    const BorderTaps<T, decltype(count)> taps = {.s = s, .t = t, .depth = depth, .c = c, .count = count};
    ForwardVec<0, 1>(s, taps, y, y_stride, c, count);
  });
}

template <int kK, class T>
void ForwardRows(const CausalConvForwardRows<T>& a, int64_t begin, int64_t end) {
  const int64_t num_tokens = a.in.num_tokens;
  for (int64_t n = begin; n < end;) {
    const CausalConvRows<T> s = Sequence(a.in, n / num_tokens);
    const int64_t first = n % num_tokens, last = Smaller(num_tokens, first + end - n);
    for (int64_t t = first; t < last;) {
      T* y = a.y + (n + t - first) * a.y_stride;
      if (t + kTileRows <= last && Unbroken(s, t - (s.K - 1), t + kTileRows - 1)) {
        ForwardTile<kK>(s, t, y, a.y_stride);
        t += kTileRows;
      } else {
        ForwardAtBorder(s, t, y, a.y_stride);
        t += 1;
      }
    }
    n += last - first;
  }
}
template <class T>
void Forward(const CausalConvForwardRows<T>& a, int64_t begin, int64_t end) {
  switch (a.in.K) {
    case 2:
      return ForwardRows<2>(a, begin, end);
    case 3:
      return ForwardRows<3>(a, begin, end);
    case 4:
      return ForwardRows<4>(a, begin, end);
    default:
      return ForwardRows<0>(a, begin, end);
  }
}

// ---- backward

// One sequence: rows of dx and dy are for token 0.
template <class T>
struct BackwardSequence {
  CausalConvRows<T> s;
  T* dx;
  const T* dy;
  const float* dlast;  // may be null
  int64_t dx_stride, dy_stride, ring_rows;
  bool accumulate_dx;
  // (K, C), (C): sums so far; ring of dp rows
  float* dweight;
  float* dbias;
  float* ring;

  float* RingRow(int64_t t) const { return ring + (t & (ring_rows - 1)) * s.C; }
};

// dp of kRows tokens.
template <int kK, int kRows, class T, class Taps, class Count>
CAROUSEL_INLINE void PreGradients(VecF* dp, const BackwardSequence<T>& a, const Taps& taps, int64_t t,
                                  int64_t c, Count count) {
  VecF p[kRows];
  for (int i = 0; i < kRows; ++i) dp[i] = Load(a.dy + (t + i) * a.dy_stride + c, count);
  if (!a.s.silu) return;
  PreActivations<kK, kRows>(p, a.s, taps, c, count);
  for (int i = 0; i < kRows; ++i) {
    const VecF sigmoid = Sigmoid(p[i]);
    dp[i] *= sigmoid * (1.0f + p[i] * (1.0f - sigmoid));
  }
}
// Adds to dweight and dbias.
template <int kK, int kRows, class T, class Taps, class Count>
CAROUSEL_INLINE void AddWeightGradients(const VecF* dp, const BackwardSequence<T>& a, const Taps& taps,
                                        int64_t c, Count count) {
  const int64_t K = kK > 0 ? kK : a.s.K;
  VecF sum = Load(a.dbias + c, count);
  for (int i = 0; i < kRows; ++i) sum += dp[i];
  Store(a.dbias + c, sum, count);
  for (int64_t j = 0; j < K; ++j) {
    float* to = a.dweight + j * a.s.C + c;
    VecF products = Load(to, count);
    for (int i = 0; i < kRows; ++i) products += dp[i] * taps(i, j);
    Store(to, products, count);
  }
}
template <class T, class Count>
CAROUSEL_INLINE void StoreDx(const BackwardSequence<T>& a, int64_t t, int64_t c, VecF dx, Count count) {
  T* to = a.dx + t * a.dx_stride + c;
  if (a.accumulate_dx) dx += Load(to, count);
  Store(to, dx, count);
}

template <int kK, class T>
void BackwardTile(BackwardSequence<T> a, int64_t t) {
  const int64_t K = kK > 0 ? kK : a.s.K;
  ForEachVec(a.s.C, [&](int64_t c, auto count) {
    const TileTaps<kK, kTileRows, T, decltype(count)> taps(a.s, t, c, count);
    VecF dp[kTileRows];
    PreGradients<kK, kTileRows>(dp, a, taps, t, c, count);
    AddWeightGradients<kK, kTileRows>(dp, a, taps, c, count);
    VecF dx[kTileRows] = {};
    for (int64_t back = 0; back < K; ++back) {
      const VecF weight = Load(a.s.weight + (K - 1 - back) * a.s.C + c, count);
      for (int i = 0; i < kTileRows; ++i) {
        const VecF later = i + back < kTileRows ? dp[i + back] : Load(a.RingRow(t + i + back) + c, count);
        dx[i] += weight * later;
      }
    }
    for (int i = 0; i < kTileRows; ++i) StoreDx(a, t + i, c, dx[i], count);
    for (int i = 0; i < kTileRows && i < K - 1; ++i) Store(a.RingRow(t + i) + c, dp[i], count);
  });
}
// dp into the ring; and, unless the token belongs to a later range, everything else.
template <class T>
void BackwardAtBorder(BackwardSequence<T> a, int64_t t, bool only_dp) {
  const CausalConvRows<T>& s = a.s;
  const int64_t depth = Depth(s, t), reach = Reach(s, t), age = s.num_tokens - 1 - t;
  // t is among the inputs that the last state holds
  const float* dlast =
      a.dlast != nullptr && age < s.K - 1 && reach == age ? a.dlast + (s.K - 2 - age) * s.C : nullptr;
  ForEachVec(s.C, [&](int64_t c, auto count) {
    const BorderTaps<T, decltype(count)> taps = {.s = s, .t = t, .depth = depth, .c = c, .count = count};
    VecF dp;
    PreGradients<0, 1>(&dp, a, taps, t, c, count);
    if (!only_dp) {
      AddWeightGradients<0, 1>(&dp, a, taps, c, count);
      VecF dx = {};
      for (int64_t back = 0; back <= reach; ++back) {
        const VecF later = back == 0 ? dp : Load(a.RingRow(t + back) + c, count);
        dx += Load(s.weight + (s.K - 1 - back) * s.C + c, count) * later;
      }
      if (dlast != nullptr) dx += Load(dlast + c, count);
      StoreDx(a, t, c, dx, count);
    }
    if (s.K > 1) Store(a.RingRow(t) + c, dp, count);
  });
}
// REQUIRES: the ring holds the first K-1 tokens. Entry i is what tap j of token t = i - j reads, while no
// document has begun.
template <class T>
void InitialGradient(const BackwardSequence<T>& a, float* dinitial) {
  const CausalConvRows<T>& s = a.s;
  int64_t before_reset = 0;
  while (before_reset < Smaller(s.num_tokens, s.K - 1) &&
         (s.reset == nullptr || s.reset[before_reset] == 0)) {
    ++before_reset;
  }
  for (int64_t i = 0; i < s.K - 1; ++i) {
    const bool in_last = a.dlast != nullptr && i >= s.num_tokens && before_reset == s.num_tokens;
    ForEachVec(s.C, [&](int64_t c, auto count) {
      VecF sum = {};
      for (int64_t t = 0; t <= i && t < before_reset; ++t) {
        sum += Load(s.weight + (i - t) * s.C + c, count) * Load(a.RingRow(t) + c, count);
      }
      if (in_last) sum += Load(a.dlast + (i - s.num_tokens) * s.C + c, count);
      Store(dinitial + i * s.C + c, sum, count);
    });
  }
}

// Sequence b without places for sums.
template <class T>
BackwardSequence<T> SequenceOf(const CausalConvBackwardRows<T>& a, int64_t b, float* ring) {
  const int64_t tokens = b * a.in.num_tokens;
  return {.s = Sequence(a.in, b),
          .dx = a.dx == nullptr ? nullptr : a.dx + tokens * a.dx_stride,
          .dy = a.dy + tokens * a.dy_stride,
          .dlast = a.dlast == nullptr ? nullptr : a.dlast + b * (a.in.K - 1) * a.in.C,
          .dx_stride = a.dx_stride,
          .dy_stride = a.dy_stride,
          .ring_rows = a.ring_rows,
          .accumulate_dx = a.accumulate_dx,
          .dweight = nullptr,
          .dbias = nullptr,
          .ring = ring};
}
template <class T>
void OnlyInitialGradient(const CausalConvBackwardRows<T>& a, int64_t b, float* ring) {
  const BackwardSequence<T> sequence = SequenceOf(a, b, ring);
  for (int64_t t = Smaller(a.in.num_tokens, a.in.K - 1); t > 0; --t) {
    BackwardAtBorder(sequence, t - 1, /*only_dp=*/true);
  }
  InitialGradient(sequence, a.dinitial + b * (a.in.K - 1) * a.in.C);
}

template <int kK, class T>
void BackwardRows(const CausalConvBackwardRows<T>& a, int64_t begin, int64_t end, float* dweight,
                  float* dbias, float* ring) {
  const int64_t num_tokens = a.in.num_tokens, C = a.in.C, K = a.in.K;
  for (int64_t i = 0; i < K * C; ++i) dweight[i] = 0.0f;
  for (int64_t c = 0; c < C; ++c) dbias[c] = 0.0f;
  for (int64_t n = begin; n < end;) {
    const int64_t b = n / num_tokens, first = n % num_tokens, last = Smaller(num_tokens, first + end - n);
    BackwardSequence<T> sequence = SequenceOf(a, b, ring);
    sequence.dweight = dweight;
    sequence.dbias = dbias;
    for (int64_t t = Smaller(num_tokens, last + K - 1); t > last; --t) {
      BackwardAtBorder(sequence, t - 1, /*only_dp=*/true);
    }
    for (int64_t t = last; t > first;) {
      if (t - kTileRows >= first && Unbroken(sequence.s, t - kTileRows - (K - 1), t - 1 + K - 1)) {
        t -= kTileRows;
        BackwardTile<kK>(sequence, t);
      } else {
        t -= 1;
        BackwardAtBorder(sequence, t, /*only_dp=*/false);
      }
    }
    if (first == 0 && a.dinitial != nullptr) InitialGradient(sequence, a.dinitial + b * (K - 1) * C);
    n += last - first;
  }
}
template <class T>
void Backward(const CausalConvBackwardRows<T>& a, int64_t begin, int64_t end, float* dweight, float* dbias,
              float* ring) {
  switch (a.in.K) {
    case 2:
      return BackwardRows<2>(a, begin, end, dweight, dbias, ring);
    case 3:
      return BackwardRows<3>(a, begin, end, dweight, dbias, ring);
    case 4:
      return BackwardRows<4>(a, begin, end, dweight, dbias, ring);
    default:
      return BackwardRows<0>(a, begin, end, dweight, dbias, ring);
  }
}

template <class T>
void Transpose(float* to, const T* weight, int64_t C, int64_t K) {
  for (int64_t j = 0; j < K; ++j) {
    for (int64_t c = 0; c < C; ++c) to[j * C + c] = ToF32(weight[c * K + j]);
  }
}

template <class T>
constexpr CausalConvKernels<T> kKernels = {
    .transpose = Transpose<T>,
    .forward = Forward<T>,
    .backward = Backward<T>,
    .initial_gradient = OnlyInitialGradient<T>,
};
}  // namespace

const CausalConvKernels<float>& GetCausalConvKernelsF32() { return kKernels<float>; }
const CausalConvKernels<uint16_t>& GetCausalConvKernelsBf16() { return kKernels<uint16_t>; }
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
