// mlstm_gate_gradients.cu - the gradients of the mLSTM cell's gates (formulas: mlstm_gate_gradients.h).
//
// One warp per chunk of 32 tokens and pair, a lane per token: a first kernel leaves every chunk's sums in
// both directions, a second one joins those of the chunks up to the next anchors with the sums within its
// own. Reads 4 B of each part of the dots per token and head twice (the second time from L2), writes 8 B. No
// shared memory.
#include "kernels/cuda/mlstm_gate_gradients.h"

#include "core/base/int_math.h"
#include "kernels/cuda/mlstm_gate_math.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = kMlstmGateWarps * kWarpSize;

using Run = MlstmDotsRun;
__device__ inline Run Nothing() { return {0, 0, false}; }
// Tokens, and those behind them in the direction of the run.
__device__ inline Run Join(const Run& near, const Run& far) {
  return near.stops ? near : Run{near.e + far.e, near.squares + far.squares, far.stops};
}
__device__ inline Run FromLane(const Run& x, int lane) {
  return {__shfl_sync(kFullWarp, x.e, lane), __shfl_sync(kFullWarp, x.squares, lane),
          __shfl_sync(kFullWarp, static_cast<int>(x.stops), lane) != 0};
}
// The join of this lane, this lane + kStep, .. to the end of the warp.
template <int kStep>
__device__ inline Run RunsOfWarp(Run x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int from = lane + kStep * distance;
    const bool exists = from >= 0 && from < kWarpSize;
    const Run far = FromLane(x, exists ? from : lane);
    if (exists) x = Join(x, far);
  }
  return x;
}

template <class W>
struct DotsOfToken {
  double e, squares, k_dot;
  bool begins;  // nothing before this token reaches it
  // As a run to later tokens, which ends before a document's first token, and to earlier ones, which ends
  // after it.
  __device__ Run ToLater() const { return begins ? Run{0, 0, true} : Run{e, squares, false}; }
  __device__ Run ToEarlier() const { return {e, squares, begins}; }
};
template <class W>
__device__ inline DotsOfToken<W> LoadDots(const MlstmGateGradientArgs<W>& x, const MlstmChunkPlace& place,
                                          int index) {
  const int64_t t = place.t0 + index, pairs = x.in.B * x.in.NH, Tp = x.in.NC * kMlstmChunk;
  if (t >= x.in.num_tokens) return {0, 0, 0, false};
  double q_dot = 0, k_dot = 0;
  for (int slice = 0; slice < x.q_slices; ++slice) q_dot += x.q_dots[(slice * pairs + place.pair) * Tp + t];
  for (int slice = 0; slice < x.k_slices; ++slice) k_dot += x.k_dots[(slice * pairs + place.pair) * Tp + t];
  const bool reset = x.in.reset != nullptr && x.in.reset[place.pair / x.in.NH * x.in.num_tokens + t] != 0;
  return {q_dot - k_dot, q_dot * q_dot + k_dot * k_dot, k_dot,
          reset || (t == 0 && x.initial_term == nullptr)};
}

// (to later tokens, to earlier ones) of every chunk.
template <class W>
__global__ void __launch_bounds__(kThreads) MlstmChunkDotsKernel(MlstmGateGradientArgs<W> x) {
  const MlstmChunkPlace place = MlstmPlaceOfWarp(x.in.B * x.in.NH, x.in.NC);
  if (!place.exists) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const DotsOfToken<W> dots = LoadDots(x, place, lane);
  const Run later = RunsOfWarp<1>(dots.ToLater()), earlier = RunsOfWarp<-1>(dots.ToEarlier());
  Run* const to = x.chunk_runs + (place.pair * x.in.NC + place.chunk) * 2;
  if (lane == 0) to[0] = later;
  if (lane == kWarpSize - 1) to[1] = earlier;
}

// The chunks next to the warp's own in the direction kStep, up to `end` without it, 32 at a time.
template <int kStep, class W>
__device__ inline Run RunOfChunks(const MlstmGateGradientArgs<W>& x, const MlstmChunkPlace& place,
                                  int64_t end) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  Run run = Nothing();
  for (int64_t first = place.chunk + kStep; (end - first) * kStep > 0 && !run.stops;
       first += kStep * kWarpSize) {
    const int64_t chunk = first + kStep * lane;
    Run mine = Nothing();
    if ((end - chunk) * kStep > 0)
      mine = x.chunk_runs[(place.pair * x.in.NC + chunk) * 2 + (kStep > 0 ? 0 : 1)];
    run = Join(run, FromLane(RunsOfWarp<1>(mine), 0));  // the lanes go in the run's direction
  }
  return run;
}

