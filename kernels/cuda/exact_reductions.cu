// SquaredNorm, SumExactly, TensorStats: sums that do not depend on order (core/base/exact_sum.h,
// value_stats.h).
//
// SquaredNorm adds the squares of a block of kSquaredNormBlock elements in f64: f32 in kSums interleaved sums
// that are joined pairwise, one sum per lane, as the CPU backend does; f64 one after the other, by one
// thread. Block sums, or the elements of SumExactly, go to an exact sum of the thread block in shared memory,
// and from there to the result: integer additions, whose order does not matter. NormalizeKernel then carries,
// which gives every value one representation: the bits are the CPU backend's. Grid: kBlocksPerSm per
// multiprocessor, each with every gridDim-th piece of x. x is read once.
#include "core/base/exact_sum.h"

#include <algorithm>

#include "core/base/int_math.h"
#include "core/base/value_stats.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;
constexpr int kSums = 16;
// Of one thread block: a limb has room for 2^30 additions before it must carry.
constexpr int64_t kMaxAdditions = int64_t{1} << 29;
constexpr int kLimbs = ExactSum::kNumLimbs;
// CUDA's type for 64-bit atomics. Negative numbers are their two's complement.
using Limb = unsigned long long;
static_assert(sizeof(Limb) == sizeof(int64_t));

__device__ inline void AddLimb(Limb* limb, uint64_t value, bool negative) {
  if (value != 0) atomicAdd(limb, static_cast<Limb>(negative ? 0 - value : value));
}
// ExactSum::Add.
__device__ inline void AddExactly(Limb* sum, double value) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(value));
  const int exponent = static_cast<int>(bits >> 52) & 0x7ff;
  const bool negative = bits >> 63 != 0;
  if (exponent == 0x7ff) {
    atomicAdd(sum + kLimbs, Limb{1});
    return;
  }
  uint64_t mantissa = bits & ((uint64_t{1} << 52) - 1);
  if (exponent != 0) mantissa |= uint64_t{1} << 52;
  const int position = (exponent == 0 ? 1 : exponent) - 1075 + 1088;
  const int limb = position / 32, shift = position % 32;
  // mantissa << shift has up to 85 bits
  const uint64_t low = mantissa << shift, high = shift == 0 ? 0 : mantissa >> (64 - shift);
  AddLimb(sum + limb, low & 0xffffffffu, negative);
  AddLimb(sum + limb + 1, low >> 32, negative);
  AddLimb(sum + limb + 2, high, negative);
}

// ExactSum::Normalize.
__device__ inline void Carry(Limb* sum) {
  for (int j = 0; j + 1 < kLimbs; ++j) {
    const auto limb = static_cast<int64_t>(sum[j]);
    const int64_t carry = limb >> 32;  // floor
    sum[j] = static_cast<Limb>(limb) & 0xffffffffu;
    sum[j + 1] += static_cast<Limb>(carry);
  }
}

template <int kElems = kExactSumElems>
__device__ inline void Clear(Limb* sum) {
  for (int j = static_cast<int>(threadIdx.x); j < kElems; j += kThreads) sum[j] = 0;
}
// Adds the thread block's sum to the result.
__device__ inline void Flush(Limb* result, Limb* sum) {
  __syncthreads();  // sum: all threads' additions, then thread 0's carries
  // Limbs below 2^32: the result's have room for those of every block.
  if (threadIdx.x == 0) Carry(sum);
  __syncthreads();  // sum: thread 0's carries, then everybody's reads
  for (int j = static_cast<int>(threadIdx.x); j < kExactSumElems; j += kThreads) {
    if (sum[j] != 0) atomicAdd(result + j, sum[j]);
  }
}

// Half a warp per block of elements, lane j with elements j, j + kSums, ...
__global__ void __launch_bounds__(kThreads) SquaredNormF32Kernel(Limb* result, const float* x, int64_t n) {
  SHARED_ARRAY(Limb, sum, [kExactSumElems]);
  Clear(sum);
  __syncthreads();  // sum: its zeros, then all threads' additions
  constexpr int kGroups = kThreads / kSums;
  const int lane = static_cast<int>(threadIdx.x) % kSums, group = static_cast<int>(threadIdx.x) / kSums;
  const int64_t num_blocks = (n + kSquaredNormBlock - 1) / kSquaredNormBlock;
  // all lanes of a warp stay in the loop, for the exchange
  for (int64_t block0 = static_cast<int64_t>(blockIdx.x) * kGroups; block0 < num_blocks;
       block0 += static_cast<int64_t>(gridDim.x) * kGroups) {
    const int64_t block = block0 + group;
    const int64_t begin = min(n, block * kSquaredNormBlock), end = min(n, begin + kSquaredNormBlock);
    double squares = 0;
    if (end - begin == kSquaredNormBlock) {
#pragma unroll 16
      for (int i = 0; i < kSquaredNormBlock / kSums; ++i) {
        const double value = static_cast<double>(x[begin + i * kSums + lane]);
        squares = __dadd_rn(squares, __dmul_rn(value, value));
      }
    } else {
      for (int64_t i = begin + lane; i < end; i += kSums) {
        const double value = static_cast<double>(x[i]);
        squares = __dadd_rn(squares, __dmul_rn(value, value));
      }
    }
#pragma unroll
    for (int distance = kSums / 2; distance > 0; distance /= 2) {
      squares = __dadd_rn(squares, __shfl_xor_sync(kFullWarp, squares, distance));
    }
    if (lane == 0 && block < num_blocks) AddExactly(sum, squares);
  }
  Flush(result, sum);
}

