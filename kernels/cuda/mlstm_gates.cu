// mlstm_gates.cu - the gates of the mLSTM cell (formulas: mlstm_records.h; xLSTM, arXiv:2405.04517).
//
// One warp per chunk of 32 tokens and pair, a lane per token, blocks of kWarps warps; only
// the stabiliser goes from chunk to chunk, one warp per pair over the chunks' (sum, max). No shared memory.
// Reads i_pre and f_pre twice in forward (8 B per token and head each time, the second from L2), once in
// backward; writes 24 B of record per token and head. Every exponent is formed in f64: a chunk's sum of log
// gates is so large that f32 would lose the digits of the differences.
#include "kernels/cuda/mlstm_gates.h"

#include "core/base/int_math.h"
#include "kernels/cuda/mlstm_gate_math.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kWarps = kMlstmGateWarps;
constexpr int kThreads = kWarps * kWarpSize;
constexpr double kLog2e = 1.4426950408889634;
__device__ inline double Infinity() { return HUGE_VAL; }

// The tokens 0 .. t of a chunk as one step: what came before is multiplied by exp(b), or lost if a document
// began (`fresh`, at token `begin` last); the stabiliser goes from m to max(m + b, max).
struct Prefix {
  double b, max;
  int begin;
  bool fresh;
};
__device__ inline Prefix Nothing() { return {0, -Infinity(), 0, false}; }
// `before`, then `after`.
__device__ inline Prefix Join(const Prefix& before, const Prefix& after) {
  if (after.fresh) return after;
  return {before.b + after.b, fmax(before.max + after.b, after.max), before.begin, before.fresh};
}
// from_start: m before the chunk + the log forget gate of its first token.
__device__ inline double Stabiliser(const Prefix& x, double from_start) {
  return x.fresh ? x.max : fmax(x.b + from_start, x.max);
}

// One token's gates as a step. The forget gate of the chunk's first token stands apart (FirstForget): so the
// sums inside of a document have the same bits whether something comes before it or not.
struct Token {
  double i_log, F;
  Prefix step;
  bool valid;
};
template <class W>
__device__ inline Token LoadToken(const MlstmGateInputs<W>& in, const MlstmChunkPlace& place, int index) {
  const int64_t t = place.t0 + index;
  if (t >= in.num_tokens) return {-Infinity(), 0, Nothing(), false};
  const double f_pre = GateOf(in.f_pre, in.num_tokens, in.NH, place.pair, t);
  const double i_pre = GateOf(in.i_pre, in.num_tokens, in.NH, place.pair, t);
  const double F = LogSigmoid(f_pre);
  const double i_log = in.sigmoid_input_gate ? LogSigmoid(i_pre) : i_pre;
  // The stabiliser of a document's first token is that of a sequence's: from m = 0, through its forget gate.
  const bool fresh = in.reset != nullptr && in.reset[place.pair / in.NH * in.num_tokens + t] != 0;
  if (fresh) return {i_log, F, {0, fmax(F, i_log), index, true}, true};
  return {i_log, F, {index == 0 ? 0.0 : F, i_log, 0, false}, true};
}
// The log forget gate of the chunk's first token.
__device__ inline double FirstForget(const Token& token) { return __shfl_sync(kFullWarp, token.F, 0); }
__device__ inline Prefix FromLane(const Prefix& x, int lane) {
  return {__shfl_sync(kFullWarp, x.b, lane), __shfl_sync(kFullWarp, x.max, lane),
          __shfl_sync(kFullWarp, x.begin, lane),
          __shfl_sync(kFullWarp, static_cast<int>(x.fresh), lane) != 0};
}
// The join of the lanes 0 .. this lane.
__device__ inline Prefix ScanOfWarp(Prefix x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const Prefix before = FromLane(x, lane < distance ? lane : lane - distance);
    if (lane >= distance) x = Join(before, x);
  }
  return x;
}

