// CrossEntropyStats and CrossEntropyFromStats: the loss where each rank has the logits of a part of the
// vocabulary. Formulas and the row of statistics: core/ops.h.
//
// Stats: one block of kThreads threads (fewer for short rows) per row. One pass keeps, per thread, the
// largest logit and its id, a maximum of z and a sum of exp(z - maximum); three reductions over the block.
// Floor: V sizeof(logit) bytes per row. FromStats: one block per row; its first thread combines the parts in
// their order, then all write dlogits. Without dlogits: one warp per row. Floor: V (sizeof(logit) +
// sizeof(dlogit)) bytes per row. A logit is read and its gradient written by one thread, so dlogits may take
// the place of logits. Shared: the reductions, two values. Sums in the type of logits.
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
constexpr int64_t kStats = 4;

// z of a logit.
template <class W>
struct SoftCap {
  explicit SoftCap(double soft_cap)
      : cap(static_cast<W>(soft_cap)), inverse_cap(soft_cap > 0 ? 1 / cap : W{0}) {}
  __device__ W operator()(W logit) const { return cap > 0 ? cap * std::tanh(logit * inverse_cap) : logit; }
  __device__ W SlopeAt(W z) const {
    const W t = z * inverse_cap;
    return cap > 0 ? 1 - t * t : W{1};
  }
  W cap;  // <= 0: none
  W inverse_cap;
};

template <class W>
struct StatsRows {
  W* stats;         // (n, 4)
  const W* logits;  // (n, V)
  const int32_t* targets;
  int64_t V, first_id;
  SoftCap<W> z;
};

template <class W, int V>
__global__ void __launch_bounds__(kThreads) CrossEntropyStatsKernel(StatsRows<W> a) {
  SHARED_ARRAY(W, room, [kReduceRoom<2, kThreads>]);
  const int64_t row = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * V;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * V;
  const W* logits = a.logits + row * a.V;
  W* stats = a.stats + row * kStats;
  const int64_t target = a.targets[row];
  if (target < 0) {
    if (threadIdx.x < kStats) stats[threadIdx.x] = 0;
    return;
  }
  // Of this thread's columns.
  W largest = -INFINITY, nan = 0, max = -INFINITY, sum = 0;
  int64_t place = first;
  for (int64_t c = first; c < a.V; c += step) {
    W z[V];
    Load(z, logits + c);
    W chunk_max = max;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (z[i] > largest) {
        largest = z[i];
        place = c + i;
      }
      if (z[i] != z[i]) nan = 1;
      z[i] = a.z(z[i]);
      chunk_max = z[i] > chunk_max ? z[i] : chunk_max;
    }
    if (chunk_max > max) {
      sum *= gpu::exp_fast(max - chunk_max);
      max = chunk_max;
    }
    // with nothing but -inf so far there is nothing to add, and -inf - -inf is no number
    if (max == -INFINITY) continue;
#pragma unroll
    for (int i = 0; i < V; ++i) sum += gpu::exp_fast(z[i] - max);
  }
  W all[2] = {largest, nan};
  BlockReduce(all, room, MaxOf());
  // The lowest id of those with the largest logit, as the largest of the negated ones.
  const W id = -static_cast<W>(a.first_id + place);
  const W lowest = -BlockMax(first < a.V && largest == all[0] ? id : -INFINITY, room);
  const W max_z = a.z(all[0]);
  sum *= max == -INFINITY ? W{0} : gpu::exp_fast(max - max_z);
  sum = BlockSum(sum, room);
  if (threadIdx.x != 0) return;
  const int64_t column = target - a.first_id;
  stats[0] = all[0];
  stats[1] = all[1] == 0 ? sum : static_cast<W>(NAN);
  stats[2] = column >= 0 && column < a.V ? a.z(logits[column]) : W{0};
  stats[3] = all[1] == 0 ? lowest : W{-1};
}

template <class T, class W>
struct FromStatsRows {
  W* loss;           // (n)
  T* dlogits;        // (n, V), may be null
  uint8_t* correct;  // (n), may be null
  const W* stats;    // (num_parts, n, 4)
  const W* logits;   // (n, V)
  const int32_t* targets;
  int64_t num_parts, n, V, first_id;
  SoftCap<W> z;
};