__global__ void __launch_bounds__(kThreads) SquaredNormF64Kernel(Limb* result, const double* x, int64_t n) {
  SHARED_ARRAY(Limb, sum, [kExactSumElems]);
  Clear(sum);
  __syncthreads();  // sum: its zeros, then all threads' additions
  const int64_t num_blocks = (n + kSquaredNormBlock - 1) / kSquaredNormBlock;
  for (int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; block < num_blocks;
       block += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t begin = block * kSquaredNormBlock, end = min(n, begin + kSquaredNormBlock);
    double squares = 0;
    for (int64_t i = begin; i < end; ++i) squares = __dadd_rn(squares, __dmul_rn(x[i], x[i]));
    AddExactly(sum, squares);
  }
  Flush(result, sum);
}

template <class W>
__global__ void __launch_bounds__(kThreads) SumExactlyKernel(Limb* result, const W* x, int64_t n) {
  SHARED_ARRAY(Limb, sum, [kExactSumElems]);
  Clear(sum);
  __syncthreads();  // sum: its zeros, then all threads' additions
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    AddExactly(sum, static_cast<double>(x[i]));
  }
  Flush(result, sum);
}

// What TensorStats is asked: pointers and strides in elements of W.
template <class W>
struct StatsInput {
  const W *x, *add;  // add may be null
  const int32_t* ids;
  int64_t x_stride, add_stride, n, width;
  int64_t first_id, end_id;
  double below, above, beyond;
};

// A thread takes a block of kValueStatsBlock elements at a time. Shared: the thread block's ValueSums, in the
// order of its members.
template <class W>
__global__ void __launch_bounds__(kThreads, 1) TensorStatsKernel(Limb* result, StatsInput<W> a) {
  SHARED_ARRAY(Limb, sums, [kValueSumElems]);
  Clear<kValueSumElems>(sums);
  __syncthreads();  // sums: its zeros, then all threads' additions
  Limb* const squares_sum = sums + kExactSumElems;
  Limb* const counts = squares_sum + kExactSumElems;
  uint32_t non_finite = 0, count = 0, below = 0, above = 0, beyond = 0;  // kMaxAdditions is below 2^32
  Limb largest = 0, smallest_flipped = 0;
  const int64_t num_blocks = (a.n + kValueStatsBlock - 1) / kValueStatsBlock;
  for (int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; block < num_blocks;
       block += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t begin = block * kValueStatsBlock, end = min(a.n, begin + kValueStatsBlock);
    double sum = 0, squares = 0;
    // in 32 bits: a division in 64 is a call
    int64_t row = static_cast<uint32_t>(begin) / static_cast<uint32_t>(a.width);
    int64_t column = begin - row * a.width - 1;
    for (int64_t e = begin; e < end; ++e) {
      if (++column == a.width) {
        column = 0;
        ++row;
      }
      if (a.ids != nullptr && (a.ids[row] < a.first_id || a.ids[row] >= a.end_id)) continue;
      double value = static_cast<double>(a.x[row * a.x_stride + column]);
      if (a.add != nullptr) {
        value = __dadd_rn(value, static_cast<double>(a.add[row * a.add_stride + column]));
      }
      const auto bits = static_cast<uint64_t>(__double_as_longlong(value));
      if ((bits >> 52 & 0x7ff) == 0x7ff) {
        ++non_finite;
        continue;
      }
      ++count;
      below += value < a.below;
      above += value > a.above;
      beyond += (value < 0 ? -value : value) > a.beyond;
      const Limb key = bits >> 63 != 0 ? ~bits : bits | uint64_t{1} << 63;  // OrderKey
      if (key > largest) largest = key;
      if (~key > smallest_flipped) smallest_flipped = ~key;
      sum = __dadd_rn(sum, value);
      squares = __dadd_rn(squares, __dmul_rn(value, value));
    }
    AddExactly(sums, sum);
    AddExactly(squares_sum, squares);
  }
  AddLimb(sums + kLimbs, non_finite, false);
  AddLimb(counts, count, false);
  AddLimb(counts + 1, below, false);
  AddLimb(counts + 2, above, false);
  AddLimb(counts + 3, beyond, false);
  atomicMax(counts + 4, largest);
  atomicMax(counts + 5, smallest_flipped);
  Flush(result, sums);
  Flush(result + kExactSumElems, squares_sum);
  const int j = static_cast<int>(threadIdx.x);
  if (j < 4 && counts[j] != 0) atomicAdd(result + 2 * kExactSumElems + j, counts[j]);
  if (j == 4 || j == 5) atomicMax(result + 2 * kExactSumElems + j, counts[j]);
}

