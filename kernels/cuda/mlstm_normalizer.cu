// mlstm_normalizer.cu - a_t = rho_t n.q_t + sum over u of W_tu (q_t.k_u) and dh_t.h_t for the backward of the
// mLSTM cell (formulas: mlstm_records.h). The vector n alone goes from chunk to chunk, so this is parallel
// over chunks but for a scan of one vector.
//
//   1. grid (chunks x pairs): the chunk's sum of kappa k; a thread per two columns. Reads k once.
//   2. grid (pairs, columns / 64): n before every chunk, in place of the sums; a thread per column.
//   3. grid (chunks x pairs), 4 warps: the 32 x 32 products q.k on tensor cores, 16 x 16 per warp, then a;
//      n.q and dh.h by a warp per token. Shared: q and k of the chunk, up to kTileColumns at a time: 2 x 32 x
//      (columns + 8) bf16, 33 KB at 256, at most 67 KB.
// Bytes per token and head: 6 DHQK of q and k, 4 DHV of h and dh, DHQK / 4 of n. Sums in f32, in a fixed
// order.
//
// dh.h takes h as the forward rounded it. Where one token dominates a sum, h is that token's v to the bit,
// and dh.h cancels dh.v as it has to.
#include "kernels/cuda/mlstm_normalizer.h"

#include <algorithm>

#include "core/base/int_math.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kScanColumns = 64;
constexpr int kTileColumns = 512;  // of q and k in shared memory, at most
constexpr int kWarpTokens = kMlstmChunk / kWarps;
constexpr int kPad =
    8;  // bf16 after every row in shared memory: rows of an 8 x 8 block lie in different banks
static_assert(kMlstmChunk == 32, "two by two warps with 16 x 16 products each");

struct Place {
  int64_t pair, chunk, t0;
  int len;
};
__device__ inline Place PlaceOfBlock(const MlstmNormalizerArgs& x) {
  const int64_t pair = blockIdx.x / x.NC, chunk = blockIdx.x % x.NC, t0 = chunk * kMlstmChunk;
  const int64_t left = x.num_tokens - t0;
  return {pair, chunk, t0, static_cast<int>(left < kMlstmChunk ? left : kMlstmChunk)};
}
__device__ inline const bfloat16* RowAt(const MlstmNormalizerArgs& x, const MlstmRows<const bfloat16>& rows,
                                        int64_t width, int64_t pair, int64_t t) {
  return rows.data + (pair / x.NH * x.num_tokens + t) * rows.row_stride + pair % x.NH * width;
}

__global__ void __launch_bounds__(kThreads) MlstmKeySumsKernel(MlstmNormalizerArgs x) {
  const Place place = PlaceOfBlock(x);
  const MlstmFastRecord& record = x.records[blockIdx.x];
  for (int64_t d = 2 * threadIdx.x; d < x.DHQK; d += 2 * kThreads) {
    float sum[2] = {};
    const bfloat16* k = RowAt(x, x.k, x.DHQK, place.pair, place.t0) + d;
#pragma unroll 8
    for (int u = 0; u < place.len; ++u, k += x.k.row_stride) {
      float pair[2];
      Load(pair, k);
      sum[0] += record.kappa[u] * pair[0];
      sum[1] += record.kappa[u] * pair[1];
    }
    Store(x.n + blockIdx.x * x.DHQK + d, sum);
  }
}

__global__ void __launch_bounds__(kScanColumns) MlstmKeyScanKernel(MlstmNormalizerArgs x) {
  const int64_t pair = blockIdx.x, d = static_cast<int64_t>(blockIdx.y) * kScanColumns + threadIdx.x;
  if (d >= x.DHQK) return;
  float n = x.initial_n != nullptr ? x.initial_n[pair * x.DHQK + d] : 0.0f;
  float* sums = x.n + pair * x.NC * x.DHQK + d;
#pragma unroll 8
  for (int64_t chunk = 0; chunk < x.NC; ++chunk, sums += x.DHQK) {
    const float sum = *sums, gamma = x.gamma[pair * x.NC + chunk];
    *sums = n;
    n = (gamma != 0 ? gamma * n : 0.0f) + sum;
  }
}

