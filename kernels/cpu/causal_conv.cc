// Causal depthwise convolution over time with optional SiLU; formulas in core/ops.h. Backward, with
// dp = dy silu'(p) (p is computed again) and d = K-1-j the age of a tap:
//   dx_s = sum_d weight[:, K-1-d] dp_{s+d};   dweight[:, j] = sum_t dp_t x_{t-d};   dbias = sum_t dp_t
// over the pairs (token, tap) that lie in one document. The state is a prefix of K-1 more tokens.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"
#include "kernels/cpu/simd/causal_conv.h"

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
    const int64_t oldest = std::max(t - (K - 1), 1 - K);
    for (int64_t s = t; reset != nullptr && s > oldest && s >= 0; --s) {
      if (reset[s] != 0) return s;
    }
    return oldest;
  }
  W X(int64_t position) const {
    if (position >= 0) return static_cast<W>(x[position * x_stride]);
    return initial == nullptr ? W{0} : initial[(K - 1 + position) * C];
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
  });
}

// The state after the last token, when y is done: `last` may be `initial`.
template <class T>
void WriteLast(const CausalConvForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const auto [B, T_, C, K] = a.shape;
  pool.ParallelFor(B, [&, T_ = T_, C = C, K = K](int64_t b) {
    const int64_t start = SequenceOf<T>(a, b, 0).Start(T_ - 1);
    // Oldest first: an entry of `initial` that still counts stands at a later place than the one it moves to.
    for (int64_t i = 0; i < K - 1; ++i) {
      const int64_t position = T_ - (K - 1) + i;
      W* last = a.last.as<W>() + (b * (K - 1) + i) * C;
      for (int64_t c = 0; c < C; ++c) {
        last[c] = position >= start ? SequenceOf<T>(a, b, c).X(position) : W{0};
      }
    }
  });
}

