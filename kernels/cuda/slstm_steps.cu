// slstm_steps.cu - the sLSTM cell for any dtype and any width of a head, one launch per token. Formulas:
// core/ops.h, slstm_cell.h (xLSTM, arXiv:2405.04517, section 2.2).
//
// Forward. Grid: (units / 8, heads, tiles of 8 sequences). Block: 8 warps, one unit with its four gates each;
// lanes divide the columns of R. Shared: y before the token, in pieces of 256 columns. Sums in the wide type:
// of the columns of a lane in order, then over lanes as a tree.
// Backward. Grid: (units / 32, heads, tiles of 8 sequences). Block: 16 warps that divide the rows of R, 32 at
// a time; lanes are units. Sums in the wide type: of the rows of a warp in order, then over warps in order.
// The states between tokens lie in c, n, m, dwx and scratch.
//
// Per token: a launch, and R from the second cache once per 8 sequences: about 3 us plus 4 D^2 elements per
// head at the cache's bandwidth.
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/slstm_cell.h"
#include "kernels/cuda/slstm_internal.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kSequences = 8;
constexpr int kForwardWarps = 8;
constexpr int kPiece = 256;  // columns of y in shared memory
constexpr int kBackwardWarps = 16;

// The sum over lanes of values[i], to lane i. Each exchange halves what a lane holds.
template <int kHalf = 16, class W>
__device__ inline W SumToLane(W (&values)[32]) {
  const bool upper = (static_cast<int>(threadIdx.x) & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const W mine = upper ? values[i + kHalf] : values[i], others = upper ? values[i] : values[i + kHalf];
    values[i] = mine + __shfl_xor_sync(~0u, others, kHalf);
  }
  if constexpr (kHalf > 1) {
    return SumToLane<kHalf / 2>(values);
  } else {
    return values[0];
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kForwardWarps, 2)
    SlstmStepForwardKernel(SlstmForwardPointers<T> p, int64_t t) {
  using W = Wide<T>;
  SHARED_ARRAY(W, y_before, [kSequences][kPiece]);
  const int64_t D = p.shape.D, tokens = p.shape.T, width = p.shape.NH * D;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t head_column = int64_t{blockIdx.y} * D, first = int64_t{blockIdx.z} * kSequences;
  const int64_t unit = int64_t{blockIdx.x} * kForwardWarps + warp, column = head_column + unit;
  W sums[kSlstmGates * kSequences] = {};
  for (int64_t from = 0; from < D; from += kPiece) {
    for (int at = static_cast<int>(threadIdx.x); at < kSequences * kPiece; at += 32 * kForwardWarps) {
      const int64_t b = first + at / kPiece, in = from + at % kPiece;
      W y = 0;
      if (b < p.shape.B && in < D && (p.reset == nullptr || p.reset[b * tokens + t] == 0)) {
        if (t > 0) {
          y = gpu::convert<W>(p.y[(b * tokens + t - 1) * width + head_column + in]);
        } else if (p.initial.y != nullptr) {
          y = gpu::convert<W>(gpu::convert<T>(p.initial.y[b * width + head_column + in]));
        }
      }
      y_before[at / kPiece][at % kPiece] = y;
    }
    __syncthreads();  // y of the piece, before the product reads it
    if (unit < D) {
      const int columns = static_cast<int>(min(int64_t{kPiece}, D - from));
      for (int in = lane; in < columns; in += 32) {
        W y[kSequences];
#pragma unroll
        for (int s = 0; s < kSequences; ++s) y[s] = y_before[s][in];
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) {
          const W weight = gpu::convert<W>(p.recurrent[(g * width + column) * D + from + in]);
#pragma unroll
          for (int s = 0; s < kSequences; ++s) sums[g * kSequences + s] += weight * y[s];
        }
      }
    }
    __syncthreads();  // the product's reads, before the next piece is written
  }
  if (unit >= D) return;
  const W sum = SumToLane(sums);
  W raw[kSlstmGates], kept[kSlstmGates];
#pragma unroll
  for (int g = 0; g < kSlstmGates; ++g) raw[g] = __shfl_sync(~0u, sum, g * kSequences + lane % kSequences);
  const int64_t b = first + lane;
  if (lane >= kSequences || b >= p.shape.B) return;
  const int64_t row = b * tokens + t, at = row * width + column,
                gates_at = row * kSlstmGates * width + column;
#pragma unroll
  for (int g = 0; g < kSlstmGates; ++g)
    raw[g] = p.wx[gates_at + g * width] + raw[g] + p.bias[g * width + column];
  W c = 0, n = 0, m = 0;
  if (p.reset == nullptr || p.reset[row] == 0) {
    if (t > 0) {
      c = p.c[at - width];
      n = p.n[at - width];
      m = p.m[at - width];
    } else if (p.initial.y != nullptr) {
      c = p.initial.c[b * width + column];
      n = p.initial.n[b * width + column];
      m = p.initial.m[b * width + column];
    }
  }
  p.y[at] = gpu::convert<T>(SlstmCellForward<W, SlstmAccurateMath<W>>(raw, c, n, m, kept));
#pragma unroll
  for (int g = 0; g < kSlstmGates; ++g) p.gates[gates_at + g * width] = kept[g];
  p.c[at] = c;
  p.n[at] = n;
  p.m[at] = m;
}

