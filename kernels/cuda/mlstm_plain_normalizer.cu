// mlstm_plain_normalizer.cu - a_t = rho_t n.q_t + sum over u of W_tu (q_t.k_u) and dh_t.h_t in plain
// multiply-adds (formulas: mlstm_records.h). The steps are those of mlstm_normalizer.cu.
//
//   1. grid (chunks x pairs): the chunk's sum of kappa k, a thread per column. Reads k once.
//   2. grid (pairs, columns / 64): n before every chunk, in place of the sums, a thread per column.
//   3. grid (chunks x pairs), 4 warps, a token per warp at a time: n.q, dh.h and q.k with the chunk's tokens
//      up to its own, 16 on average, whose k come from the first-level cache.
// Bytes per token and head, S the size of an element: S (3 DHQK + 2 DHV) and DHQK / 8 of n. Per token
// 2 (DHQK (2 + 16) + DHV) operations: a share of 18 / DHV + 1 / DHQK of those of the state. Sums in the wide
// type, in a fixed order.
#include "kernels/cuda/mlstm_plain_normalizer.h"

#include "core/base/int_math.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kScanColumns = 64;

// The chunk of a block: its pair, first token and number of tokens.
template <class T>
struct Place {
  __device__ explicit Place(const MlstmPlainNormalizerArgs<T>& x)
      : pair(blockIdx.x / x.NC), t0(blockIdx.x % x.NC * kMlstmChunk) {
    const int64_t left = x.num_tokens - t0;
    len = static_cast<int>(left < kMlstmChunk ? left : kMlstmChunk);
  }
  // The row of token t0 + index in a tensor whose heads are `width` columns wide.
  __device__ const T* Row(const MlstmPlainNormalizerArgs<T>& x, const MlstmRows<const T>& rows, int64_t width,
                          int index) const {
    return rows.data + (pair / x.NH * x.num_tokens + t0 + index) * rows.row_stride + pair % x.NH * width;
  }
  int64_t pair, t0;
  int len;
};

template <class T>
__global__ void __launch_bounds__(kThreads) MlstmPlainKeySumsKernel(MlstmPlainNormalizerArgs<T> x) {
  const Place<T> place(x);
  const auto& record = x.records[blockIdx.x];
  for (int64_t d = threadIdx.x; d < x.DHQK; d += kThreads) {
    Wide<T> sum = 0;
    for (int u = 0; u < place.len; ++u)
      sum += record.kappa[u] * gpu::convert<Wide<T>>(place.Row(x, x.k, x.DHQK, u)[d]);
    x.n[blockIdx.x * x.DHQK + d] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kScanColumns) MlstmPlainKeyScanKernel(MlstmPlainNormalizerArgs<T> x) {
  const int64_t pair = blockIdx.x, d = static_cast<int64_t>(blockIdx.y) * kScanColumns + threadIdx.x;
  if (d >= x.DHQK) return;
  Wide<T> n = x.initial_n != nullptr ? x.initial_n[pair * x.DHQK + d] : Wide<T>(0);
  for (int64_t chunk = 0; chunk < x.NC; ++chunk) {
    Wide<T>& slot = x.n[(pair * x.NC + chunk) * x.DHQK + d];
    const Wide<T> sum = slot, gamma = x.gamma[pair * x.NC + chunk];
    slot = n;
    n = (gamma != 0 ? gamma * n : Wide<T>(0)) + sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) MlstmPlainNormalizerKernel(MlstmPlainNormalizerArgs<T> x) {
  using W = Wide<T>;
  const Place<T> place(x);
  const auto& record = x.records[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const W* const n = x.n + blockIdx.x * x.DHQK;
  for (int r = warp; r < place.len; r += kWarps) {
    const T* const q = place.Row(x, x.q, x.DHQK, r);
    const auto dot_with_q = [&](const auto* y) {
      W sum = 0;
      for (int64_t d = lane; d < x.DHQK; d += kWarpSize) sum += gpu::convert<W>(q[d]) * gpu::convert<W>(y[d]);
      return WarpSum(sum);
    };
    W a = record.rho[r] * dot_with_q(n);
    for (int u = record.begin[r]; u <= r; ++u) {
      const W weight = exp2(static_cast<W>(record.alpha[r] + record.beta[u]));
      a += weight * dot_with_q(place.Row(x, x.k, x.DHQK, u));
    }
    W dot = 0;
    for (int64_t e = lane; e < x.DHV; e += kWarpSize) {
      dot +=
          gpu::convert<W>(place.Row(x, x.dh, x.DHV, r)[e]) * gpu::convert<W>(place.Row(x, x.h, x.DHV, r)[e]);
    }
    dot = WarpSum(dot);
    if (lane == 0) {
      const int64_t at = place.pair * x.NC * kMlstmChunk + place.t0 + r;
      x.a[at] = a;
      x.dots[at] = dot;
    }
  }
}
}  // namespace

template <class T>
void LaunchMlstmPlainNormalizer(Context& context, const MlstmPlainNormalizerArgs<T>& x) {
  const unsigned chunks = GridExtent(x.B * x.NH * x.NC);
  context.Launch(MlstmPlainKeySumsKernel<T>,
                 {.grid = chunks, .block = kThreads, .name = "MlstmPlainKeySumsKernel"}, x);
  context.Launch(MlstmPlainKeyScanKernel<T>,
                 {.grid = {GridExtent(x.B * x.NH), GridExtent(CeilDiv(x.DHQK, kScanColumns))},
                  .block = kScanColumns,
                  .name = "MlstmPlainKeyScanKernel"},
                 x);
  context.Launch(MlstmPlainNormalizerKernel<T>,
                 {.grid = chunks, .block = kThreads, .name = "MlstmPlainNormalizerKernel"}, x);
}
template void LaunchMlstmPlainNormalizer<bfloat16>(Context&, const MlstmPlainNormalizerArgs<bfloat16>&);
template void LaunchMlstmPlainNormalizer<float>(Context&, const MlstmPlainNormalizerArgs<float>&);
template void LaunchMlstmPlainNormalizer<double>(Context&, const MlstmPlainNormalizerArgs<double>&);
}  // namespace carousel::CAROUSEL_DEVICE_NS
