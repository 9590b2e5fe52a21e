// mlstm_step.cu - one token of the mLSTM cell (xLSTM, arXiv:2405.04517) and inner products of states.
//
// Step, two kernels. The first, one warp per pair, forms the gates and n' and leaves the factors of the
// second in scratch (n may be written in place only once every block that needs it has read it). The second
// reads C once and writes it once, 16 bytes at a time: grid (columns / 8 vectors, pairs), block 256 threads
// as 32 rows of C x 8 vectors; shared: one partial sum of h per row group and column, 4.2 KB in f32. Floor: 2
// DHQK DHV wide elements per pair.
//
// State products: one block per pair, every element read once, sums in f64.
#include "kernels/cuda/mlstm_step.h"

#include "core/base/int_math.h"
#include "kernels/cuda/mlstm_gate_math.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kWarps = 4;
constexpr int kGateThreads = kWarps * kWarpSize;
constexpr int kLanes = 8, kGroups = 32;  // vectors of columns, rows of C at a time
constexpr int kThreads = kLanes * kGroups;

template <class T>
__global__ void __launch_bounds__(kGateThreads) MlstmStepGatesKernel(MlstmStepArgs<T> x) {
  using W = Wide<T>;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize, NH = x.in.NH;
  if (pair >= x.in.B * NH) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t b = pair / NH, head = pair % NH, K = x.in.DHQK;
  const bool has_state = x.initial.C != nullptr && !(x.in.reset != nullptr && x.in.reset[b] != 0);

  const double F = LogSigmoid(GateOf(x.in.f_pre, 1, NH, pair, 0));
  double i_log = GateOf(x.in.i_pre, 1, NH, pair, 0), kept = F;
  W m = 0;
  if (x.in.sigmoid_input_gate) {
    i_log = LogSigmoid(i_log);
  } else {
    if (has_state && x.in.initial_m != nullptr) kept += x.in.initial_m[pair];
    m = static_cast<W>(kept > i_log ? kept : i_log);
  }
  const W forget = has_state ? static_cast<W>(exp(kept - m)) : W(0);
  const W input = static_cast<W>(exp(i_log - m));
  const W scale = static_cast<W>(1 / sqrt(static_cast<double>(K)));
  const T *const q = x.q.data + b * x.q.row_stride + head * K, *const k =
                                                                   x.k.data + b * x.k.row_stride + head * K;

  W a = 0;
  for (int64_t d = lane; d < K; d += kWarpSize) {
    W n = input * gpu::convert<W>(k[d]);
    if (has_state) n += forget * x.initial.n[pair * K + d];
    a += n * gpu::convert<W>(q[d]);
    if (x.last.C != nullptr) x.last.n[pair * K + d] = n;
  }
  a = fabs(WarpSum(a) * scale);
  __syncwarp();  // m: every lane's read of the initial one, then the write of the last one
  if (lane != 0) return;
  const W floor = static_cast<W>(DenominatorFloor(m));
  const W denominator = !x.normalize ? W(1) : a > floor ? a : floor;
  GateOf(x.denominator, 1, NH, pair, 0) = denominator;
  GateOf(x.m, 1, NH, pair, 0) = m;
  if (x.last.C != nullptr) x.last_m[pair] = m;
  W* const factors = x.factors + pair * kMlstmStepFactors;
  factors[0] = forget;
  factors[1] = input;
  factors[2] = scale / (x.normalize ? denominator + x.eps : W(1));
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) MlstmStepKernel(MlstmStepArgs<T> x) {
  using W = Wide<T>;
  SHARED_ARRAY(W, parts, [kGroups][kLanes * V + 1]);
  const int64_t pair = blockIdx.x, b = pair / x.in.NH, head = pair % x.in.NH, K = x.in.DHQK;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t col0 = static_cast<int64_t>(blockIdx.y) * kLanes * V, col = col0 + lane * V;
  const bool has_state = x.initial.C != nullptr && !(x.in.reset != nullptr && x.in.reset[b] != 0);
  const W forget = x.factors[pair * kMlstmStepFactors], input = x.factors[pair * kMlstmStepFactors + 1];
  const T *const q = x.q.data + b * x.q.row_stride + head * K, *const k =
                                                                   x.k.data + b * x.k.row_stride + head * K;
  const T* const v = x.v.data + b * x.v.row_stride + head * x.DHV;

  W u[V] = {};
  if (col < x.DHV) {
    W weighted_v[V];
#pragma unroll
    for (int i = 0; i < V; ++i) weighted_v[i] = input * gpu::convert<W>(v[col + i]);
#pragma unroll 4
    for (int64_t d = group; d < K; d += kGroups) {
      const int64_t at = (pair * K + d) * x.DHV + col;
      const W k_d = gpu::convert<W>(k[d]), q_d = gpu::convert<W>(q[d]);
      W C[V] = {};
      if (has_state) Load(C, x.initial.C + at);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        C[i] = forget * C[i] + k_d * weighted_v[i];
        u[i] += q_d * C[i];
      }
      if (x.last.C != nullptr) Store(x.last.C + at, C);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) parts[group][lane * V + i] = u[i];
  __syncthreads();  // parts: every group's sums, then the reads of the threads that add them
  const int mine = static_cast<int>(threadIdx.x);
  if (mine >= kLanes * V || col0 + mine >= x.DHV) return;
  W sum = 0;
  for (int g = 0; g < kGroups; ++g) sum += parts[g][mine];
  x.h.data[b * x.h.row_stride + head * x.DHV + col0 + mine] =
      gpu::convert<T>(sum * x.factors[pair * kMlstmStepFactors + 2]);
}