// The state after the last token; without a token the initial one, or zeros. Grid: elements / 256.
template <class T>
__global__ void __launch_bounds__(256) SlstmLastStateKernel(SlstmForwardPointers<T> p) {
  using W = Wide<T>;
  const int64_t width = p.shape.NH * p.shape.D, tokens = p.shape.T;
  const int64_t at = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= p.shape.B * width) return;
  if (tokens > 0) {
    const int64_t from = ((at / width + 1) * tokens - 1) * width + at % width;
    p.last.y[at] = gpu::convert<W>(p.y[from]);
    p.last.c[at] = p.c[from];
    p.last.n[at] = p.n[from];
    p.last.m[at] = p.m[from];
  } else {
    const bool given = p.initial.y != nullptr;
    p.last.y[at] = given ? p.initial.y[at] : W(0);
    p.last.c[at] = given ? p.initial.c[at] : W(0);
    p.last.n[at] = given ? p.initial.n[at] : W(0);
    p.last.m[at] = given ? p.initial.m[at] : W(0);
  }
}

// Token t, or dinitial if t == -1. running: dc, then dn, each (B, NH*D).
template <class T>
__global__ void __launch_bounds__(32 * kBackwardWarps)
    SlstmStepBackwardKernel(SlstmBackwardPointers<T> p, Wide<T>* running, int64_t t) {
  using W = Wide<T>;
  SHARED_ARRAY(W, shared, [kBackwardWarps][32 * kSequences]);  // draw [row][sequence]; sums [sequence][unit]
  const int64_t D = p.shape.D, tokens = p.shape.T, width = p.shape.NH * D;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t head_column = int64_t{blockIdx.y} * D, first = int64_t{blockIdx.z} * kSequences;
  const int64_t unit = int64_t{blockIdx.x} * 32 + lane, column = head_column + unit;
  const bool has_product = t + 1 < tokens && !p.cut;
  if (has_product) {
    W sums[kSequences] = {};
    W* const draw = shared[warp];
    for (int64_t from = int64_t{warp} * 32; from < kSlstmGates * D; from += kBackwardWarps * 32) {
      const int64_t own_row = from + lane;
#pragma unroll
      for (int s = 0; s < kSequences; ++s) {
        const bool valid = own_row < kSlstmGates * D && first + s < p.shape.B;
        draw[lane * kSequences + s] =
            valid ? gpu::convert<W>(p.dwx[((first + s) * tokens + t + 1) * kSlstmGates * width +
                                          own_row / D * width + head_column + own_row % D])
                  : W(0);
      }
      __syncwarp();  // draw of the rows, before all lanes read it
      if (unit < D) {
        const int rows = static_cast<int>(min(int64_t{32}, kSlstmGates * D - from));
#pragma unroll 8
        for (int i = 0; i < rows; ++i) {
          const int64_t row = from + i;
          const W weight = gpu::convert<W>(p.recurrent[(row / D * width + head_column + row % D) * D + unit]);
#pragma unroll
          for (int s = 0; s < kSequences; ++s) sums[s] += weight * draw[i * kSequences + s];
        }
      }
      __syncwarp();  // these reads, before the next rows are written
    }
#pragma unroll
    for (int s = 0; s < kSequences; ++s) draw[s * 32 + lane] = sums[s];
    __syncthreads();  // the sums of every warp, before they are added up
  }
  const int64_t b = first + warp;
  if (warp >= kSequences || b >= p.shape.B || unit >= D) return;
  const int64_t state_at = b * width + column, row = b * tokens + t;
  const bool is_last = t + 1 == tokens, has_dlast = p.dlast.y != nullptr;
  W dr = 0, dc = 0, dn = 0;
  if (is_last && has_dlast) {
    dr = p.dlast.y[state_at];
    dc = p.dlast.c[state_at];
    dn = p.dlast.n[state_at];
  } else if (!is_last) {
    dc = running[state_at];
    dn = running[p.shape.B * width + state_at];
    if (has_product && (p.reset == nullptr || p.reset[row + 1] == 0)) {
      for (int other = 0; other < kBackwardWarps; ++other) dr += shared[other][warp * 32 + lane];
    }
  }
  W c0 = 0, n0 = 0;
  if (t > 0) {
    c0 = p.c[(row - 1) * width + column];
    n0 = p.n[(row - 1) * width + column];
  } else if (p.initial.y != nullptr) {
    c0 = p.initial.c[state_at];
    n0 = p.initial.n[state_at];
  }
  if (t < 0) {
    p.dinitial.y[state_at] = p.cut ? W(0) : dr;
    p.dinitial.c[state_at] = dc;
    p.dinitial.n[state_at] = dn;
    p.dinitial.m[state_at] = n0 == W(0) ? W(0) : c0 * dc + n0 * dn;
    return;
  }
  const bool starts = p.reset != nullptr && p.reset[row] != 0;
  const int64_t at = row * width + column, gates_at = row * kSlstmGates * width + column;
  W kept[kSlstmGates], draw[kSlstmGates];
#pragma unroll
  for (int g = 0; g < kSlstmGates; ++g) kept[g] = p.gates[gates_at + g * width];
  const W recurrent = p.cut ? W(0) : SlstmClip(dr, p.limit);
  SlstmCellBackward<W, SlstmAccurateMath<W>>(kept, starts ? W(0) : c0, starts ? W(0) : n0, p.c[at], p.n[at],
                                             gpu::convert<W>(p.dy[at]) + recurrent, dc, dn, draw);
  running[state_at] = starts ? W(0) : dc;
  running[p.shape.B * width + state_at] = starts ? W(0) : dn;
#pragma unroll
  for (int g = 0; g < kSlstmGates; ++g) {
    p.dwx[gates_at + g * width] = gpu::convert<T>(draw[g]);
    W& sum = p.dbias[(b * kSlstmGates + g) * width + column];
    sum = is_last ? draw[g] : sum + draw[g];
  }
}