template <class T, class W, int V>
__global__ void __launch_bounds__(kThreads) CrossEntropyFromStatsKernel(FromStatsRows<T, W> a) {
  SHARED_ARRAY(W, combined, [2]);
  const int64_t row = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * V;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * V;
  const W* logits = a.logits + row * a.V;
  T* dlogits = a.dlogits == nullptr ? nullptr : a.dlogits + row * a.V;
  const int64_t target = a.targets[row];
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
  if (threadIdx.x == 0) {
    W largest = -INFINITY, id = -1;
    bool nan = false;
    for (int64_t p = 0; p < a.num_parts; ++p) {
      const W* stats = a.stats + (p * a.n + row) * kStats;
      nan |= stats[3] < 0;
      if (p > 0 && !(stats[0] > largest)) continue;  // of equal ones the first part has the lowest id
      largest = stats[0];
      id = stats[3];
    }
    const W max_z = a.z(largest);
    W sum = 0, target_z = 0;
    for (int64_t p = 0; p < a.num_parts; ++p) {
      const W* stats = a.stats + (p * a.n + row) * kStats;
      sum += stats[1] * gpu::exp_fast(a.z(stats[0]) - max_z);
      target_z += stats[2];
    }
    a.loss[row] = std::log(sum) + (max_z - target_z);
    if (a.correct != nullptr) a.correct[row] = !nan && id == static_cast<W>(target);
    combined[0] = max_z;
    combined[1] = 1 / sum;
  }
  if (dlogits == nullptr) return;
  __syncthreads();  // combined: thread 0's writes, then everybody's reads
  const W max_z = combined[0], scale = combined[1];
  const int64_t column = target - a.first_id;
  for (int64_t c = first; c < a.V; c += step) {
    W z[V];
    Load(z, logits + c);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      z[i] = a.z(z[i]);
      z[i] = (gpu::exp_fast(z[i] - max_z) * scale - (c + i == column ? W{1} : W{0})) * a.z.SlopeAt(z[i]);
    }
    Store(dlogits + c, z);
  }
}

// Elements at a time: 8 logits of f32 are two accesses, 8 gradients of bf16 one.
template <class W>
constexpr int kVec = sizeof(W) == 4 ? 8 : 2;

dim3 RowThreads(int64_t width, int V) {
  return dim3(static_cast<unsigned>(
      std::min<int64_t>(kThreads, RoundUp(CeilDiv(width, int64_t{V}), int64_t{kWarpSize}))));
}

template <class W, int V>
void LaunchStats(Context& context, const CrossEntropyStatsArgs& a) {
  const int64_t n = a.logits.dim[0], width = a.logits.dim[1];
  const StatsRows<W> rows = {.stats = a.stats.as<W>(),
                             .logits = a.logits.as<W>(),
                             .targets = a.targets.as<int32_t>(),
                             .V = width,
                             .first_id = a.first_id,
                             .z = SoftCap<W>(a.soft_cap)};
  context.Launch(
      CrossEntropyStatsKernel<W, V>,
      {.grid = dim3(GridExtent(n)), .block = RowThreads(width, V), .name = "CrossEntropyStatsKernel"}, rows);
}

template <class T, int V>
void LaunchFromStats(Context& context, const CrossEntropyFromStatsArgs& a) {
  using W = Wide<T>;
  const int64_t n = a.logits.dim[0], width = a.logits.dim[1];
  const FromStatsRows<T, W> rows = {.loss = a.loss.as<W>(),
                                    .dlogits = DataOrNull<T>(a.dlogits),
                                    .correct = DataOrNull<uint8_t>(a.correct),
                                    .stats = a.stats.as<W>(),
                                    .logits = a.logits.as<W>(),
                                    .targets = a.targets.as<int32_t>(),
                                    .num_parts = a.num_parts,
                                    .n = n,
                                    .V = width,
                                    .first_id = a.first_id,
                                    .z = SoftCap<W>(a.soft_cap)};
  context.Launch(CrossEntropyFromStatsKernel<T, W, V>,
                 {.grid = dim3(GridExtent(n)),
                  .block = a.dlogits.defined() ? RowThreads(width, V) : dim3(kWarpSize),
                  .name = "CrossEntropyFromStatsKernel"},
                 rows);
}
}  // namespace

void DeviceOps::CrossEntropyStats(const CrossEntropyStatsArgs& a) {
  CheckArgs(a);
  const DType wide = a.logits.dtype;
  const int64_t n = a.logits.dim[0];
  if (n == 0) return;
  const auto launch = [&]<class W>() {
    AllVectorisable(kVec<W>, a.logits) ? LaunchStats<W, kVec<W>>(context_, a)
                                       : LaunchStats<W, 1>(context_, a);
  };
  wide == DType::kF64 ? launch.operator()<double>() : launch.operator()<float>();
}

void DeviceOps::CrossEntropyFromStats(const CrossEntropyFromStatsArgs& a) {
  CheckArgs(a);
  const DType compute = a.dlogits.defined() ? a.dlogits.dtype : a.logits.dtype;
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  CheckIds(context_, a.targets.as<int32_t>(), n, a.num_parts * V, IdKind::kTarget);
  if (n == 0) return;
  DispatchFloat(compute, [&]<class T>() {
    constexpr int kV = kVec<Wide<T>>;
    AllVectorisable(kV, a.logits, a.dlogits) ? LaunchFromStats<T, kV>(context_, a)
                                             : LaunchFromStats<T, 1>(context_, a);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
