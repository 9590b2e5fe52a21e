// conformance_wgmma.cu - wgmma (sm_90a): every width, operands in shared memory and registers, K-major and
// MN-major; setmaxnreg. Grid: one block of 128 threads, a warpgroup (384 for setmaxnreg). Shared memory: a
// (64 x 64) and b (64 x N) as boxes of rows of 128 bytes with the 128-byte swizzle, 8 to 40 KB.
#include "kernels/cuda/conformance.h"

namespace carousel::conformance {
namespace {

#if CAROUSEL_DEVICE_HAS_WGMMA
constexpr int kK = 64;  // four products of 16

// Rows of 128 bytes to shared memory at `to` (a multiple of 1024 bytes), 16-byte pieces permuted by the
// address.
__device__ void StoreSwizzled(unsigned char* to, const uint4* from, int num_rows) {
  for (int i = static_cast<int>(threadIdx.x); i < num_rows * 8; i += 128) {
    const unsigned at = static_cast<unsigned>(i) * 16;
    *reinterpret_cast<uint4*>(to + (at ^ ((at >> 7 & 7) << 4))) = from[i];
  }
}
#endif

// x: a as 64 rows of 64 (M x K, or K x M if kTransposeA); then b: N rows of K, or N / 64 boxes of K rows
// of 64. kRegisters: a goes to registers (fragments of x's rows) instead.
template <int N, bool kTransposeA, bool kTransposeB, bool kRegisters>
__global__ void __launch_bounds__(128) WgmmaKernel(float* y, const uint4* x) {
#if CAROUSEL_DEVICE_HAS_WGMMA
  unsigned char* const a = gpu::dyn_shared<unsigned char>();
  unsigned char* const b = a + 64 * 128;
  StoreSwizzled(a, x, 64);
  StoreSwizzled(b, x + 64 * 8, N);
  gpu::fence_proxy_async();
  __syncthreads();  // a and b: written above, read by wgmma
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float d[N / 2];
  for (int i = 0; i < N / 2; ++i) d[i] = 77.0f;  // the first product does not add to it
  uint32_t fragments[kK / 16][4];
  for (int k = 0; k < kK / 16; ++k) {
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(x) + (warp * 16 + lane / 4) * 32 + k * 8 + lane % 4;
    fragments[k][0] = words[0];
    fragments[k][1] = words[8 * 32];
    fragments[k][2] = words[4];
    fragments[k][3] = words[8 * 32 + 4];
  }
  gpu::wgmma_fence();  // orders the writes to the registers above before the products that read them
#pragma unroll
  for (int k = 0; k < kK / 16; ++k) {
    // K-major: 16 columns are 32 bytes of each row. MN-major: 16 rows of k.
    const uint32_t a_at = gpu::smem_addr(a) + static_cast<uint32_t>(k) * (kTransposeA ? 2048 : 32);
    const uint32_t b_at = gpu::smem_addr(b) + static_cast<uint32_t>(k) * (kTransposeB ? 2048 : 32);
    const uint64_t a_desc = gpu::make_smem_desc(a_at, 64 * 128, 1024, 1),
                   b_desc = gpu::make_smem_desc(b_at, 64 * 128, 1024, 1);
    if constexpr (kRegisters) {
      gpu::wgmma_bf16_ra<N, kTransposeB>(d, fragments[k], b_desc, k > 0);
    } else {
      gpu::wgmma_bf16<N, kTransposeA, kTransposeB>(d, a_desc, b_desc, k > 0);
    }
  }
  gpu::wgmma_commit();
  gpu::wgmma_wait<0>();
  for (int i = 0; i < N / 2; ++i) y[static_cast<int>(threadIdx.x) * (N / 2) + i] = d[i];
#endif
}

// As the scans of the mLSTM do it: a in registers that are written anew while the products before go on; b
// MN-major, boxes of kDepth rows of k with 8 lines that are none of it behind each.
template <int N, int kDepth>
__global__ void __launch_bounds__(128) WgmmaApartKernel(float* y, const uint4* x) {
#if CAROUSEL_DEVICE_HAS_WGMMA
  constexpr int kBoxBytes = (kDepth + 8) * 128;
  unsigned char* const b = gpu::dyn_shared<unsigned char>();
  for (int box = 0; box < N / 64; ++box) {
    StoreSwizzled(b + box * kBoxBytes, x + (64 + box * kDepth) * 8, kDepth);
    StoreSwizzled(b + box * kBoxBytes + kDepth * 128, x, 8);
  }
  gpu::fence_proxy_async();
  __syncthreads();  // b: written above, read by wgmma
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(x) + (warp * 16 + lane / 4) * 32 + lane % 4;
  float d[N / 2];
  uint32_t a[2][4];
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    for (int i = 0; i < 4; ++i) a[k % 2][i] = words[k * 8 + i % 2 * 8 * 32 + i / 2 * 4];
    gpu::wgmma_fence();  // the fragments -> the products
    gpu::wgmma_bf16_ra<N, true>(
        d, a[k % 2],
        gpu::make_smem_desc(gpu::smem_addr(b) + static_cast<uint32_t>(k) * 2048, kBoxBytes, 1024, 1), k > 0);
    gpu::wgmma_commit();
    if (k > 0) gpu::wgmma_wait<1>();  // the fragments before -> the next ones
  }
  gpu::wgmma_wait<0>();
  gpu::wgmma_registers(d);
  for (int i = 0; i < N / 2; ++i) y[static_cast<int>(threadIdx.x) * (N / 2) + i] = d[i];
#endif
}
template <int N, int kDepth>
cudaError_t RunApart(void* results, const void* operands) {
  return gpu::launch(
      WgmmaApartKernel<N, kDepth>,
      {.grid = 1, .block = 128, .smem = N / 64 * (kDepth + 8) * 128, .name = "WgmmaApartKernel"},
      static_cast<float*>(results), static_cast<const uint4*>(operands));
}
template <int N, int kDepth>
void AppendApart(std::vector<Case>& cases, const char* name) {
  cases.push_back({name,
                   (64 + N / 64 * kDepth) * 128,
                   64 * N * 4,
                   FillUnitBf16<(64 + N / 64 * kDepth) * 64>,
                   RunApart<N, kDepth>,
                   {Tolerance::kFloat, 0, 64 * 64 * 0x1p-23},
                   true,
                   true});
}

// Three warpgroups, of which the last gives registers to the others: more are in use at a time than a launch
// of 384 threads gets. It hangs if they do not come.
__global__ void __launch_bounds__(384, 1) RegistersKernel(uint32_t* y, const uint32_t* x, int turns) {
#if CAROUSEL_DEVICE_HAS_WGMMA
  constexpr int kWords = 180;
  const int t = static_cast<int>(threadIdx.x), group = __shfl_sync(~0u, t / 128, 0);
  if (group == 2) {
    gpu::setmaxnreg_dec<72>();
    y[t] = x[t] * 3;
  } else {
    gpu::setmaxnreg_inc<216>();
    uint32_t v[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) v[i] = x[t + i];
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) v[i] = v[i] * 5 + v[(i + 7) % kWords];
    }
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) sum = sum * 3 + v[i];
    y[t] = sum;
  }