__global__ void __launch_bounds__(kThreads) NormalizeKernel(Limb* result) {
  SHARED_ARRAY(Limb, sum, [kExactSumElems]);
  const int j = static_cast<int>(threadIdx.x);
  if (j < kExactSumElems) sum[j] = result[j];
  __syncthreads();  // sum: its copy, then thread 0's carries
  if (j == 0) Carry(sum);
  __syncthreads();  // sum: thread 0's carries, then everybody's reads
  if (j < kExactSumElems) result[j] = sum[j];
}
static_assert(kExactSumElems <= kThreads && kSquaredNormBlock % kSums == 0);

Limb* LimbsOf(const Tensor& sum) {
  CAROUSEL_CHECK_TENSOR(sum, DType::kI64, {kExactSumElems});
  return reinterpret_cast<Limb*>(sum.as<int64_t>());
}
// Blocks for n elements, of which a thread block takes `per_block` at a time.
dim3 GridFor(const Context& context, int64_t n, int64_t per_block) {
  return dim3(
      GridExtent(std::min<int64_t>(CeilDiv(n, per_block), int64_t{kBlocksPerSm} * context.info().num_sms)));
}
}  // namespace

void DeviceOps::SquaredNorm(const SquaredNormArgs& a) {
  Limb* sum = LimbsOf(a.sum);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 1);
  CAROUSEL_CHECK(a.x.dtype == DType::kF32 || a.x.dtype == DType::kF64);
  const int64_t n = a.x.dim[0];
  if (n > 0 && a.x.dtype == DType::kF32) {
    context_.Launch(SquaredNormF32Kernel,
                    {.grid = GridFor(context_, n, kThreads / kSums * kSquaredNormBlock),
                     .block = kThreads,
                     .name = "SquaredNormF32Kernel"},
                    sum, a.x.as<float>(), n);
  } else if (n > 0) {
    context_.Launch(SquaredNormF64Kernel,
                    {.grid = GridFor(context_, n, kThreads * kSquaredNormBlock),
                     .block = kThreads,
                     .name = "SquaredNormF64Kernel"},
                    sum, a.x.as<double>(), n);
  }
  context_.Launch(NormalizeKernel, {.block = kThreads, .name = "NormalizeKernel"}, sum);
}

void DeviceOps::SumExactly(const ExactSumArgs& a) {
  Limb* sum = LimbsOf(a.sum);
  CAROUSEL_CHECK(a.x.dtype == DType::kF32 || a.x.dtype == DType::kF64);
  CAROUSEL_CHECK(a.x.contiguous());
  const int64_t n = a.x.num_elems();
  const gpu::LaunchCfg config = {.grid = GridFor(context_, std::max<int64_t>(n, 1), kThreads),
                                 .block = kThreads,
                                 .name = "SumExactlyKernel"};
  CAROUSEL_CHECK_LE(n / config.grid.x, kMaxAdditions);
  if (n > 0 && a.x.dtype == DType::kF32) {
    context_.Launch(SumExactlyKernel<float>, config, sum, a.x.as<float>(), n);
  } else if (n > 0) {
    context_.Launch(SumExactlyKernel<double>, config, sum, a.x.as<double>(), n);
  }
  context_.Launch(NormalizeKernel, {.block = kThreads, .name = "NormalizeKernel"}, sum);
}

void DeviceOps::TensorStats(const TensorStatsArgs& a) {
  CheckArgs(a);
  Limb* stats = reinterpret_cast<Limb*>(a.stats.as<int64_t>());
  const int64_t n = a.x.num_elems();
  const auto launch = [&]<class W>() {
    const gpu::LaunchCfg config = {.grid = GridFor(context_, n, kThreads * kValueStatsBlock),
                                   .block = kThreads,
                                   .name = "TensorStatsKernel"};
    CAROUSEL_CHECK_LE(n, int64_t{UINT32_MAX});
    CAROUSEL_CHECK_LE(n / config.grid.x, kMaxAdditions);
    context_.Launch(TensorStatsKernel<W>, config, stats,
                    StatsInput<W>{.x = a.x.as<W>(),
                                  .add = a.add.defined() ? a.add.as<W>() : nullptr,
                                  .ids = a.ids.defined() ? a.ids.as<int32_t>() : nullptr,
                                  .x_stride = a.x.row_stride,
                                  .add_stride = a.add.defined() ? a.add.row_stride : 0,
                                  .n = n,
                                  .width = a.x.dim[1],
                                  .first_id = a.first_id,
                                  .end_id = a.end_id,
                                  .below = a.below,
                                  .above = a.above,
                                  .beyond = a.beyond});
  };
  if (n > 0 && a.x.dtype == DType::kF32) {
    launch.operator()<float>();
  } else if (n > 0) {
    launch.operator()<double>();
  }
  for (int64_t sum = 0; sum < 2; ++sum) {
    context_.Launch(NormalizeKernel, {.block = kThreads, .name = "NormalizeKernel"},
                    stats + sum * kExactSumElems);
  }
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
