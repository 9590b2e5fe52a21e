// Causal depthwise convolution over time with optional SiLU; formulas in core/ops.h. Backward, with
// dp = dy silu'(p) (p is computed again) and d = K-1-j the age of a tap:
//   dx_s = sum_d weight[:, K-1-d] dp_{s+d};   dweight[:, j] = sum_t dp_t x_{t-d};   dbias = sum_t dp_t
// over the pairs (token, tap) that lie in one document. The state is a prefix of K-1 more tokens.
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class W>
W Sigmoid(W x) {
  const W e = std::exp(-std::abs(x));
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

// The tokens of one sequence and one channel. Position -1 is the newest entry of the initial state.
template <class T>
struct Sequence {
  using W = Wide<T>;

  // Oldest position that the K taps of token t may read; at most K-1 before t.
  int64_t Start(int64_t t) const {
    const int64_t oldest = std::max(t - (K - 1), initial == nullptr ? int64_t{0} : 1 - K);
    for (int64_t s = t; reset != nullptr && s > oldest && s >= 0; --s) {
      if (reset[s] != 0) return s;
    }
    return oldest;
  }
  W X(int64_t position) const {
    return position >= 0 ? static_cast<W>(x[position * x_stride]) : initial[(K - 1 + position) * C];
  }
  W PreActivation(int64_t t) const {
    const int64_t start = Start(t);
    W p = bias;
    for (int64_t j = 0; j < K; ++j) {
      const int64_t position = t - (K - 1) + j;
      if (position >= start) p += static_cast<W>(weight[j]) * X(position);
    }
    return p;
  }

  const T* x;
  int64_t x_stride;
  const T* weight;  // (K)
  W bias;
  const uint8_t* reset;  // (T), may be null
  const W* initial;      // may be null
  int64_t C, K;
};

template <class T, class Args>
Sequence<T> SequenceOf(const Args& a, int64_t b, int64_t c) {
  using W = Wide<T>;
  const auto [B, T_, C, K] = a.shape;
  return {.x = Row<T>(a.x, b * T_) + c,
          .x_stride = a.x.row_stride,
          .weight = a.weight.template as<T>() + c * K,
          .bias = a.bias.defined() ? a.bias.template as<W>()[c] : W{0},
          .reset = a.reset.defined() ? a.reset.template as<uint8_t>() + b * T_ : nullptr,
          .initial = a.initial.defined() ? a.initial.template as<W>() + b * (K - 1) * C + c : nullptr,
          .C = C,
          .K = K};
}

template <class T>
void Forward(const CausalConvForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const auto [B, T_, C, K] = a.shape;
  pool.ParallelFor(B * C, [&, T_ = T_, C = C, K = K](int64_t task) {
    const int64_t b = task / C, c = task % C;
    const Sequence<T> sequence = SequenceOf<T>(a, b, c);
    for (int64_t t = 0; t < T_; ++t) {
      const W p = sequence.PreActivation(t);
      Row<T>(a.y, b * T_ + t)[c] = static_cast<T>(a.silu ? p * Sigmoid(p) : p);
    }
    if (!a.last.defined()) return;
    // Oldest first: an entry of `initial` that still counts stands at a later place than the one it moves to.
    const int64_t start = sequence.Start(T_ - 1);
    W* last = a.last.as<W>() + b * (K - 1) * C + c;
    for (int64_t i = 0; i < K - 1; ++i) {
      const int64_t position = T_ - (K - 1) + i;
      last[i * C] = position >= start ? sequence.X(position) : W{0};
    }
  });
}

template <class T>
void Backward(const CausalConvBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const auto [B, T_, C, K] = a.shape;
  pool.ParallelFor(C, [&, B = B, T_ = T_, C = C, K = K](int64_t c) {
    W dbias = 0;
    std::vector<W> dweight(K), dx(T_ + K - 1);  // dx begins with the initial state
    for (int64_t b = 0; b < B; ++b) {
      const Sequence<T> sequence = SequenceOf<T>(a, b, c);
      std::fill(dx.begin(), dx.end(), W{0});
      for (int64_t t = 0; t < T_; ++t) {
        const int64_t start = sequence.Start(t);
        W dp = static_cast<W>(Row<T>(a.dy, b * T_ + t)[c]);
        if (a.silu) {
          const W p = sequence.PreActivation(t), s = Sigmoid(p);
          dp *= s * (1 + p * (1 - s));
        }
        dbias += dp;
        for (int64_t j = 0; j < K; ++j) {
          const int64_t position = t - (K - 1) + j;
          if (position < start) continue;
          dweight[j] += dp * sequence.X(position);
          dx[position + K - 1] += dp * static_cast<W>(sequence.weight[j]);
        }
      }
      if (a.dlast.defined()) {
        const int64_t start = sequence.Start(T_ - 1);
        const W* dlast = a.dlast.as<W>() + b * (K - 1) * C + c;
        for (int64_t i = 0; i < K - 1; ++i) {
          const int64_t position = T_ - (K - 1) + i;
          if (position >= start) dx[position + K - 1] += dlast[i * C];
        }
      }
      for (int64_t t = 0; t < T_; ++t) {
        T& to = Row<T>(a.dx, b * T_ + t)[c];
        to = static_cast<T>(dx[t + K - 1] + (a.accumulate_dx ? static_cast<W>(to) : W{0}));
      }
      for (int64_t i = 0; a.dinitial.defined() && i < K - 1; ++i) {
        a.dinitial.as<W>()[(b * (K - 1) + i) * C + c] = dx[i];
      }
    }
    for (int64_t j = 0; j < K; ++j) a.dweight.as<W>()[c * K + j] += dweight[j];
    if (a.dbias.defined()) a.dbias.as<W>()[c] += dbias;
  });
}

// What both directions have in common.
template <class Args>
void CheckArgs(const Args& a, DType compute) {
  const auto [B, T_, C, K] = a.shape;
  const DType wide = WideOf(compute);
  CAROUSEL_CHECK(B >= 0 && T_ >= 1 && C >= 1 && K >= 1);
  const int64_t N = B * T_;
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK_STRIDED(a.x, compute, {N, C});
  CAROUSEL_CHECK_TENSOR(a.weight, compute, {C, K});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {C});
  CAROUSEL_CHECK_OPTIONAL(a.reset, DType::kU8, {N});
  CAROUSEL_CHECK_OPTIONAL(a.initial, wide, {B, K - 1, C});
}
}  // namespace

void CpuOps::CausalConvForward(const CausalConvForwardArgs& a) {
  const DType compute = a.x.dtype;
  CheckArgs(a, compute);
  const auto [B, T_, C, K] = a.shape;
  CAROUSEL_CHECK_STRIDED(a.y, compute, {B * T_, C});
  CAROUSEL_CHECK_OPTIONAL(a.last, WideOf(compute), {B, K - 1, C});
  DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
}

void CpuOps::CausalConvBackward(const CausalConvBackwardArgs& a) {
  const DType compute = a.x.dtype, wide = WideOf(compute);
  CheckArgs(a, compute);
  const auto [B, T_, C, K] = a.shape;
  CAROUSEL_CHECK_STRIDED(a.dx, compute, {B * T_, C});
  CAROUSEL_CHECK_TENSOR(a.dweight, wide, {C, K});
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {C});
  CAROUSEL_CHECK_OPTIONAL(a.dinitial, wide, {B, K - 1, C});
  CAROUSEL_CHECK_STRIDED(a.dy, compute, {B * T_, C});
  CAROUSEL_CHECK_OPTIONAL(a.dlast, wide, {B, K - 1, C});
  DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
}
}  // namespace carousel::cpu