template <class W>
__global__ void __launch_bounds__(kThreads) MlstmStateDotsKernel(MlstmStateDotsArgs<W> x) {
  SHARED_ARRAY(double, room, [kReduceRoom<1, kThreads>]);
  const int64_t pair = blockIdx.x, size = x.DHQK * x.DHV;
  double sum = 0;
  if (x.a.C != nullptr) {
    const W *const a = x.a.C + pair * size, *const b = x.b.C + pair * size;
#pragma unroll 4
    for (int64_t e = threadIdx.x; e < size; e += kThreads) sum += static_cast<double>(a[e]) * b[e];
    const W *const a_n = x.a.n + pair * x.DHQK, *const b_n = x.b.n + pair * x.DHQK;
    for (int64_t d = threadIdx.x; d < x.DHQK; d += kThreads) sum += static_cast<double>(a_n[d]) * b_n[d];
  }
  sum = BlockSum(sum, room);
  if (threadIdx.x != 0) return;
  if (x.out != nullptr) x.out[pair] = sum;
  if (x.rounded != nullptr) x.rounded[pair] = static_cast<W>(sum);
}

// Whether C can be read and written V elements at a time.
template <class W>
bool Vectors(const W* C, int64_t DHV, int V) {
  return C == nullptr || (DHV % V == 0 && reinterpret_cast<uintptr_t>(C) % kAccessBytes == 0);
}
template <class T, int V>
void LaunchColumns(Context& context, const MlstmStepArgs<T>& x) {
  const int64_t pairs = x.in.B * x.in.NH, tiles = CeilDiv(x.DHV, kLanes * V);
  context.Launch(
      MlstmStepKernel<T, V>,
      {.grid = {GridExtent(pairs), GridExtent(tiles)}, .block = kThreads, .name = "MlstmStepKernel"}, x);
}
}  // namespace

template <class T>
void LaunchMlstmStep(Context& context, const MlstmStepArgs<T>& x) {
  const int64_t pairs = x.in.B * x.in.NH;
  context.Launch(
      MlstmStepGatesKernel<T>,
      {.grid = GridExtent(CeilDiv(pairs, kWarps)), .block = kGateThreads, .name = "MlstmStepGatesKernel"}, x);
  constexpr int V = kVecElems<Wide<T>>;
  if (Vectors(x.initial.C, x.DHV, V) && Vectors(x.last.C, x.DHV, V)) return LaunchColumns<T, V>(context, x);
  LaunchColumns<T, 1>(context, x);
}
template void LaunchMlstmStep<bfloat16>(Context&, const MlstmStepArgs<bfloat16>&);
template void LaunchMlstmStep<float>(Context&, const MlstmStepArgs<float>&);
template void LaunchMlstmStep<double>(Context&, const MlstmStepArgs<double>&);

template <class W>
void LaunchMlstmStateDots(Context& context, const MlstmStateDotsArgs<W>& x) {
  if (x.num_pairs == 0) return;
  context.Launch(MlstmStateDotsKernel<W>,
                 {.grid = GridExtent(x.num_pairs), .block = kThreads, .name = "MlstmStateDotsKernel"}, x);
}
template void LaunchMlstmStateDots<float>(Context&, const MlstmStateDotsArgs<float>&);
template void LaunchMlstmStateDots<double>(Context&, const MlstmStateDotsArgs<double>&);
}  // namespace carousel::CAROUSEL_DEVICE_NS
