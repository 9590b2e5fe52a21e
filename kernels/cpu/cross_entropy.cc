// z = cap tanh(logits / cap), or z = logits; loss = logsumexp(z) - z[target];
// dlogits = (softmax(z) - one_hot(target)) dz/dlogits. Rows with a negative target have loss 0 and gradient
// 0. A target is correct by the logits themselves, because different ones may have equal z far beyond the
// cap.
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

// Whether argmax of a row is `target` (>= 0), the lowest id among equals. False if any logit is NaN.
template <class W>
bool TargetIsLargest(const W* logits, int64_t V, int64_t target) {
  bool largest = true;
  for (int64_t c = 0; c < V; ++c) {
    largest &= c < target ? logits[c] < logits[target] : logits[c] <= logits[target];
  }
  return largest;
}

template <class T>
void Loss(const CrossEntropyArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  const W cap = static_cast<W>(a.soft_cap);
  const bool capped = a.soft_cap > 0;
  pool.ParallelForBlocks(n, RowsPerTask(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t target = a.targets.as<int32_t>()[r];
      const W* logits = Row<W>(a.logits, r);
      const auto z = [&](int64_t c) { return capped ? cap * std::tanh(logits[c] / cap) : logits[c]; };
      W sum = 0, max = 0;
      if (target >= 0) {
        max = z(0);
        for (int64_t c = 1; c < V; ++c) max = std::max(max, z(c));
        for (int64_t c = 0; c < V; ++c) sum += std::exp(z(c) - max);
      }
      a.loss.as<W>()[r] = target < 0 ? W{0} : std::log(sum) + (max - z(target));
      if (a.correct.defined()) {
        a.correct.as<uint8_t>()[r] = target >= 0 && TargetIsLargest(logits, V, target);
      }
      if (!a.dlogits.defined()) continue;
      T* dlogits = Row<T>(a.dlogits, r);
      for (int64_t c = 0; c < V; ++c) {
        if (target < 0) {
          dlogits[c] = static_cast<T>(W{0});
          continue;
        }
        const W slope = capped ? 1 - (z(c) / cap) * (z(c) / cap) : W{1};
        dlogits[c] = static_cast<T>((std::exp(z(c) - max) / sum - (c == target ? W{1} : W{0})) * slope);
      }
    }
  });
}
}  // namespace

template <class T>
void CpuOps::FastCrossEntropy(const CrossEntropyArgs& a) {
  const CrossEntropyRows<T> rows = {.loss = a.loss.as<float>(),
                                    .dlogits = RawDataOrNull<T>(a.dlogits),
                                    .logits = a.logits.as<float>(),
                                    .targets = a.targets.as<int32_t>(),
                                    .correct = RawDataOrNull<uint8_t>(a.correct),
                                    .V = a.logits.dim[1],
                                    .soft_cap = static_cast<float>(a.soft_cap)};
  float* scratch = ScratchF32(2 * rows.V * pool_.num_threads());
  const int64_t n = a.logits.dim[0], per_task = RowsPerTask(rows.V);
  pool_.ParallelFor(CeilDiv(n, per_task), [&](int64_t task, int worker) {
    const int64_t begin = task * per_task;
    activation<T>().cross_entropy(rows, begin, std::min(n, begin + per_task), scratch + 2 * rows.V * worker);
  });
}

void CpuOps::CrossEntropy(const CrossEntropyArgs& a) {
  CheckArgs(a);
  const DType compute = a.dlogits.defined() ? a.dlogits.dtype : a.logits.dtype;
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  for (int64_t r = 0; r < n; ++r) CAROUSEL_CHECK_LT(static_cast<int64_t>(a.targets.as<int32_t>()[r]), V);
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Loss<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastCrossEntropy<float>(a);
  } else {
    FastCrossEntropy<uint16_t>(a);
  }
}
}  // namespace carousel::cpu
