// AdamW on a flat range. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {
template <class W>
void Update(const AdamWArgs& a, ThreadPool& pool) {
  W* master = a.master.as<W>();
  W* m = a.m.as<W>();
  W* v = a.v.as<W>();
  const W* grad = a.grad.as<W>();
  const W beta1 = static_cast<W>(a.beta1), one_minus_beta1 = static_cast<W>(1 - a.beta1);
  const W beta2 = static_cast<W>(a.beta2), one_minus_beta2 = static_cast<W>(1 - a.beta2);
  const W correction1 = static_cast<W>(1 - std::pow(a.beta1, static_cast<double>(a.step)));
  const W correction2 = static_cast<W>(1 - std::pow(a.beta2, static_cast<double>(a.step)));
  const W lr = static_cast<W>(a.lr), eps = static_cast<W>(a.eps), decay = static_cast<W>(a.weight_decay);
  pool.ParallelForBlocks(a.master.dim[0], kElemsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const W g = grad[i] * static_cast<W>(a.grad_scale);
      m[i] = beta1 * m[i] + one_minus_beta1 * g;
      v[i] = beta2 * v[i] + one_minus_beta2 * g * g;
      master[i] -= lr * ((m[i] / correction1) / (std::sqrt(v[i] / correction2) + eps) + decay * master[i]);
    }
  });
}
}  // namespace

void CpuOps::AdamW(const AdamWArgs& a) {
  CheckArgs(a);
  const DType wide = a.master.dtype;
  const int64_t n = a.master.dim[0];
  const bool fast_weight = !a.weight.defined() || a.weight.dtype != DType::kF64;
  if (!Fast(wide) || !fast_weight) {
    wide == DType::kF64 ? Update<double>(a, pool_) : Update<float>(a, pool_);
    if (a.weight.defined()) Cast({.y = a.weight, .x = a.master});
    return;
  }
  const bool bf16 = a.weight.defined() && a.weight.dtype == DType::kBF16;
  const AdamWRange range = {
      .master = a.master.as<float>(),
      .m = a.m.as<float>(),
      .v = a.v.as<float>(),
      .weight_f32 = a.weight.defined() && !bf16 ? a.weight.as<float>() : nullptr,
      .weight_bf16 = bf16 ? RawData<uint16_t>(a.weight) : nullptr,
      .grad = a.grad.as<float>(),
      .lr = static_cast<float>(a.lr),
      .beta1 = static_cast<float>(a.beta1),
      .one_minus_beta1 = static_cast<float>(1 - a.beta1),
      .beta2 = static_cast<float>(a.beta2),
      .one_minus_beta2 = static_cast<float>(1 - a.beta2),
      .eps = static_cast<float>(a.eps),
      .weight_decay = static_cast<float>(a.weight_decay),
      .grad_scale = static_cast<float>(a.grad_scale),
      .m_scale = static_cast<float>(1 / (1 - std::pow(a.beta1, static_cast<double>(a.step)))),
      .v_scale = static_cast<float>(1 / (1 - std::pow(a.beta2, static_cast<double>(a.step)))),
  };
  pool_.ParallelForBlocks(n, kElemsPerTask,
                          [&](int64_t begin, int64_t end) { elementwise_.adamw(range, begin, end); });
}
}  // namespace carousel::cpu