// Without dx: only the tokens that the initial state reaches.
template <class T>
void Backward(const CausalConvBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const auto [B, T_, C, K] = a.shape;
  const bool all = a.dx.defined();
  pool.ParallelFor(C, [&, B = B, T_ = T_, C = C, K = K](int64_t c) {
    W dbias = 0;
    std::vector<W> dweight(K), dx(T_ + K - 1);  // dx begins with the initial state
    for (int64_t b = 0; b < B; ++b) {
      const Sequence<T> sequence = SequenceOf<T>(a, b, c);
      std::fill(dx.begin(), dx.end(), W{0});
      for (int64_t t = 0; t < (all ? T_ : std::min(T_, K - 1)); ++t) {
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
      for (int64_t t = 0; t < T_ && all; ++t) {
        T& to = Row<T>(a.dx, b * T_ + t)[c];
        to = static_cast<T>(dx[t + K - 1] + (a.accumulate_dx ? static_cast<W>(to) : W{0}));
      }
      for (int64_t i = 0; a.dinitial.defined() && i < K - 1; ++i) {
        a.dinitial.as<W>()[(b * (K - 1) + i) * C + c] = dx[i];
      }
    }
    if (!all) return;
    for (int64_t j = 0; j < K; ++j) a.dweight.as<W>()[c * K + j] += dweight[j];
    if (a.dbias.defined()) a.dbias.as<W>()[c] += dbias;
  });
}

// The fast loops; T is float, or uint16_t for bf16.
template <class T>
const CausalConvKernels<T>& Kernels(SimdLevel level, [[maybe_unused]] bool use_tiles) {
  if constexpr (sizeof(T) == 2) {
#if defined(__x86_64__)
    // a processor with matrix tiles has AVX-512 BF16, too
    if (use_tiles) return simd_tiles::GetCausalConvKernelsBf16();
#endif
    return CAROUSEL_PICK_SIMD(level, GetCausalConvKernelsBf16);
  } else {
    return CAROUSEL_PICK_SIMD(level, GetCausalConvKernelsF32);
  }
}
// Arguments of both directions, but for the weights.
template <class T, class Args>
CausalConvRows<T> RowsOf(const Args& a, const float* weight) {
  return {.x = RawData<T>(a.x),
          .weight = weight,
          .bias = RawDataOrNull<float>(a.bias),
          .reset = RawDataOrNull<uint8_t>(a.reset),
          .initial = RawDataOrNull<float>(a.initial),
          .num_tokens = a.shape.T,
          .C = a.shape.C,
          .K = a.shape.K,
          .x_stride = a.x.row_stride,
          .silu = a.silu};
}

template <class T>
void FastForward(const CausalConvForwardArgs& a, const CausalConvKernels<T>& kernels, float* weight,
                 ThreadPool& pool) {
  const auto [B, T_, C, K] = a.shape;
  kernels.transpose(weight, RawData<T>(a.weight), C, K);
  const CausalConvForwardRows<T> rows = {
      .in = RowsOf<T>(a, weight), .y = RawData<T>(a.y), .y_stride = a.y.row_stride};
  pool.ParallelForBlocks(B * T_, RowsPerTask(C),
                         [&](int64_t begin, int64_t end) { kernels.forward(rows, begin, end); });
}

// Where the parts of backward's scratch memory begin, in floats.
struct BackwardScratch {
  BackwardScratch(const CausalConvShape& shape, int num_threads)
      : rows_per_partial(RowsPerPartial(shape.B * shape.T)),
        num_partials(CeilDiv(shape.B * shape.T, rows_per_partial)) {
    while (ring_rows < shape.K - 1) ring_rows *= 2;
    const int64_t K = shape.K, C = shape.C;
    dweight = K * C;
    dbias = dweight + num_partials * K * C;
    sum = dbias + num_partials * C;
    rings = sum + K * C;
    elems = rings + num_threads * ring_rows * C;
  }
  int64_t rows_per_partial, num_partials;
  int64_t ring_rows = 1;
  int64_t weight = 0;      // (K, C)
  int64_t dweight, dbias;  // (num_partials, K, C), (num_partials, C)
  int64_t sum;             // (K, C)
  int64_t rings;           // by worker (ring_rows, C)
  int64_t elems;
};

template <class T>
CausalConvBackwardRows<T> BackwardRowsOf(const CausalConvBackwardArgs& a, const float* weight,
                                         int64_t ring_rows) {
  return {.in = RowsOf<T>(a, weight),
          .dx = RawDataOrNull<T>(a.dx),
          .dinitial = RawDataOrNull<float>(a.dinitial),
          .dy = RawData<T>(a.dy),
          .dlast = RawDataOrNull<float>(a.dlast),
          .dx_stride = a.dx.row_stride,
          .dy_stride = a.dy.row_stride,
          .ring_rows = ring_rows,
          .accumulate_dx = a.accumulate_dx};
}
template <class T>
void FastBackward(const CausalConvBackwardArgs& a, const CausalConvKernels<T>& kernels,
                  const BackwardScratch& at, float* scratch, ThreadPool& pool) {
  const auto [B, T_, C, K] = a.shape;
  kernels.transpose(scratch + at.weight, RawData<T>(a.weight), C, K);
  const CausalConvBackwardRows<T> rows = BackwardRowsOf<T>(a, scratch + at.weight, at.ring_rows);
  if (!a.dx.defined()) {
    return pool.ParallelFor(B, [&, C = C](int64_t b, int worker) {
      kernels.initial_gradient(rows, b, scratch + at.rings + worker * at.ring_rows * C);
    });
  }
  pool.ParallelFor(at.num_partials, [&, N = B * T_, C = C, K = K](int64_t partial, int worker) {
    const int64_t begin = partial * at.rows_per_partial;
    kernels.backward(rows, begin, std::min(N, begin + at.rows_per_partial),
                     scratch + at.dweight + partial * K * C, scratch + at.dbias + partial * C,
                     scratch + at.rings + worker * at.ring_rows * C);
  });
}
}  // namespace

void CpuOps::CausalConvForward(const CausalConvForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype;
  const auto [B, T_, C, K] = a.shape;
  if (B == 0) return;
  if (!a.y.defined()) {
    // only the state
  } else if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastForward<float>(a, Kernels<float>(level_, use_tiles_), ScratchF32(K * C), pool_);
  } else {
    FastForward<uint16_t>(a, Kernels<uint16_t>(level_, use_tiles_), ScratchF32(K * C), pool_);
  }
  if (a.last.defined()) DispatchFloat(compute, [&]<class T>() { WriteLast<T>(a, pool_); });
}

void CpuOps::CausalConvBackward(const CausalConvBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype;
  const auto [B, T_, C, K] = a.shape;
  if (B == 0) return;
  if (!Fast(compute)) return DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
  const BackwardScratch at(a.shape, pool_.num_threads());
  float* scratch = ScratchF32(at.elems);
  if (compute == DType::kF32) {
    FastBackward<float>(a, Kernels<float>(level_, use_tiles_), at, scratch, pool_);
  } else {
    FastBackward<uint16_t>(a, Kernels<uint16_t>(level_, use_tiles_), at, scratch, pool_);
  }
  if (!a.dx.defined()) return;
  if (a.dbias.defined()) AddPartials(a.dbias.as<float>(), scratch + at.dbias, at.num_partials, C);
  float* sum = scratch + at.sum;
  std::fill_n(sum, K * C, 0.0f);
  AddPartials(sum, scratch + at.dweight, at.num_partials, K * C);
  float* dweight = a.dweight.as<float>();
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t j = 0; j < K; ++j) dweight[c * K + j] += sum[j * C + c];
  }
}
}  // namespace carousel::cpu