dim3 GridOf(const SlstmShape& s, int units) {
  return dim3(GridExtent(CeilDiv(s.D, units)), GridExtent(s.NH), GridExtent(CeilDiv(s.B, kSequences)));
}
}  // namespace

template <class T>
void SlstmStepsForward(Context& context, const SlstmForwardPointers<T>& p) {
  const SlstmShape& s = p.shape;
  for (int64_t t = 0; t < s.T; ++t) {
    context.Launch(SlstmStepForwardKernel<T>,
                   {.grid = GridOf(s, kForwardWarps),
                    .block = dim3(32 * kForwardWarps),
                    .name = "SlstmStepForwardKernel"},
                   p, t);
  }
  if (p.last.y == nullptr) return;
  context.Launch(SlstmLastStateKernel<T>,
                 {.grid = dim3(GridExtent(CeilDiv(s.B * s.NH * s.D, 256))),
                  .block = dim3(256),
                  .name = "SlstmLastStateKernel"},
                 p);
}

template <class T>
void SlstmStepsBackward(Context& context, const SlstmBackwardPointers<T>& p, Wide<T>* running) {
  const SlstmShape& s = p.shape;
  const int64_t end = p.dinitial.y == nullptr ? 0 : -1;
  for (int64_t t = s.T - 1; t >= end; --t) {
    context.Launch(
        SlstmStepBackwardKernel<T>,
        {.grid = GridOf(s, 32), .block = dim3(32 * kBackwardWarps), .name = "SlstmStepBackwardKernel"}, p,
        running, t);
  }
}

template void SlstmStepsForward(Context&, const SlstmForwardPointers<float>&);
template void SlstmStepsForward(Context&, const SlstmForwardPointers<bfloat16>&);
template void SlstmStepsForward(Context&, const SlstmForwardPointers<double>&);
template void SlstmStepsBackward(Context&, const SlstmBackwardPointers<float>&, float*);
template void SlstmStepsBackward(Context&, const SlstmBackwardPointers<bfloat16>&, float*);
template void SlstmStepsBackward(Context&, const SlstmBackwardPointers<double>&, double*);
}  // namespace carousel::CAROUSEL_DEVICE_NS