template <class W>
__device__ inline double AnchorTerm(const MlstmGateGradientArgs<W>& x, int64_t anchor, int64_t pair) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const W* const parts = x.anchor_dots + (anchor * x.in.B * x.in.NH + pair) * x.anchor_parts;
  double sum = 0;
  for (int part = lane; part < x.anchor_parts; part += kWarpSize) sum += parts[part];
  return WarpSum(sum);
}

// Without a number of blocks, ptxas spills to make room for more.
template <class W>
__global__ void __launch_bounds__(kThreads, 6) MlstmGateGradientKernel(MlstmGateGradientArgs<W> x) {
  const MlstmChunkPlace place = MlstmPlaceOfWarp(x.in.B * x.in.NH, x.in.NC);
  if (!place.exists) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t t = place.t0 + lane;
  const bool exists = t < x.in.num_tokens;
  const DotsOfToken<W> dots = LoadDots(x, place, lane);
  double dF_to_df = 0;
  if (exists) {
    double di = dots.k_dot;
    if (x.in.sigmoid_input_gate)
      di *= SigmoidOfMinus(GateOf(x.in.i_pre, x.in.num_tokens, x.in.NH, place.pair, t));
    GateOf(x.di_pre, x.in.num_tokens, x.in.NH, place.pair, t) = static_cast<W>(di);
    if (!dots.begins) dF_to_df = SigmoidOfMinus(GateOf(x.in.f_pre, x.in.num_tokens, x.in.NH, place.pair, t));
  }

  // The tokens a .. b of mlstm_gate_gradients.h: from the anchor before this chunk to the one after it, or to
  // the document's borders.
  const int64_t stretch = place.chunk / kMlstmAnchorChunks;
  const bool anchor_after = x.anchor_dots != nullptr && stretch < NumMlstmAnchors(x.in.NC);
  const Run later =
      Join(RunsOfWarp<1>(dots.ToLater()),
           RunOfChunks<1>(x, place, anchor_after ? (stretch + 1) * kMlstmAnchorChunks : x.in.NC));
  double after = 0;
  if (anchor_after) {
    after = AnchorTerm(x, stretch, place.pair);
  } else if (x.final_term != nullptr) {
    after = x.final_term[place.pair];
  }
  if (later.stops) after = 0;
  const double from_later = after + later.e, later_squares = after * after + later.squares;

  const bool anchor_before = x.anchor_dots != nullptr && stretch > 0;
  Run earlier = FromLane(RunsOfWarp<-1>(dots.ToEarlier()), lane > 0 ? lane - 1 : 0);
  if (lane == 0) earlier = Nothing();
  earlier = Join(earlier, RunOfChunks<-1>(x, place, (anchor_before ? stretch * kMlstmAnchorChunks : 0) - 1));
  double before = 0;
  if (anchor_before) {
    before = AnchorTerm(x, stretch - 1, place.pair);
  } else if (x.initial_term != nullptr) {
    before = x.initial_term[place.pair];
  }
  if (earlier.stops) before = 0;
  const double squares = later_squares + before * before + earlier.squares;

  if (!exists) return;
  double dF = from_later;
  if (squares > 0 && squares < HUGE_VAL)  // else they are alike, or not numbers
    dF -= (from_later - (before - earlier.e)) * (later_squares / squares);
  GateOf(x.df_pre, x.in.num_tokens, x.in.NH, place.pair, t) =
      dots.begins ? W(0) : static_cast<W>(dF * dF_to_df);
}
}  // namespace

template <class W>
void LaunchMlstmGateGradients(Context& context, const MlstmGateGradientArgs<W>& x) {
  const int64_t chunks = x.in.B * x.in.NH * x.in.NC;
  if (chunks == 0) return;
  const unsigned grid = GridExtent(CeilDiv(chunks, int64_t{kMlstmGateWarps}));
  context.Launch(MlstmChunkDotsKernel<W>, {.grid = grid, .block = kThreads, .name = "MlstmChunkDotsKernel"},
                 x);
  context.Launch(MlstmGateGradientKernel<W>,
                 {.grid = grid, .block = kThreads, .name = "MlstmGateGradientKernel"}, x);
}
template void LaunchMlstmGateGradients<float>(Context&, const MlstmGateGradientArgs<float>&);
template void LaunchMlstmGateGradients<double>(Context&, const MlstmGateGradientArgs<double>&);

}  // namespace carousel::CAROUSEL_DEVICE_NS
