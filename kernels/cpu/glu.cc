// y = act(gate) up. Shazeer 2020, arXiv:2002.05202. Backward: dup = dy act(gate); dgate = dy up act'(gate).
// SiLU: act(x) = x s, act'(x) = s (1 + x (1 - s)), s = sigmoid(x).
// GELU: act(x) = x P(x), act'(x) = P(x) + x p(x), P and p the distribution and density of the standard normal
// (Hendrycks & Gimpel 2016, arXiv:1606.08415).
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class W>
W Sigmoid(W x) {
  const W e = std::exp(-std::abs(x));
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}
// P(x) = erfc(-x / sqrt(2)) / 2: the complement keeps its relative precision far below zero. In double for
// every type, because erfc and exp multiply the relative error of their argument by x^2 there.
template <class W>
W NormalDistribution(W x) {
  return static_cast<W>(std::erfc(static_cast<double>(x) * -0.70710678118654752440) / 2);
}
template <class W>
W NormalDensity(W x) {
  const double wide = static_cast<double>(x);
  return static_cast<W>(std::exp(-wide * wide / 2) * 0.39894228040143267794);
}

template <class T>
void Forward(const GluForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.y.dim[0], F = a.y.dim[1];
  pool.ParallelForBlocks(N, RowsPerTask(F), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < F; ++c) {
        const W g = static_cast<W>(Row<T>(a.gate, r)[c]), u = static_cast<W>(Row<T>(a.up, r)[c]);
        const W p = a.activation == GluActivation::kSilu ? Sigmoid(g) : NormalDistribution(g);
        Row<T>(a.y, r)[c] = static_cast<T>(g * p * u);
      }
    }
  });
}

template <class T>
void Backward(const GluBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.dy.dim[0], F = a.dy.dim[1];
  pool.ParallelForBlocks(N, RowsPerTask(F), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < F; ++c) {
        const W g = static_cast<W>(Row<T>(a.gate, r)[c]), u = static_cast<W>(Row<T>(a.up, r)[c]);
        const W dy = static_cast<W>(Row<T>(a.dy, r)[c]);
        if (a.activation == GluActivation::kSilu) {
          const W s = Sigmoid(g);
          if (a.y.defined()) Row<T>(a.y, r)[c] = static_cast<T>(g * s * u);
          Row<T>(a.dgate, r)[c] = static_cast<T>(dy * u * s * (1 + g * (1 - s)));
          Row<T>(a.dup, r)[c] = static_cast<T>(dy * g * s);
        } else {
          const W p = NormalDistribution(g);
          if (a.y.defined()) Row<T>(a.y, r)[c] = static_cast<T>(g * p * u);
          Row<T>(a.dgate, r)[c] = static_cast<T>(dy * u * (p + g * NormalDensity(g)));
          Row<T>(a.dup, r)[c] = static_cast<T>(dy * g * p);
        }
      }
    }
  });
}

int Index(GluActivation activation) {
  return static_cast<int>(activation == GluActivation::kSilu ? RowActivation::kSilu : RowActivation::kGelu);
}
}  // namespace

template <class T>
void CpuOps::FastGluForward(const GluForwardArgs& a) {
  const GluForwardRows<T> rows = {.y = RawData<T>(a.y),
                                  .gate = RawData<T>(a.gate),
                                  .up = RawData<T>(a.up),
                                  .F = a.y.dim[1],
                                  .gate_stride = a.gate.row_stride,
                                  .up_stride = a.up.row_stride};
  const auto forward = activation<T>().glu_forward[Index(a.activation)];
  pool_.ParallelForBlocks(a.y.dim[0], RowsPerTask(rows.F),
                          [&](int64_t begin, int64_t end) { forward(rows, begin, end); });
}

template <class T>
void CpuOps::FastGluBackward(const GluBackwardArgs& a) {
  const GluBackwardRows<T> rows = {.dgate = RawData<T>(a.dgate),
                                   .dup = RawData<T>(a.dup),
                                   .y = RawDataOrNull<T>(a.y),
                                   .dy = RawData<T>(a.dy),
                                   .gate = RawData<T>(a.gate),
                                   .up = RawData<T>(a.up),
                                   .F = a.dy.dim[1],
                                   .dgate_stride = a.dgate.row_stride,
                                   .dup_stride = a.dup.row_stride,
                                   .gate_stride = a.gate.row_stride,
                                   .up_stride = a.up.row_stride};
  const auto backward = activation<T>().glu_backward[Index(a.activation)];
  pool_.ParallelForBlocks(a.dy.dim[0], RowsPerTask(rows.F),
                          [&](int64_t begin, int64_t end) { backward(rows, begin, end); });
}

void CpuOps::GluForward(const GluForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastGluForward<float>(a);
  } else {
    FastGluForward<uint16_t>(a);
  }
}

void CpuOps::GluBackward(const GluBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.dy.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastGluBackward<float>(a);
  } else {
    FastGluBackward<uint16_t>(a);
  }
}
}  // namespace carousel::cpu