// (b, max) of every chunk; b = -inf where a document begins in it.
template <class W>
__global__ void __launch_bounds__(kThreads) MlstmChunkGatesKernel(MlstmGateInputs<W> in, double* chunk_sums) {
  const MlstmChunkPlace place = MlstmPlaceOfWarp(in.B * in.NH, in.NC);
  if (!place.exists) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const Token token = LoadToken(in, place, lane);
  const Prefix all = ScanOfWarp(token.step);
  const double F = FirstForget(token);
  if (lane == kWarpSize - 1) {
    double* const to = chunk_sums + (place.pair * in.NC + place.chunk) * 2;
    to[0] = all.fresh ? -Infinity() : all.b + F;
    to[1] = all.max;
  }
}

// m_start (B * NH, NC + 1): the stabiliser before every chunk and at the end, rounded to W at every border of
// chunks, so that a sequence cut there continues with the same bits. One warp per pair.
template <class W>
__global__ void __launch_bounds__(kThreads)
    MlstmStabiliserKernel(MlstmGateInputs<W> in, const double* chunk_sums, W* m_start, W* last_m) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (pair >= in.B * in.NH) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  W m = in.initial_m != nullptr && !in.sigmoid_input_gate ? in.initial_m[pair] : in.start_m;
  W* const to = m_start + pair * (in.NC + 1);
  for (int64_t chunk0 = 0; chunk0 < in.NC; chunk0 += kWarpSize) {
    const int64_t chunk = chunk0 + lane;
    double b = 0, max = -Infinity();
    if (chunk < in.NC && !in.sigmoid_input_gate) {
      b = chunk_sums[(pair * in.NC + chunk) * 2];
      max = chunk_sums[(pair * in.NC + chunk) * 2 + 1];
    }
    W mine = m;
    for (int l = 0; l < kWarpSize; ++l) {
      if (lane == l) mine = m;
      m = static_cast<W>(fmax(m + __shfl_sync(kFullWarp, b, l), __shfl_sync(kFullWarp, max, l)));
    }
    if (chunk < in.NC) to[chunk] = mine;
  }
  __syncwarp();  // m: every lane's read of the initial one, then the write of the last one
  if (lane == 0) {
    to[in.NC] = m;
    if (last_m != nullptr) last_m[pair] = m;
  }
}

// The sum of the chunks' b. One warp per pair; f64, in a fixed order.
template <class W>
__global__ void __launch_bounds__(kThreads) MlstmSegmentGatesKernel(MlstmSegmentGatesArgs<W> x) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (pair >= x.in.B * x.in.NH) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  double G = 0;
  for (int64_t chunk = lane; chunk < x.in.NC; chunk += kWarpSize)
    G += x.chunk_sums[(pair * x.in.NC + chunk) * 2];
  G = WarpSum(G);
  if (lane != 0) return;
  x.G[pair] = static_cast<W>(G);
  if (x.last_m[pair] < kMlstmNoStabiliser<W> / 2) x.last_m[pair] = static_cast<W>(-Infinity());
}

