// The loss where each rank has the logits of a part of the vocabulary. The largest logit decides who is
// correct, not the largest z: different logits may have equal z far beyond the cap. With l_p the largest
// logit of part p and s_p its sum, M = max_p z(l_p):
//   sum = sum_p s_p exp(z(l_p) - M) in rising order of p;   loss = log(sum) + M - z[target];
//   dlogits = (exp(z - M) / sum - one_hot(target)) dz/dlogits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

constexpr int64_t kStats = 4;

template <class W>
W Capped(W logit, W cap) {
  return cap > 0 ? cap * std::tanh(logit / cap) : logit;
}

template <class W>
void Stats(const CrossEntropyStatsArgs& a, ThreadPool& pool) {
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  const W cap = static_cast<W>(a.soft_cap);
  pool.ParallelForBlocks(n, RowsPerTask(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      W* stats = Row<W>(a.stats, r);
      const W* logits = Row<W>(a.logits, r);
      const int64_t target = a.targets.as<int32_t>()[r];
      std::fill_n(stats, kStats, W{0});
      if (target < 0) continue;
      W largest = -std::numeric_limits<W>::infinity(), sum = 0;
      int64_t id = a.first_id;
      bool nan = false;
      for (int64_t c = 0; c < V; ++c) {
        nan |= std::isnan(logits[c]);
        if (logits[c] > largest) {
          largest = logits[c];
          id = a.first_id + c;
        }
      }
      const W max_z = Capped(largest, cap);
      if (nan || max_z > -std::numeric_limits<W>::infinity()) {
        for (int64_t c = 0; c < V; ++c) sum += std::exp(Capped(logits[c], cap) - max_z);
      }
      stats[0] = largest;
      stats[1] = sum;
      if (target >= a.first_id && target < a.first_id + V)
        stats[2] = Capped(logits[target - a.first_id], cap);
      stats[3] = nan ? W{-1} : static_cast<W>(id);
    }
  });
}

template <class T>
void FromStats(const CrossEntropyFromStatsArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  const W cap = static_cast<W>(a.soft_cap);
  pool.ParallelForBlocks(n, RowsPerTask(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t target = a.targets.as<int32_t>()[r];
      const auto stats = [&](int64_t p) { return Row<W>(a.stats, p * n + r); };
      int64_t best = 0;  // the part with the largest logit, the first of equal ones
      bool nan = false;
      for (int64_t p = 0; p < a.num_parts; ++p) {
        nan |= stats(p)[3] < 0;
        if (stats(p)[0] > stats(best)[0]) best = p;
      }
      const W max_z = Capped(stats(best)[0], cap);
      W sum = 0, target_z = 0;
      for (int64_t p = 0; p < a.num_parts; ++p) {
        sum += stats(p)[1] * std::exp(Capped(stats(p)[0], cap) - max_z);
        target_z += stats(p)[2];
      }
      a.loss.as<W>()[r] = target < 0 ? W{0} : std::log(sum) + (max_z - target_z);
      if (a.correct.defined()) {
        a.correct.as<uint8_t>()[r] = target >= 0 && !nan && stats(best)[3] == static_cast<W>(target);
      }
      if (!a.dlogits.defined()) continue;
      T* dlogits = Row<T>(a.dlogits, r);
      const W* logits = Row<W>(a.logits, r);
      for (int64_t c = 0; c < V; ++c) {
        const W z = Capped(logits[c], cap);
        const W slope = cap > 0 ? 1 - (z / cap) * (z / cap) : W{1};
        const W p = std::exp(z - max_z) / sum;
        dlogits[c] =
            static_cast<T>(target < 0 ? W{0} : (p - (a.first_id + c == target ? W{1} : W{0})) * slope);
      }
    }
  });
}
}  // namespace

void CpuOps::FastCrossEntropyStats(const CrossEntropyStatsArgs& a) {
  const CrossEntropyStatsRows rows = {.stats = a.stats.as<float>(),
                                      .logits = a.logits.as<float>(),
                                      .targets = a.targets.as<int32_t>(),
                                      .V = a.logits.dim[1],
                                      .first_id = a.first_id,
                                      .soft_cap = static_cast<float>(a.soft_cap)};
  float* scratch = ScratchF32(rows.V * pool_.num_threads());
  const int64_t n = a.logits.dim[0], per_task = RowsPerTask(rows.V);
  pool_.ParallelFor(CeilDiv(n, per_task), [&](int64_t task, int worker) {
    const int64_t begin = task * per_task;
    activation_f32_.cross_entropy_stats(rows, begin, std::min(n, begin + per_task),
                                        scratch + rows.V * worker);
  });
}

template <class T>
void CpuOps::FastCrossEntropyFromStats(const CrossEntropyFromStatsArgs& a) {
  const CrossEntropyFromStatsRows<T> rows = {.loss = a.loss.as<float>(),
                                             .dlogits = RawDataOrNull<T>(a.dlogits),
                                             .correct = RawDataOrNull<uint8_t>(a.correct),
                                             .stats = a.stats.as<float>(),
                                             .logits = a.logits.as<float>(),
                                             .targets = a.targets.as<int32_t>(),
                                             .num_parts = a.num_parts,
                                             .n = a.logits.dim[0],
                                             .V = a.logits.dim[1],
                                             .first_id = a.first_id,
                                             .soft_cap = static_cast<float>(a.soft_cap)};
  pool_.ParallelForBlocks(rows.n, RowsPerTask(rows.V), [&](int64_t begin, int64_t end) {
    activation<T>().cross_entropy_from_stats(rows, begin, end);
  });
}

void CpuOps::CrossEntropyStats(const CrossEntropyStatsArgs& a) {
  CheckArgs(a);
  const DType wide = a.logits.dtype;
  if (wide == DType::kF64) {
    Stats<double>(a, pool_);
  } else if (reference_) {
    Stats<float>(a, pool_);
  } else {
    FastCrossEntropyStats(a);
  }
}

void CpuOps::CrossEntropyFromStats(const CrossEntropyFromStatsArgs& a) {
  CheckArgs(a);
  const DType compute = a.dlogits.defined() ? a.dlogits.dtype : a.logits.dtype;
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  for (int64_t r = 0; r < n; ++r) {
    CAROUSEL_CHECK_LT(static_cast<int64_t>(a.targets.as<int32_t>()[r]), a.num_parts * V);
  }
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { FromStats<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastCrossEntropyFromStats<float>(a);
  } else {
    FastCrossEntropyFromStats<uint16_t>(a);
  }
}
}  // namespace carousel::cpu
