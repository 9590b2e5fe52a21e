// y = cap tanh(x / cap) in the wide type; backward dx = dy (1 - (y / cap)^2). Formula: core/ops.h.
// Grid, block: element_grid.h, 16 bytes per thread. Shared: none. Reads and writes every element once.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/element_grid.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

template <class W>
struct SoftCapForwardOp {
  static constexpr int kVec = kVecElems<W>;
  template <int V>
  __device__ void operator()(int64_t, int64_t i) const {
    W values[V];
    Load(values, x + i);
#pragma unroll
    for (int e = 0; e < V; ++e) values[e] = cap * std::tanh(values[e] * inverse_cap);
    Store(y + i, values);
  }
  W* y;
  const W* x;
  W cap, inverse_cap;
};

template <class W>
struct SoftCapBackwardOp {
  static constexpr int kVec = kVecElems<W>;
  template <int V>
  __device__ void operator()(int64_t, int64_t i) const {
    W gradient[V], result[V];
    Load(gradient, dy + i);
    Load(result, y + i);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const W ratio = result[e] * inverse_cap;
      gradient[e] *= 1 - ratio * ratio;
    }
    Store(dx + i, gradient);
  }
  W* dx;
  const W* dy;
  const W* y;
  W inverse_cap;
};

// Calls fn.operator()<W>() with the type of a wide tensor.
template <class Fn>
void DispatchWide(DType dtype, Fn&& fn) {
  return dtype == DType::kF64 ? fn.template operator()<double>() : fn.template operator()<float>();
}
}  // namespace

void DeviceOps::SoftCapForward(const SoftCapForwardArgs& a) {
  CheckArgs(a);
  DispatchWide(a.y.dtype, [&]<class W>() {
    const SoftCapForwardOp<W> op = {.y = a.y.as<W>(),
                                    .x = a.x.as<W>(),
                                    .cap = static_cast<W>(a.cap),
                                    .inverse_cap = static_cast<W>(1 / a.cap)};
    LaunchElements(context_, "SoftCapForward", ElementGridOf(op.kVec, a.y, a.x), op);
  });
}

void DeviceOps::SoftCapBackward(const SoftCapBackwardArgs& a) {
  CheckArgs(a);
  DispatchWide(a.y.dtype, [&]<class W>() {
    const SoftCapBackwardOp<W> op = {
        .dx = a.dx.as<W>(), .dy = a.dy.as<W>(), .y = a.y.as<W>(), .inverse_cap = static_cast<W>(1 / a.cap)};
    LaunchElements(context_, "SoftCapBackward", ElementGridOf(op.kVec, a.dx, a.dy, a.y), op);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