// Records. Forward: m_start is given and m is written. Backward: m_start is null and m (given_m) is read.
template <class E, class W>
__global__ void __launch_bounds__(kThreads)
    MlstmRecordsKernel(MlstmGateInputs<W> in, MlstmRecord<E, W>* records, W* gamma, const W* m_starts,
                       MlstmRows<W> m_out, MlstmRows<const W> given_m) {
  const MlstmChunkPlace place = MlstmPlaceOfWarp(in.B * in.NH, in.NC);
  if (!place.exists) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const Token token = LoadToken(in, place, lane);
  const Prefix prefix = ScanOfWarp(token.step);
  const Prefix end = FromLane(prefix, kWarpSize - 1);

  // the stabilisers at both ends of the chunk
  W m_start = 0, m_end = 0;
  if (m_starts != nullptr) {
    const W* const from = m_starts + place.pair * (in.NC + 1) + place.chunk;
    m_start = from[0];
    m_end = from[1];
  } else if (!in.sigmoid_input_gate) {
    const int64_t last =
        place.t0 + kMlstmChunk < in.num_tokens ? place.t0 + kMlstmChunk - 1 : in.num_tokens - 1;
    m_end = GateOf(given_m, in.num_tokens, in.NH, place.pair, last);
    if (place.t0 > 0) {
      m_start = GateOf(given_m, in.num_tokens, in.NH, place.pair, place.t0 - 1);
    } else if (in.initial_m != nullptr) {
      m_start = in.initial_m[place.pair];
    }
  }

  const double from_start = FirstForget(token) + m_start;  // the state before, at the first token

  MlstmRecord<E, W>& record = records[place.pair * in.NC + place.chunk];
  const double half_log2_d = log2(static_cast<double>(in.DHQK)) / 2;
  const double scale = 1 / sqrt(static_cast<double>(in.DHQK));
  const int64_t t = place.t0 + lane;
  if (token.valid) {
    W m = 0;
    if (!in.sigmoid_input_gate) {
      const bool is_end = lane == kMlstmChunk - 1 || t == in.num_tokens - 1;
      m = given_m.data != nullptr ? GateOf(given_m, in.num_tokens, in.NH, place.pair, t)
          : is_end                ? m_end
                                  : static_cast<W>(Stabiliser(prefix, from_start));
    }
    const double md = m;
    record.alpha[lane] = static_cast<E>((prefix.b - md) * kLog2e - half_log2_d);
    record.beta[lane] = static_cast<E>((token.i_log - prefix.b) * kLog2e);
    record.rho[lane] = prefix.fresh ? W(0) : static_cast<W>(exp(prefix.b + from_start - md) * scale);
    const bool same = prefix.fresh == end.fresh && prefix.begin == end.begin;
    record.kappa[lane] = same ? static_cast<W>(exp(end.b - prefix.b + token.i_log - m_end)) : W(0);
    record.floor[lane] = static_cast<W>(DenominatorFloor(md));
    record.begin[lane] = prefix.begin;
    if (m_out.data != nullptr) GateOf(m_out, in.num_tokens, in.NH, place.pair, t) = m;
  } else {
    record.alpha[lane] = record.beta[lane] = 0;
    record.rho[lane] = record.kappa[lane] = 0;
    record.floor[lane] = 1;
    record.begin[lane] = kMlstmChunk;
  }
  if (lane == 0) {
    gamma[place.pair * in.NC + place.chunk] =
        end.fresh ? W(0) : static_cast<W>(exp(end.b + from_start - static_cast<double>(m_end)));
  }
}

// Backward records from forward records. One thread per token.
template <class E, class W>
__global__ void __launch_bounds__(kThreads) MlstmDivisionKernel(MlstmDivisionArgs<E, W> x) {
  const int64_t Tp = x.NC * kMlstmChunk, pairs = x.B * x.NH;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t pair = index / Tp, t = index % Tp;
  if (pair >= pairs) return;
  MlstmRecord<E, W>& record = x.records[index / kMlstmChunk];
  const int at = static_cast<int>(index % kMlstmChunk);
  const W floor = record.floor[at];
  W addend = 0;
  if (t < x.num_tokens && x.denominator.data != nullptr) {
    const double divisor =
        static_cast<double>(GateOf(x.denominator, x.num_tokens, x.NH, pair, t)) + static_cast<double>(x.eps);
    record.alpha[at] = static_cast<E>(record.alpha[at] - log2(divisor));
    record.rho[at] = static_cast<W>(record.rho[at] / divisor);
    if (x.a != nullptr) {
      double dot = 0;
      for (int slice = 0; slice < x.slices; ++slice) dot += x.dots[slice * pairs * Tp + index];
      const W a = x.a[index];
      if (fabs(a) > floor) addend = static_cast<W>((a < 0 ? dot : -dot) / (x.divided ? 1.0 : divisor));
    }
  }
  record.addend[at] = addend;
}