#endif
}
cudaError_t RunRegisters(void* results, const void* operands) {
  return gpu::launch(RegistersKernel, {.grid = 1, .block = 384, .name = "RegistersKernel"},
                     static_cast<uint32_t*>(results), static_cast<const uint32_t*>(operands), 5);
}

template <int N, bool kTransposeA, bool kTransposeB, bool kRegisters>
cudaError_t RunWgmma(void* results, const void* operands) {
  return gpu::launch(WgmmaKernel<N, kTransposeA, kTransposeB, kRegisters>,
                     {.grid = 1, .block = 128, .smem = (64 + N) * 128, .name = "WgmmaKernel"},
                     static_cast<float*>(results), static_cast<const uint4*>(operands));
}
template <int N, bool kTransposeA, bool kTransposeB, bool kRegisters = false>
void Append(std::vector<Case>& cases, const char* name) {
  // 64 products of at most 1, cut off as in mma (conformance_warp.cu), and partial sums of at most 64.
  cases.push_back({name,
                   (64 + N) * 128,
                   64 * N * 4,
                   FillUnitBf16<(64 + N) * 64>,
                   RunWgmma<N, kTransposeA, kTransposeB, kRegisters>,
                   {Tolerance::kFloat, 0, 64 * 64 * 0x1p-23},
                   true,
                   true});
}
}  // namespace

void AppendWgmmaCases(std::vector<Case>& cases) {
  Append<32, false, false>(cases, "wgmma_n32");
  Append<40, false, false>(cases, "wgmma_n40");
  Append<64, false, false>(cases, "wgmma_n64");
  Append<72, false, false>(cases, "wgmma_n72");
  Append<128, false, false>(cases, "wgmma_n128");
  Append<256, false, false>(cases, "wgmma_n256");
  Append<64, true, false>(cases, "wgmma_n64_a_mn_major");
  Append<64, false, true>(cases, "wgmma_n64_b_mn_major");
  Append<128, true, true>(cases, "wgmma_n128_both_mn_major");
  Append<256, false, true>(cases, "wgmma_n256_b_mn_major");
  Append<32, false, false, true>(cases, "wgmma_n32_a_in_registers");
  Append<64, false, false, true>(cases, "wgmma_n64_a_in_registers");
  Append<72, false, false, true>(cases, "wgmma_n72_a_in_registers");
  Append<128, false, true, true>(cases, "wgmma_n128_a_in_registers_b_mn_major");
  Append<192, false, false>(cases, "wgmma_n192");
  Append<192, false, true, true>(cases, "wgmma_n192_a_in_registers_b_mn_major");
  Append<256, false, true, true>(cases, "wgmma_n256_a_in_registers_b_mn_major");
  Append<64, false, true, true>(cases, "wgmma_n64_a_in_registers_b_mn_major");
  AppendApart<256, 64>(cases, "wgmma_boxes_of_72_lines");
  AppendApart<256, 32>(cases, "wgmma_boxes_of_40_lines");
  cases.push_back({"setmaxnreg", 600 * 4, 384 * 4, FillBits<600>, RunRegisters, {}, true, true});
}
}  // namespace carousel::conformance
