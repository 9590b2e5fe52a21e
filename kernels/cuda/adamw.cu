// AdamW on a flat range. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
//
// Grid: elements. Block: kThreads threads with V elements each. Reads master, m, v and grad once, writes
// master, m, v and weight once: 28 bytes per element of f32, and 2 or 4 of weight. Every operation is rounded
// on its own (no fused multiply-add), in the order of the CPU backend, so both give the same bits and an
// element's do not depend on where its range begins.
#include <cmath>

#include "core/base/int_math.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kVec = 4;

__device__ inline float Mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double Mul(double a, double b) { return __dmul_rn(a, b); }
__device__ inline float Sum(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double Sum(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float Div(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double Div(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline float Sqrt(float a) { return __fsqrt_rn(a); }
__device__ inline double Sqrt(double a) { return __dsqrt_rn(a); }

template <class W, class T>
struct Range {
  W *master, *m, *v;
  T* weight;  // may be null
  const W* grad;
  int64_t n;
  W lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, grad_scale;
  // 1 - beta^step, or its inverse
  W correction1, correction2;
};

// The CPU backend's fast loop, which serves f32 with weights of at most 32 bits, multiplies by inverses.
template <class W, class T>
constexpr bool kInverseCorrections = sizeof(W) == 4 && sizeof(T) <= 4;

template <class W, class T, int V>
__device__ void Update(const Range<W, T>& a, int64_t i) {
  W master[V], m[V], v[V], grad[V];
  Load(master, a.master + i);
  Load(m, a.m + i);
  Load(v, a.v + i);
  Load(grad, a.grad + i);
  constexpr bool kInverse = kInverseCorrections<W, T>;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const W g = Mul(grad[j], a.grad_scale);
    m[j] = Sum(Mul(m[j], a.beta1), Mul(a.one_minus_beta1, g));
    const W square = kInverse ? Mul(Mul(g, g), a.one_minus_beta2) : Mul(Mul(a.one_minus_beta2, g), g);
    v[j] = Sum(Mul(v[j], a.beta2), square);
    const W corrected_m = kInverse ? Mul(m[j], a.correction1) : Div(m[j], a.correction1);
    const W corrected_v = kInverse ? Mul(v[j], a.correction2) : Div(v[j], a.correction2);
    const W step = Sum(Div(corrected_m, Sum(Sqrt(corrected_v), a.eps)), Mul(master[j], a.weight_decay));
    master[j] = Sum(master[j], -Mul(step, a.lr));
  }
  Store(a.m + i, m);
  Store(a.v + i, v);
  Store(a.master + i, master);
  if (a.weight != nullptr) Store(a.weight + i, master);
}

template <class W, class T, int V>
__global__ void __launch_bounds__(kThreads) AdamWKernel(Range<W, T> a) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (i + V <= a.n) {
    Update<W, T, V>(a, i);
  } else {
    for (int64_t j = i; j < a.n; ++j) Update<W, T, 1>(a, j);
  }
}

// Whether the range may be read V elements at a time from its start; its end may be ragged.
bool Aligned(const Tensor& t) {
  return !t.defined() || reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(std::min<int64_t>(
                                                                   kAccessBytes, kVec * SizeOf(t.dtype))) ==
                             0;
}

template <class W, class T>
void Launch(Context& context, const AdamWArgs& a) {
  const double correction1 = 1 - std::pow(a.beta1, static_cast<double>(a.step)),
               correction2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  constexpr bool kInverse = kInverseCorrections<W, T>;
  const Range<W, T> range = {.master = a.master.as<W>(),
                             .m = a.m.as<W>(),
                             .v = a.v.as<W>(),
                             .weight = DataOrNull<T>(a.weight),
                             .grad = a.grad.as<W>(),
                             .n = a.master.dim[0],
                             .lr = static_cast<W>(a.lr),
                             .beta1 = static_cast<W>(a.beta1),
                             .one_minus_beta1 = static_cast<W>(1 - a.beta1),
                             .beta2 = static_cast<W>(a.beta2),
                             .one_minus_beta2 = static_cast<W>(1 - a.beta2),
                             .eps = static_cast<W>(a.eps),
                             .weight_decay = static_cast<W>(a.weight_decay),
                             .grad_scale = static_cast<W>(a.grad_scale),
                             .correction1 = static_cast<W>(kInverse ? 1 / correction1 : correction1),
                             .correction2 = static_cast<W>(kInverse ? 1 / correction2 : correction2)};
  const bool aligned =
      Aligned(a.master) && Aligned(a.m) && Aligned(a.v) && Aligned(a.weight) && Aligned(a.grad);
  const int64_t per_block = kThreads * (aligned ? kVec : 1);
  const gpu::LaunchCfg config = {
      .grid = dim3(GridExtent(CeilDiv(range.n, per_block))), .block = kThreads, .name = "AdamWKernel"};
  aligned ? context.Launch(AdamWKernel<W, T, kVec>, config, range)
          : context.Launch(AdamWKernel<W, T, 1>, config, range);
}
}  // namespace

void DeviceOps::AdamW(const AdamWArgs& a) {
  CheckArgs(a);
  const DType wide = a.master.dtype;
  const int64_t n = a.master.dim[0];
  if (n == 0) return;
  DispatchFloat(a.weight.defined() ? a.weight.dtype : wide, [&]<class T>() {
    wide == DType::kF64 ? Launch<double, T>(context_, a) : Launch<float, T>(context_, a);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