unsigned Blocks(int64_t count, int64_t per_block) { return GridExtent(CeilDiv(count, per_block)); }
}  // namespace

template <class E, class W>
void LaunchMlstmForwardGates(Context& context, const MlstmForwardGatesArgs<E, W>& x) {
  const int64_t pairs = x.in.B * x.in.NH, chunks = pairs * x.in.NC;
  if (pairs == 0) return;
  if (chunks > 0 && !x.in.sigmoid_input_gate) {
    context.Launch(MlstmChunkGatesKernel<W>,
                   {.grid = Blocks(chunks, kWarps), .block = kThreads, .name = "MlstmChunkGatesKernel"}, x.in,
                   x.chunk_sums);
  }
  context.Launch(MlstmStabiliserKernel<W>,
                 {.grid = Blocks(pairs, kWarps), .block = kThreads, .name = "MlstmStabiliserKernel"}, x.in,
                 x.chunk_sums, x.m_start, x.last_m);
  if (chunks == 0) return;
  context.Launch(MlstmRecordsKernel<E, W>,
                 {.grid = Blocks(chunks, kWarps), .block = kThreads, .name = "MlstmRecordsKernel"}, x.in,
                 x.records, x.gamma, x.m_start, x.m, MlstmRows<const W>());
}
template <class W>
void LaunchMlstmSegmentGates(Context& context, const MlstmSegmentGatesArgs<W>& x) {
  const int64_t pairs = x.in.B * x.in.NH, chunks = pairs * x.in.NC;
  if (pairs == 0) return;
  if (chunks > 0 && x.in.sigmoid_input_gate) {  // the others have them from LaunchMlstmForwardGates
    context.Launch(MlstmChunkGatesKernel<W>,
                   {.grid = Blocks(chunks, kWarps), .block = kThreads, .name = "MlstmChunkGatesKernel"}, x.in,
                   x.chunk_sums);
  }
  context.Launch(MlstmSegmentGatesKernel<W>,
                 {.grid = Blocks(pairs, kWarps), .block = kThreads, .name = "MlstmSegmentGatesKernel"}, x);
}
template <class E, class W>
void LaunchMlstmRecords(Context& context, const MlstmRecordsArgs<E, W>& x) {
  const int64_t chunks = x.in.B * x.in.NH * x.in.NC;
  if (chunks == 0) return;
  context.Launch(MlstmRecordsKernel<E, W>,
                 {.grid = Blocks(chunks, kWarps), .block = kThreads, .name = "MlstmRecordsKernel"}, x.in,
                 x.records, x.gamma, static_cast<const W*>(nullptr), MlstmRows<W>(), x.m);
}
template <class E, class W>
void LaunchMlstmDivision(Context& context, const MlstmDivisionArgs<E, W>& x) {
  const int64_t tokens = x.B * x.NH * x.NC * kMlstmChunk;
  if (tokens == 0) return;
  context.Launch(MlstmDivisionKernel<E, W>,
                 {.grid = Blocks(tokens, kThreads), .block = kThreads, .name = "MlstmDivisionKernel"}, x);
}

#define CAROUSEL_MLSTM_GATES(E, W)                                                           \
  template void LaunchMlstmForwardGates<E, W>(Context&, const MlstmForwardGatesArgs<E, W>&); \
  template void LaunchMlstmRecords<E, W>(Context&, const MlstmRecordsArgs<E, W>&);           \
  template void LaunchMlstmDivision<E, W>(Context&, const MlstmDivisionArgs<E, W>&);
CAROUSEL_MLSTM_GATES(float, float)
CAROUSEL_MLSTM_GATES(double, float)
CAROUSEL_MLSTM_GATES(double, double)
template void LaunchMlstmSegmentGates<float>(Context&, const MlstmSegmentGatesArgs<float>&);
template void LaunchMlstmSegmentGates<double>(Context&, const MlstmSegmentGatesArgs<double>&);
#undef CAROUSEL_MLSTM_GATES
}  // namespace carousel::CAROUSEL_DEVICE_NS
