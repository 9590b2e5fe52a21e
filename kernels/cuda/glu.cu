// y = act(gate) up. Shazeer 2020, arXiv:2002.05202. Backward: dup = dy act(gate); dgate = dy up act'(gate).
// SiLU: act(x) = x s, act'(x) = s (1 + x (1 - s)), s = sigmoid(x). GELU: act(x) = x P(x), act'(x) = P(x) + x
// p(x), P and p the distribution and density of the standard normal (arXiv:1606.08415).
// Grid, block: element_grid.h, 16 bytes of each tensor per thread. Shared: none. Reads and writes every
// element once: 6 bytes per element forward, 10 backward in bf16, 12 with y.
#include "kernels/cuda/activation.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/element_grid.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// act(x) / x
template <class T, GluActivation kActivation>
__device__ inline Wide<T> Factor(Wide<T> x) {
  if constexpr (kActivation == GluActivation::kSilu) {
    return Sigmoid<T>(x);
  } else {
    return NormalOf(x).distribution;
  }
}

template <class T, GluActivation kActivation>
struct GluForwardOp {
  using W = Wide<T>;
  static constexpr int kVec = kVecElems<T>;
  template <int V>
  __device__ void operator()(int64_t row, int64_t column) const {
    W g[V], u[V];
    Load(g, gate + row * gate_stride + column);
    Load(u, up + row * up_stride + column);
#pragma unroll
    for (int e = 0; e < V; ++e) u[e] *= g[e] * Factor<T, kActivation>(g[e]);
    Store(y + row * y_stride + column, u);
  }
  T* y;
  const T* gate;
  const T* up;
  int64_t y_stride, gate_stride, up_stride;
};

template <class T, GluActivation kActivation>
struct GluBackwardOp {
  using W = Wide<T>;
  static constexpr int kVec = kVecElems<T>;
  template <int V>
  __device__ void operator()(int64_t row, int64_t column) const {
    W g[V], u[V], dy_[V], y_[V];
    Load(g, gate + row * gate_stride + column);
    Load(u, up + row * up_stride + column);
    Load(dy_, dy + row * dy_stride + column);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      W factor, slope;
      if constexpr (kActivation == GluActivation::kSilu) {
        factor = Sigmoid<T>(g[e]);
        slope = SiluSlope<T>(g[e], factor);
      } else {
        const Normal<W> normal = NormalOf(g[e]);
        factor = normal.distribution;
        slope = factor + g[e] * normal.density;
      }
      const W activated = g[e] * factor;
      y_[e] = u[e] * activated;
      u[e] *= dy_[e] * slope;
      dy_[e] *= activated;
    }
    Store(dgate + row * dgate_stride + column, u);
    Store(dup + row * dup_stride + column, dy_);
    if (y != nullptr) Store(y + row * y_stride + column, y_);
  }
  T* dgate;
  T* dup;
  T* y;  // may be null
  const T* dy;
  const T* gate;
  const T* up;
  int64_t dgate_stride, dup_stride, y_stride, dy_stride, gate_stride, up_stride;
};

template <class Fn>
void DispatchActivation(GluActivation activation, Fn&& fn) {
  if (activation == GluActivation::kSilu) return fn.template operator()<GluActivation::kSilu>();
  return fn.template operator()<GluActivation::kGelu>();
}
}  // namespace

void DeviceOps::GluForward(const GluForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  DispatchFloat(compute, [&]<class T>() {
    DispatchActivation(a.activation, [&]<GluActivation kActivation>() {
      const GluForwardOp<T, kActivation> op = {.y = a.y.as<T>(),
                                               .gate = a.gate.as<T>(),
                                               .up = a.up.as<T>(),
                                               .y_stride = a.y.row_stride,
                                               .gate_stride = a.gate.row_stride,
                                               .up_stride = a.up.row_stride};
      LaunchElements(context_, "GluForward", ElementGridOf(op.kVec, a.y, a.gate, a.up), op);
    });
  });
}

void DeviceOps::GluBackward(const GluBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.dy.dtype;
  DispatchFloat(compute, [&]<class T>() {
    DispatchActivation(a.activation, [&]<GluActivation kActivation>() {
      const GluBackwardOp<T, kActivation> op = {.dgate = a.dgate.as<T>(),
                                                .dup = a.dup.as<T>(),
                                                .y = DataOrNull<T>(a.y),
                                                .dy = a.dy.as<T>(),
                                                .gate = a.gate.as<T>(),
                                                .up = a.up.as<T>(),
                                                .dgate_stride = a.dgate.row_stride,
                                                .dup_stride = a.dup.row_stride,
                                                .y_stride = a.y.row_stride,
                                                .dy_stride = a.dy.row_stride,
                                                .gate_stride = a.gate.row_stride,
                                                .up_stride = a.up.row_stride};
      LaunchElements(context_, "GluBackward", ElementGridOf(op.kVec, a.dy, a.dgate, a.dup, a.y, a.gate, a.up),
                     op);
    });
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
