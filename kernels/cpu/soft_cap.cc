// y = cap tanh(x / cap) in the wide type; backward dx = dy (1 - (y / cap)^2).
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class W>
void Forward(const SoftCapForwardArgs& a, ThreadPool& pool) {
  W* y = a.y.as<W>();
  const W* x = a.x.as<W>();
  const W cap = static_cast<W>(a.cap);
  pool.ParallelForBlocks(a.y.num_elems(), kElemsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = cap * std::tanh(x[i] / cap);
  });
}

template <class W>
void Backward(const SoftCapBackwardArgs& a, ThreadPool& pool) {
  W* dx = a.dx.as<W>();
  const W* dy = a.dy.as<W>();
  const W* y = a.y.as<W>();
  const W cap = static_cast<W>(a.cap);
  pool.ParallelForBlocks(a.y.num_elems(), kElemsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dx[i] = dy[i] * (1 - (y[i] / cap) * (y[i] / cap));
  });
}
}  // namespace

void CpuOps::SoftCapForward(const SoftCapForwardArgs& a) {
  CheckArgs(a);
  if (!Fast(a.y.dtype)) {
    return a.y.dtype == DType::kF64 ? Forward<double>(a, pool_) : Forward<float>(a, pool_);
  }
  float* y = a.y.as<float>();
  const float* x = a.x.as<float>();
  pool_.ParallelForBlocks(a.y.num_elems(), kElemsPerTask, [&](int64_t begin, int64_t end) {
    elementwise_.soft_cap_forward(y + begin, x + begin, end - begin, static_cast<float>(a.cap));
  });
}

void CpuOps::SoftCapBackward(const SoftCapBackwardArgs& a) {
  CheckArgs(a);
  if (!Fast(a.y.dtype)) {
    return a.y.dtype == DType::kF64 ? Backward<double>(a, pool_) : Backward<float>(a, pool_);
  }
  float* dx = a.dx.as<float>();
  const float* dy = a.dy.as<float>();
  const float* y = a.y.as<float>();
  pool_.ParallelForBlocks(a.y.num_elems(), kElemsPerTask, [&](int64_t begin, int64_t end) {
    elementwise_.soft_cap_backward(dx + begin, dy + begin, y + begin, end - begin, static_cast<float>(a.cap));
  });
}
}  // namespace carousel::cpu
