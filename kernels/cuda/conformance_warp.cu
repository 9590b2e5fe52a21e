// conformance_warp.cu - what a warp or a block does together on any GPU of compute capability 8.0: shuffles,
// votes, barriers, cp.async, ldmatrix, mma, order between blocks. Grid: one block of 32 to 128 threads per
// kernel. Shared memory: what each kernel declares.
#include "kernels/cuda/conformance.h"

namespace carousel::conformance {
namespace {

template <class... P>
cudaError_t Run(void (*kernel)(P...), unsigned threads, void* results, const void* operands,
                unsigned blocks = 1) {
  return gpu::launch(kernel, {.grid = blocks, .block = threads, .name = "conformance_warp"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}
#define CAROUSEL_RUN(kernel, ...) [](void* results, const void* operands) { return Run(kernel, __VA_ARGS__); }

// ---- shuffles, votes, reductions: 24 words per lane
__global__ void CollectivesKernel(uint32_t* y, const uint32_t* x) {
  const unsigned lane = threadIdx.x;
  const uint32_t v = x[lane];
  const int small = static_cast<int>(v % 5) - 2;
  const double wide = static_cast<double>(v) * 0.75;  // fits 32 bits again
  y += 24 * lane;
  int at = 0;
  for (int width = 4; width <= 32; width *= 8) {  // 4 and 32
    y[at++] = __shfl_sync(~0u, v, static_cast<int>(lane * 7 % 32), width);
    y[at++] = __shfl_up_sync(~0u, v, 3, width);
    y[at++] = __shfl_down_sync(~0u, v, 3, width);
    y[at++] = __shfl_xor_sync(~0u, v, 2, width);
  }
  y[at++] = static_cast<uint32_t>(__shfl_xor_sync(~0u, wide, 17));
  y[at++] = __float_as_uint(__shfl_down_sync(0xffffffffu, static_cast<float>(small), 1));
  y[at++] = __ballot_sync(~0u, small > 0);
  y[at++] = static_cast<uint32_t>(__any_sync(~0u, small == 2) * 2 + __all_sync(~0u, small < 3));
  y[at++] = __match_any_sync(~0u, small);
  int all = 0;
  y[at++] = __match_all_sync(~0u, small, &all) + static_cast<uint32_t>(all != 0);
  y[at++] = static_cast<uint32_t>(__reduce_add_sync(~0u, small));
  y[at++] = static_cast<uint32_t>(__reduce_min_sync(~0u, small));
  y[at++] = static_cast<uint32_t>(__reduce_max_sync(~0u, small));
  y[at++] = __reduce_add_sync(~0u, v);
  y[at++] = __reduce_min_sync(~0u, v);
  y[at++] = __reduce_max_sync(~0u, v);
  y[at++] = __reduce_and_sync(~0u, v | 0xf0f0u);
  y[at++] = __reduce_or_sync(~0u, v & 0x0f0fu);
  y[at++] = __reduce_xor_sync(~0u, v);
  // Part of the warp.
  uint32_t part = 0;
  if (lane < 20) part = __shfl_xor_sync(0x000fffffu, v, 1) + __ballot_sync(0x000fffffu, v & 1);
  y[at++] = part + gpu::lane_id();
}

// ---- barriers: data through shared memory between warps, 2 rounds
__global__ void BarriersKernel(uint32_t* y, const uint32_t* x) {
  SHARED_ARRAY(uint32_t, s, [128]);
  const unsigned t = threadIdx.x;
  s[t] = x[t];
  const int votes = __syncthreads_count(x[t] & 1);  // s: written above, read below
  uint32_t sum = s[127 - t] + static_cast<uint32_t>(votes);
  sum += static_cast<uint32_t>(__syncthreads_or(x[t] == x[0]) * 2 +
                               __syncthreads_and(x[t] != 1));  // s: read, then written
  if (t < 64) {                                                // two warps hand over to the other two
    s[t] = sum;
    gpu::bar_arrive(1, 128);
    gpu::bar_sync(2, 64);
    y[t] = s[63 - t];
  } else {
    gpu::bar_sync(1, 128);  // s[0 .. 63]: written by the other half, read below
    y[t] = s[t - 64] * 3;
  }
}

// ---- cp.async of 16, 8 and 4 bytes, every fifth invalid; two groups
__global__ void CpAsyncKernel(uint32_t* y, const uint32_t* x) {
  SHARED_ARRAY(uint32_t, s, [32 * 7]);
  const unsigned t = threadIdx.x;
  gpu::cp_async16(&s[4 * t], &x[4 * t], t % 5 != 0);
  gpu::cp_async_commit();
  gpu::cp_async8(&s[128 + 2 * t], &x[128 + 2 * t], t % 5 != 1);
  gpu::cp_async4(&s[192 + t], &x[192 + t], t % 5 != 2);
  gpu::cp_async_commit();
  gpu::cp_async_wait<1>();
  __syncwarp();  // the first group of all lanes, read below
  for (unsigned i = t; i < 128; i += 32) y[i] = s[i];
  gpu::cp_async_wait<0>();
  __syncwarp();  // the second group of all lanes, read below
  for (unsigned i = 128 + t; i < 224; i += 32) y[i] = s[i];
}

// ---- ldmatrix: 4 matrices, every form; 12 words per lane
__global__ void LdmatrixKernel(uint32_t* y, const uint32_t* x) {
  SHARED_ARRAY(uint32_t, s, [128]);
  const unsigned t = threadIdx.x;
  for (unsigned i = t; i < 128; i += 32) s[i] = x[i];
  __syncwarp();  // s: written above, read by ldmatrix
  const uint32_t* row = &s[4 * ((t * 5 + 3) % 32)];
  uint32_t a[4], b[4], c[2], d[2];
  gpu::ldmatrix_x4(a, row);
  gpu::ldmatrix_x4_trans(b, row);
  gpu::ldmatrix_x2(c, row);
  gpu::ldmatrix_x2_trans(d, row);
  for (int i = 0; i < 4; ++i) {
    y[12 * t + static_cast<unsigned>(i)] = a[i];
    y[12 * t + 4 + static_cast<unsigned>(i)] = b[i];
    y[12 * t + 8 + static_cast<unsigned>(i)] = i < 2 ? c[i] : d[i - 2];
  }
}

// ---- mma on the registers' own bits: lane l has 4 words of a, 2 of b, 4 floats of c
enum class Type { kBf16, kF16, kTf32 };
template <Type kType>
__global__ void MmaKernel(uint32_t* y, const uint32_t* x) {
  const unsigned t = threadIdx.x;
  const uint32_t* mine = x + 10 * t;
  const uint32_t a[4] = {mine[0], mine[1], mine[2], mine[3]};
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = __uint_as_float(mine[6 + i]);
  if constexpr (kType == Type::kBf16) {
    gpu::mma_bf16_m16n8k16(c, a, mine[4], mine[5]);
  } else if constexpr (kType == Type::kF16) {
    gpu::mma_f16_m16n8k16(c, a, mine[4], mine[5]);
  } else {
    gpu::mma_tf32_m16n8k8(c, a, mine[4], mine[5]);
  }
  for (unsigned i = 0; i < 4; ++i) y[4 * t + i] = __float_as_uint(c[i]);
}
uint32_t HalfBits(Random& random) {  // of a number in (-1, -1/16] or [1/16, 1)
  return (static_cast<uint32_t>(random()) & 0x83ffu) | (11u + static_cast<uint32_t>(random() % 4)) << 10;
}
template <Type kType>
void FillMma(Random& random, void* operands) {
  uint32_t* words = static_cast<uint32_t*>(operands);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 10; ++i) {
      uint32_t& word = words[10 * lane + i];
      if (i >= 6 || kType == Type::kTf32) {
        // The low 13 bits of a tf32 operand are set too: the hardware ignores them.
        word = gpu::float_to_bits(Uniform(random, -1, 1));
      } else if (kType == Type::kBf16) {
        word = gpu::pack_bf16(Uniform(random, -1, 1), Uniform(random, -1, 1));
      } else {
        word = HalfBits(random) | HalfBits(random) << 16;
      }
    }
  }
}

// ---- the last of 8 blocks to take a ticket sums what all wrote (order between blocks); then polls a flag
__global__ void TicketKernel(uint32_t* y,
                             const uint32_t* x) {  // y: ticket (starts as ~0), flag, sums, partial results
  SHARED_ARRAY(uint32_t, is_last, [1]);
  uint32_t* const partial = y + 4;
  partial[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x] * 3;
  __syncthreads();  // partial: written by the block, released by thread 0
  if (threadIdx.x == 0) is_last[0] = gpu::atomic_add_acq_rel(&y[0], 1) == gridDim.x - 2;  // ~0, 0, 1, ...
  __syncthreads();  // is_last: written above, read below; what thread 0 acquired holds for the block
  if (is_last[0] == 0) return;
  uint32_t sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b * 32 + threadIdx.x];
  sum = __reduce_add_sync(~0u, sum);
  if (threadIdx.x == 0) {
    gpu::st_release(&y[1], sum);
    y[2] = gpu::ld_acquire(&y[1]) + 1;
    y[3] = sum ^ x[0];
  }
}

// ---- grid_sync: blocks exchange words twice
__global__ void GridKernel(uint32_t* y, const uint32_t* x) {
  const unsigned b = blockIdx.x, n = gridDim.x, t = threadIdx.x;
  y[b * 32 + t] = x[b * 32 + t];
  gpu::grid_sync();
  const uint32_t v = y[(b + 1) % n * 32 + t] + y[(b + 2) % n * 32 + t];
  gpu::grid_sync();
  y[b * 32 + t] = v;
}
cudaError_t RunGrid(void* results, const void* operands) {
  return gpu::launch(GridKernel, {.grid = 4, .block = 32, .cooperative = true, .name = "GridKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands));
}
}  // namespace

void AppendWarpCases(std::vector<Case>& cases) {
  cases.push_back({"collectives", 32 * 4, 32 * 24 * 4, FillBits<32>,
                   CAROUSEL_RUN(CollectivesKernel, 32, results, operands)});
  cases.push_back(
      {"barriers", 128 * 4, 128 * 4, FillBits<128>, CAROUSEL_RUN(BarriersKernel, 128, results, operands)});
  cases.push_back(
      {"cp_async", 224 * 4, 224 * 4, FillBits<224>, CAROUSEL_RUN(CpAsyncKernel, 32, results, operands)});
  cases.push_back(
      {"ldmatrix", 128 * 4, 32 * 12 * 4, FillBits<128>, CAROUSEL_RUN(LdmatrixKernel, 32, results, operands)});
  // Tensor cores add 8 or 16 products, each at most 1 in magnitude, aligned to the largest and cut off there,
  // in an order of their own: up to 17 terms with an error of 2^-23 of a partial sum of at most 17.
  const Tolerance mma = {Tolerance::kFloat, 0, 17 * 17 * 0x1p-23};
  cases.push_back({"mma_bf16_m16n8k16", 32 * 40, 32 * 16, FillMma<Type::kBf16>,
                   CAROUSEL_RUN(MmaKernel<Type::kBf16>, 32, results, operands), mma});
  cases.push_back({"mma_f16_m16n8k16", 32 * 40, 32 * 16, FillMma<Type::kF16>,
                   CAROUSEL_RUN(MmaKernel<Type::kF16>, 32, results, operands), mma});
  cases.push_back({"mma_tf32_m16n8k8", 32 * 40, 32 * 16, FillMma<Type::kTf32>,
                   CAROUSEL_RUN(MmaKernel<Type::kTf32>, 32, results, operands), mma});
  cases.push_back({"ticket", 8 * 32 * 4, 4 * 4 + 8 * 32 * 4, FillBits<8 * 32>,
                   CAROUSEL_RUN(TicketKernel, 32, results, operands, 8)});
  cases.push_back({"grid_sync", 4 * 32 * 4, 4 * 32 * 4, FillBits<4 * 32>, RunGrid});
}
}  // namespace carousel::conformance