__global__ void __launch_bounds__(kThreads) MlstmNormalizerKernel(MlstmNormalizerArgs x) {
  SHARED_ARRAY(float, parts, [2][kMlstmChunk]);  // sums over half of the columns u
  SHARED_ARRAY(float, of_state, [kMlstmChunk]);  // rho n.q
  const Place place = PlaceOfBlock(x);
  const MlstmFastRecord& record = x.records[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int width = static_cast<int>(x.DHQK), pitch = (width < kTileColumns ? width : kTileColumns) + kPad;
  bfloat16* const q = gpu::dyn_shared<bfloat16>();
  bfloat16* const k = q + kMlstmChunk * pitch;
  const int64_t at = place.pair * x.NC * kMlstmChunk + place.t0;

  // Columns [first, first + columns) of q and k.
  const auto load_tile = [&](int first, int columns) {
    const int pieces = columns / 8;
    for (int e = thread; e < kMlstmChunk * pieces; e += kThreads) {
      const int row = e / pieces, column = e % pieces * 8;
      const bool inside = row < place.len;
      const int64_t t = place.t0 + (inside ? row : 0);
      const int64_t from = first + column;
      gpu::cp_async16(q + row * pitch + column, RowAt(x, x.q, x.DHQK, place.pair, t) + from, inside);
      gpu::cp_async16(k + row * pitch + column, RowAt(x, x.k, x.DHQK, place.pair, t) + from, inside);
    }
    gpu::cp_async_commit();
  };
  load_tile(0, pitch - kPad);

  // dh.h while the copies are under way
  for (int r = warp; r < place.len; r += kWarps) {
    const bfloat16 *const h = RowAt(x, x.h, x.DHV, place.pair, place.t0 + r), *const dh = RowAt(
                                                                                  x, x.dh, x.DHV, place.pair,
                                                                                  place.t0 + r);
    float sum = 0;
    for (int64_t e = lane * 8; e < x.DHV; e += kWarpSize * 8) {
      float a[8], b[8];
      Load(a, h + e);
      Load(b, dh + e);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
    }
    sum = WarpSum(sum);
    if (lane == 0) x.dots[at + r] = sum;
  }

  const float* const n = x.n + blockIdx.x * x.DHQK;
  float sums[kWarpTokens] = {};  // this lane's part of n.q of tokens warp + kWarps i
  // q.k of tokens r0 .. r0 + 15 and u0 .. u0 + 15
  const int r0 = warp % 2 * 16, u0 = warp / 2 * 16;
  float scores[2][4] = {};
  const bfloat16* const q_at = q + (r0 + lane % 16) * pitch + lane / 16 * 8;
  const bfloat16* const k_at = k + (u0 + lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
  for (int first = 0; first < width; first += kTileColumns) {
    const int columns = width - first < kTileColumns ? width - first : kTileColumns;
    if (first > 0) {
      __syncthreads();  // everybody's reads of the tile before -> the next one
      load_tile(first, columns);
    }
    gpu::cp_async_wait<0>();
    __syncthreads();  // q and k: every thread's copies, then everybody's reads
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const bfloat16* const row = q + (warp + i * kWarps) * pitch;
      for (int d = lane; d < columns; d += kWarpSize) sums[i] += n[first + d] * gpu::to_float(row[d]);
    }
    for (int d = 0; d < columns; d += 16) {
      uint32_t a[4], b[4];
      gpu::ldmatrix_x4(a, q_at + d);
      gpu::ldmatrix_x4(b, k_at + d);
      gpu::mma_bf16_m16n8k16(scores[0], a, b[0], b[1]);
      gpu::mma_bf16_m16n8k16(scores[1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) {
    const int r = warp + i * kWarps;
    const float sum = WarpSum(sums[i]) * record.rho[r];
    if (lane == 0) of_state[r] = sum;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = r0 + lane / 4 + half * 8;
    float sum = 0;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int u = u0 + tile * 8 + lane % 4 * 2 + e;
        if (u > r || u < record.begin[r]) continue;
        sum += scores[tile][half * 2 + e] * gpu::exp2_fast(record.alpha[r] + record.beta[u]);
      }
    }
    sum = GroupReduce(sum, 4, SumOf());
    if (lane % 4 == 0) parts[warp / 2][r] = sum;
  }
  __syncthreads();  // parts and of_state: the warps' writes, then the reads
  if (thread < place.len) x.a[at + thread] = of_state[thread] + (parts[0][thread] + parts[1][thread]);
}
}  // namespace

void LaunchMlstmNormalizer(Context& context, const MlstmNormalizerArgs& x) {
  CAROUSEL_CHECK(x.DHQK % 32 == 0 && x.DHV % 8 == 0);
  const unsigned chunks = GridExtent(x.B * x.NH * x.NC);
  context.Launch(MlstmKeySumsKernel, {.grid = chunks, .block = kThreads, .name = "MlstmKeySumsKernel"}, x);
  context.Launch(MlstmKeyScanKernel,
                 {.grid = {GridExtent(x.B * x.NH), GridExtent(CeilDiv(x.DHQK, kScanColumns))},
                  .block = kScanColumns,
                  .name = "MlstmKeyScanKernel"},
                 x);
  const size_t shared =
      static_cast<size_t>(2 * kMlstmChunk * (std::min<int64_t>(x.DHQK, kTileColumns) + kPad)) *
      sizeof(bfloat16);
  context.Launch(MlstmNormalizerKernel,
                 {.grid = chunks, .block = kThreads, .smem = shared, .name = "MlstmNormalizerKernel"}, x);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
