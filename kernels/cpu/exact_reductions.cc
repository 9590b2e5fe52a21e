// Sums that do not depend on order (core/base/exact_sum.h). Blocks of SquaredNorm are summed in double in a
// fixed order; the block sums, and the elements of SumExactly, are then added exactly.
#include <cmath>
#include <vector>

#include "core/base/exact_sum.h"
#include "core/base/value_stats.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

ExactSum& AsExactSum(const Tensor& sum) {
  CAROUSEL_CHECK_TENSOR(sum, DType::kI64, {kExactSumElems});
  return *reinterpret_cast<ExactSum*>(sum.as<int64_t>());
}

template <class W>
double SquaredSum(const W* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}
}  // namespace

void CpuOps::SquaredNorm(const SquaredNormArgs& a) {
  ExactSum& sum = AsExactSum(a.sum);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 1);
  CAROUSEL_CHECK(a.x.dtype == DType::kF32 || a.x.dtype == DType::kF64);
  const int64_t n = a.x.dim[0], num_blocks = CeilDiv(n, kSquaredNormBlock);
  double* block_sums = ScratchF64(num_blocks);
  pool_.ParallelForBlocks(n, kElemsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kSquaredNormBlock) {
      const int64_t count = std::min(kSquaredNormBlock, n - i);
      block_sums[i / kSquaredNormBlock] = a.x.dtype == DType::kF64 ? SquaredSum(a.x.as<double>() + i, count)
                                          : reference_             ? SquaredSum(a.x.as<float>() + i, count)
                                                       : elementwise_.squared_sum(a.x.as<float>() + i, count);
    }
  });
  for (int64_t block = 0; block < num_blocks; ++block) sum.Add(block_sums[block]);
  sum.Normalize();
}

void CpuOps::SumExactly(const ExactSumArgs& a) {
  ExactSum& sum = AsExactSum(a.sum);
  CAROUSEL_CHECK(a.x.dtype == DType::kF32 || a.x.dtype == DType::kF64);
  CAROUSEL_CHECK(a.x.contiguous());
  const int64_t n = a.x.num_elems();
  for (int64_t i = 0; i < n; ++i) {
    sum.Add(a.x.dtype == DType::kF64 ? a.x.as<double>()[i] : static_cast<double>(a.x.as<float>()[i]));
  }
  sum.Normalize();
}
static_assert(kElemsPerTask % kSquaredNormBlock == 0);

namespace {
// Elements [begin, end) of the tensor, which start a block.
template <class W>
ValueSums StatsOfPart(const TensorStatsArgs& a, int64_t begin, int64_t end) {
  ValueSums sums;
  const int64_t width = a.x.dim[1];
  for (int64_t block = begin; block < end; block += kValueStatsBlock) {
    double sum = 0, squares = 0;
    for (int64_t e = block; e < std::min(end, block + kValueStatsBlock); ++e) {
      const int64_t n = e / width, c = e % width;
      if (a.ids.defined()) {
        const int32_t id = a.ids.as<int32_t>()[n];
        if (id < a.first_id || id >= a.end_id) continue;
      }
      double value = static_cast<double>(Row<W>(a.x, n)[c]);
      if (a.add.defined()) value += static_cast<double>(Row<W>(a.add, n)[c]);
      if (!std::isfinite(value)) {
        ++sums.sum.num_non_finite;
        continue;
      }
      sums.Count(value, a.below, a.above, a.beyond);
      sum += value;
      squares += value * value;
    }
    sums.sum.Add(sum);
    sums.squares.Add(squares);
  }
  sums.sum.Normalize();
  sums.squares.Normalize();
  return sums;
}
static_assert(kElemsPerTask % kValueStatsBlock == 0);
}  // namespace

void CpuOps::TensorStats(const TensorStatsArgs& a) {
  CheckArgs(a);
  ValueSums& stats = *reinterpret_cast<ValueSums*>(a.stats.as<int64_t>());
  const int64_t n = a.x.num_elems();
  std::vector<ValueSums> parts(static_cast<size_t>(CeilDiv(n, kElemsPerTask)));
  pool_.ParallelForBlocks(n, kElemsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task += kElemsPerTask) {
      const int64_t last = std::min(end, task + kElemsPerTask);
      parts[static_cast<size_t>(task / kElemsPerTask)] =
          a.x.dtype == DType::kF64 ? StatsOfPart<double>(a, task, last) : StatsOfPart<float>(a, task, last);
    }
  });
  for (const ValueSums& part : parts) stats.Add(part);
  stats.sum.Normalize();
  stats.squares.Normalize();
}
}  // namespace carousel::cpu
