// CrossEntropy: z = cap tanh(logits / cap), or z = logits; loss = logsumexp(z) - z[target]; dlogits =
// (softmax(z) - one_hot(target)) dz/dlogits. A target is correct by the logits themselves, because different
// ones may have equal z far beyond the cap.
//
// Grid: one block per row. Block: kThreads threads, fewer for short rows. A first pass over the row keeps a
// running maximum and a sum of exp(z - maximum) per thread, a second one writes dlogits. The first `kept`
// values of z stay in shared memory between the passes, as much as lets two blocks share a multiprocessor;
// the rest of the row is read again, from the second-level cache. A value is kept, read and overwritten by
// one thread, so dlogits may take the place of logits. Floor: V (sizeof(logit) + sizeof(dlogit)) bytes per
// row. Sums in the type of logits; by thread, then by warp.
#include <algorithm>
#include <cmath>

#include "core/base/int_math.h"
#include "kernels/cuda/check_ids.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 512;

template <class T, class W>
struct Rows {
  W* loss;          // (n)
  T* dlogits;       // (n, V), may be null
  const W* logits;  // (n, V)
  const int32_t* targets;
  uint8_t* correct;  // (n), may be null
  int64_t V;
  int64_t kept;  // elements of z that shared memory holds: a multiple of the elements per access
  W cap;         // <= 0: none
  W inverse_cap;
};

template <class T, class W, int V>
__global__ void __launch_bounds__(kThreads) CrossEntropyKernel(Rows<T, W> a) {
  SHARED_ARRAY(W, room, [kReduceRoom<2, kThreads>]);
  W* kept = gpu::dyn_shared<W>();
  const int64_t row = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * V;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * V;
  const W* logits = a.logits + row * a.V;
  T* dlogits = a.dlogits == nullptr ? nullptr : a.dlogits + row * a.V;
  const int32_t target = a.targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) {
      a.loss[row] = 0;
      if (a.correct != nullptr) a.correct[row] = 0;
    }
    if (dlogits == nullptr) return;
    const W zeros[V] = {};
    for (int64_t c = first; c < a.V; c += step) Store(dlogits + c, zeros);
    return;
  }
  const auto cap = [&](W logit) { return a.cap > 0 ? a.cap * std::tanh(logit * a.inverse_cap) : logit; };

  // The running maximum and sum of this thread's columns, and how many of its logits beat the target's.
  const W target_logit = logits[target];
  W max = -INFINITY, sum = 0;
  W better = 0;
  for (int64_t c = first; c < a.V; c += step) {
    W z[V];
    Load(z, logits + c);
    W largest = max;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      // written so that a NaN beats the target
      const bool below = c + i < target ? z[i] < target_logit : z[i] <= target_logit;
      if (!below) better = 1;
      z[i] = cap(z[i]);
      largest = z[i] > largest ? z[i] : largest;
    }
    if (c < a.kept) Store(kept + c, z);
    if (largest > max) {
      sum *= gpu::exp_fast(max - largest);
      max = largest;
    }
    // With nothing but -inf so far there is nothing to add, and -inf - -inf is no number; a NaN stays one.
    if (max == -INFINITY) {
#pragma unroll
      for (int i = 0; i < V; ++i) sum += z[i] == z[i] ? W{0} : z[i];
      continue;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) sum += gpu::exp_fast(z[i] - max);
  }
  W largest[2] = {max, better};
  BlockReduce(largest, room, MaxOf());
  sum *= max == -INFINITY ? W{0} : gpu::exp_fast(max - largest[0]);
  max = largest[0];
  sum = BlockSum(sum, room);
  if (threadIdx.x == 0) {
    a.loss[row] = std::log(sum) + (max - cap(target_logit));
    if (a.correct != nullptr) a.correct[row] = largest[1] == 0;
  }
  if (dlogits == nullptr) return;

  const W scale = 1 / sum;
  for (int64_t c = first; c < a.V; c += step) {
    W z[V];
    if (c < a.kept) {
      Load(z, kept + c);
    } else {
      Load(z, logits + c);
#pragma unroll
      for (int i = 0; i < V; ++i) z[i] = cap(z[i]);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const W t = z[i] * a.inverse_cap, slope = a.cap > 0 ? 1 - t * t : W{1};
      z[i] = (gpu::exp_fast(z[i] - max) * scale - (c + i == target ? W{1} : W{0})) * slope;
    }
    Store(dlogits + c, z);
  }
}

template <class T, int V>
void Launch(Context& context, const CrossEntropyArgs& a) {
  using W = Wide<T>;
  const int64_t n = a.logits.dim[0], width = a.logits.dim[1];
  const int64_t threads =
      std::min<int64_t>(kThreads, RoundUp(CeilDiv(width, int64_t{V}), int64_t{kWarpSize}));
  // Half of a multiprocessor's shared memory, less what the driver takes, and the reductions, rounded up.
  constexpr int64_t kDriver = 1024, kReductions = 1024;
  static_assert(sizeof(W) * kReduceRoom<2, kThreads> <= kReductions);
  const int64_t budget = (context.info().max_shared_bytes + kDriver) / 2 - kDriver - kReductions;
  const int64_t kept =
      a.dlogits.defined()
          ? std::min(width, std::max<int64_t>(budget, 0) / static_cast<int64_t>(sizeof(W))) / V * V
          : 0;
  const W cap = static_cast<W>(a.soft_cap);
  const Rows<T, W> rows = {.loss = a.loss.as<W>(),
                           .dlogits = DataOrNull<T>(a.dlogits),
                           .logits = a.logits.as<W>(),
                           .targets = a.targets.as<int32_t>(),
                           .correct = DataOrNull<uint8_t>(a.correct),
                           .V = width,
                           .kept = kept,
                           .cap = cap,
                           .inverse_cap = cap > 0 ? 1 / cap : W{0}};
  context.Launch(CrossEntropyKernel<T, W, V>,
                 {.grid = dim3(GridExtent(n)),
                  .block = dim3(static_cast<unsigned>(threads)),
                  .smem = static_cast<size_t>(kept) * sizeof(W),
                  .name = "CrossEntropyKernel"},
                 rows);
}
}  // namespace

void DeviceOps::CrossEntropy(const CrossEntropyArgs& a) {
  CheckArgs(a);
  const DType compute = a.dlogits.defined() ? a.dlogits.dtype : a.logits.dtype;
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  CheckIds(context_, a.targets.as<int32_t>(), n, V, IdKind::kTarget);
  if (n == 0) return;
  DispatchFloat(compute, [&]<class T>() {
    // 8 logits of f32 are two accesses, 8 gradients of bf16 one. The same for every type of dlogits: so a
    // loss has the same bits with and without them.
    constexpr int kVec = sizeof(Wide<T>) == 4 ? 8 : 2;
    AllVectorisable(kVec, a.logits, a.dlogits) ? Launch<T, kVec>(context_, a) : Launch<T, 1>(context_, a);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
