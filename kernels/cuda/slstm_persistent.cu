// slstm_persistent.cu - the sLSTM cell for any dtype and small heads (SlstmIsSmallHead). Formulas:
// core/ops.h, slstm_cell.h (xLSTM, arXiv:2405.04517, section 2.2).
//
// Grid: (tiles of sequences, heads). Block: (units of the head rounded up to warps, groups): a thread owns
// one unit of kOwned sequences, with all four gates. One launch for all tokens, one barrier per token.
//
// Shared: what the products of a token read, twice: y (D per sequence) forward, draw (4 D) backward. R is
// read for every token, from the first cache if it fits, else from the second: 4 D^2 elements per block at
// about 64 bytes per cycle, 2.3 us per token for f32 at width 128. Forward it is transposed once per call, so
// that lanes read neighbours. Sums are in the wide type, one product after another over columns of R forward,
// over gates and their units backward.
#include <algorithm>

#include "kernels/cuda/op_check.h"
#include "kernels/cuda/slstm_cell.h"
#include "kernels/cuda/slstm_internal.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kOwned = 2;  // sequences of a thread
constexpr int kMaxThreads = 256;
template <class T>
constexpr int kMinBlocks = sizeof(Wide<T>) == 8 ? 1 : 2;  // per multiprocessor

// out[head][in][gate][unit] = R[gate][head][unit][in]. Grid: (16 x 16 tiles of a matrix, gates x heads).
// Block: 16 x 16.
template <class T>
__global__ void __launch_bounds__(256)
    TransposeRecurrentKernel(T* out, const T* recurrent, int64_t NH, int64_t D) {
  SHARED_ARRAY(T, tile, [16][17]);
  const int64_t tiles = (D + 15) / 16, first_unit = blockIdx.x / tiles * 16,
                first_in = blockIdx.x % tiles * 16;
  const int64_t gate = blockIdx.y / NH, head = blockIdx.y % NH;
  const int64_t unit = first_unit + threadIdx.y, in = first_in + threadIdx.x;
  if (unit < D && in < D)
    tile[threadIdx.y][threadIdx.x] = recurrent[((gate * NH + head) * D + unit) * D + in];
  __syncthreads();  // the tile, before others' elements are read
  const int64_t out_in = first_in + threadIdx.y, out_unit = first_unit + threadIdx.x;
  if (out_in < D && out_unit < D)
    out[((head * D + out_in) * kSlstmGates + gate) * D + out_unit] = tile[threadIdx.x][threadIdx.y];
}

// Which unit and sequences a thread owns.
struct Owner {
  __device__ Owner(const SlstmShape& s)
      : D(static_cast<int>(s.D)),
        unit(static_cast<int>(threadIdx.x)),
        owns_unit(unit < D),
        slot(static_cast<int>(threadIdx.y) * kOwned),
        slots(static_cast<int>(blockDim.y) * kOwned),
        first(int64_t{blockIdx.x} * slots + slot),
        width(s.NH * s.D),
        column(int64_t{blockIdx.y} * s.D + unit) {}
  const int D, unit;
  const bool owns_unit;
  const int slot, slots;        // first own sequence among those of the block
  const int64_t first;          // first own sequence
  const int64_t width, column;  // column: of the unit in a row of y
};

template <class T>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<T>)
    SlstmPersistentForwardKernel(SlstmForwardPointers<T> p, const T* transposed) {
  using W = Wide<T>;
  const Owner own(p.shape);
  const int64_t tokens = p.shape.T;
  W* const y_before = gpu::dyn_shared<W>();  // [2][slots][D]
  const T* const r = transposed + int64_t{blockIdx.y} * own.D * kSlstmGates * own.D + own.unit;
  bool exists[kOwned], starts[kOwned];
  W c[kOwned] = {}, n[kOwned] = {}, m[kOwned] = {}, bias[kSlstmGates] = {};
  for (int s = 0; s < kOwned; ++s) {
    const int64_t b = own.first + s;
    exists[s] = own.owns_unit && b < p.shape.B;
    starts[s] = exists[s] && p.reset != nullptr && p.reset[b * tokens] != 0;
    W y = 0;
    if (exists[s] && p.initial.y != nullptr) {
      const int64_t at = b * own.width + own.column;
      if (!starts[s]) y = gpu::convert<W>(gpu::convert<T>(p.initial.y[at]));
      c[s] = p.initial.c[at];
      n[s] = p.initial.n[at];
      m[s] = p.initial.m[at];
    }
    if (own.owns_unit) y_before[(own.slot + s) * own.D + own.unit] = y;
  }
  if (own.owns_unit) {
    for (int g = 0; g < kSlstmGates; ++g) bias[g] = p.bias[g * own.width + own.column];
  }
  __syncthreads();  // y before the first token, before it is read
  for (int64_t t = 0; t < tokens; ++t) {
    const W* const y0 = y_before + (t % 2 * own.slots + own.slot) * own.D;
    W* const y1 = y_before + ((t + 1) % 2 * own.slots + own.slot) * own.D;
    W sums[kOwned][kSlstmGates] = {};
    if (own.owns_unit) {
#pragma unroll 4
      for (int in = 0; in < own.D; ++in) {
        W weight[kSlstmGates];
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g)
          weight[g] = gpu::convert<W>(r[(in * kSlstmGates + g) * static_cast<int64_t>(own.D)]);
#pragma unroll
        for (int s = 0; s < kOwned; ++s) {
          const W y = y0[s * own.D + in];
#pragma unroll
          for (int g = 0; g < kSlstmGates; ++g) sums[s][g] += weight[g] * y;
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      W y = 0;
      if (exists[s]) {
        const int64_t row = (own.first + s) * tokens + t, at = row * own.width + own.column;
        const int64_t gates_at = row * kSlstmGates * own.width + own.column;
        if (starts[s]) c[s] = n[s] = m[s] = 0;
        W raw[kSlstmGates], kept[kSlstmGates];
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) raw[g] = p.wx[gates_at + g * own.width] + sums[s][g] + bias[g];
        const T rounded =
            gpu::convert<T>(SlstmCellForward<W, SlstmAccurateMath<W>>(raw, c[s], n[s], m[s], kept));
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) p.gates[gates_at + g * own.width] = kept[g];
        p.y[at] = rounded;
        p.c[at] = c[s];
        p.n[at] = n[s];
        p.m[at] = m[s];
        starts[s] = p.reset != nullptr && t + 1 < tokens && p.reset[row + 1] != 0;
        if (!starts[s]) y = gpu::convert<W>(rounded);
        if (t + 1 == tokens && p.last.y != nullptr) {
          const int64_t last_at = (own.first + s) * own.width + own.column;
          p.last.y[last_at] = gpu::convert<W>(rounded);
          p.last.c[last_at] = c[s];
          p.last.n[last_at] = n[s];
          p.last.m[last_at] = m[s];
        }
      }
      if (own.owns_unit) y1[s * own.D + own.unit] = y;
    }
    __syncthreads();  // y of this token, before the next one reads it; what this one read, before the next
                      // one writes there
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<T>)
    SlstmPersistentBackwardKernel(SlstmBackwardPointers<T> p) {
  using W = Wide<T>;
  const Owner own(p.shape);
  const int64_t tokens = p.shape.T;
  W* const draws = gpu::dyn_shared<W>();  // [2][slots][4][D]
  bool exists[kOwned];
  W dc[kOwned] = {}, dn[kOwned] = {}, dr[kOwned] = {}, c[kOwned] = {}, n[kOwned] = {},
    dbias[kOwned][kSlstmGates] = {};
  for (int s = 0; s < kOwned; ++s) {
    const int64_t b = own.first + s;
    exists[s] = own.owns_unit && b < p.shape.B;
    if (!exists[s]) continue;
    const int64_t after = (b * tokens + tokens - 1) * own.width + own.column;
    c[s] = p.c[after];
    n[s] = p.n[after];
    if (p.dlast.y == nullptr) continue;
    dr[s] = p.dlast.y[b * own.width + own.column];
    dc[s] = p.dlast.c[b * own.width + own.column];
    dn[s] = p.dlast.n[b * own.width + own.column];
  }
  for (int64_t t = tokens - 1; t >= 0; --t) {
    W* const draw_of_slot = draws + (t % 2 * own.slots + own.slot) * kSlstmGates * own.D;
    bool starts[kOwned] = {};
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      W draw[kSlstmGates] = {};
      if (exists[s]) {
        const int64_t b = own.first + s, row = b * tokens + t, at = row * own.width + own.column;
        const int64_t gates_at = row * kSlstmGates * own.width + own.column;
        starts[s] = p.reset != nullptr && p.reset[row] != 0;
        W c0 = 0, n0 = 0;
        if (t > 0) {
          c0 = p.c[at - own.width];
          n0 = p.n[at - own.width];
        } else if (p.initial.y != nullptr) {
          c0 = p.initial.c[b * own.width + own.column];
          n0 = p.initial.n[b * own.width + own.column];
        }
        W kept[kSlstmGates];
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) kept[g] = p.gates[gates_at + g * own.width];
        const W recurrent = p.cut ? W(0) : SlstmClip(dr[s], p.limit);
        SlstmCellBackward<W, SlstmAccurateMath<W>>(kept, starts[s] ? W(0) : c0, starts[s] ? W(0) : n0, c[s],
                                                   n[s], gpu::convert<W>(p.dy[at]) + recurrent, dc[s], dn[s],
                                                   draw);
        c[s] = c0;
        n[s] = n0;
        if (starts[s]) dc[s] = dn[s] = 0;
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g) {
          p.dwx[gates_at + g * own.width] = gpu::convert<T>(draw[g]);
          dbias[s][g] += draw[g];
        }
      }
      if (own.owns_unit) {
#pragma unroll
        for (int g = 0; g < kSlstmGates; ++g)
          draw_of_slot[(s * kSlstmGates + g) * own.D + own.unit] = draw[g];
      }
    }
    __syncthreads();  // draw of this token, before its product reads it; what the product of the token before
                      // read is written again only after the next barrier
    W sums[kOwned] = {};
    if (own.owns_unit) {
      for (int g = 0; g < kSlstmGates; ++g) {
        const T* const r = p.recurrent + (g * own.width + own.column - own.unit) * own.D + own.unit;
#pragma unroll 8
        for (int e = 0; e < own.D; ++e) {
          const W weight = gpu::convert<W>(r[e * static_cast<int64_t>(own.D)]);
#pragma unroll
          for (int s = 0; s < kOwned; ++s)
            sums[s] += weight * draw_of_slot[(s * kSlstmGates + g) * own.D + e];
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kOwned; ++s) dr[s] = starts[s] ? W(0) : sums[s];
  }
  for (int s = 0; s < kOwned; ++s) {
    if (!exists[s]) continue;
    const int64_t b = own.first + s, at = b * own.width + own.column;
    for (int g = 0; g < kSlstmGates; ++g)
      p.dbias[(b * kSlstmGates + g) * own.width + own.column] = dbias[s][g];
    if (p.dinitial.y == nullptr) continue;
    const W c0 = p.initial.y == nullptr ? W(0) : p.initial.c[at];
    const W n0 = p.initial.y == nullptr ? W(0) : p.initial.n[at];
    p.dinitial.y[at] = p.cut ? W(0) : dr[s];
    p.dinitial.c[at] = dc[s];
    p.dinitial.n[at] = dn[s];
    p.dinitial.m[at] = n0 == W(0) ? W(0) : c0 * dc[s] + n0 * dn[s];
  }
}

// Threads and sequences of a block.
struct PersistentConfig {
  explicit PersistentConfig(const SlstmShape& s)
      : block(static_cast<unsigned>(RoundUp(s.D, 32)),
              static_cast<unsigned>(std::max<int64_t>(
                  1, std::min({int64_t{4}, kMaxThreads / RoundUp(s.D, 32), CeilDiv(s.B, kOwned)})))),
        slots(static_cast<int>(block.y) * kOwned),
        grid(GridExtent(CeilDiv(s.B, slots)), GridExtent(s.NH)) {}
  dim3 block;
  int slots;
  dim3 grid;
};
}  // namespace

template <class T>
void SlstmPersistentForward(Context& context, const SlstmForwardPointers<T>& p, T* transposed) {
  const SlstmShape& s = p.shape;
  CAROUSEL_CHECK_LE(s.D, int64_t{kMaxThreads});
  const int64_t tiles = CeilDiv(s.D, 16) * CeilDiv(s.D, 16);
  context.Launch(TransposeRecurrentKernel<T>,
                 {.grid = dim3(GridExtent(tiles), GridExtent(kSlstmGates * s.NH)),
                  .block = dim3(16, 16),
                  .name = "TransposeRecurrentKernel"},
                 transposed, p.recurrent, s.NH, s.D);
  const PersistentConfig config(s);
  context.Launch(SlstmPersistentForwardKernel<T>,
                 {.grid = config.grid,
                  .block = config.block,
                  .smem = static_cast<size_t>(2 * config.slots * s.D) * sizeof(Wide<T>),
                  .name = "SlstmPersistentForwardKernel"},
                 p, transposed);
}

template <class T>
void SlstmPersistentBackward(Context& context, const SlstmBackwardPointers<T>& p) {
  const SlstmShape& s = p.shape;
  CAROUSEL_CHECK_LE(s.D, int64_t{kMaxThreads});
  const PersistentConfig config(s);
  context.Launch(SlstmPersistentBackwardKernel<T>,
                 {.grid = config.grid,
                  .block = config.block,
                  .smem = static_cast<size_t>(2 * config.slots * kSlstmGates * s.D) * sizeof(Wide<T>),
                  .name = "SlstmPersistentBackwardKernel"},
                 p);
}

template void SlstmPersistentForward(Context&, const SlstmForwardPointers<float>&, float*);
template void SlstmPersistentForward(Context&, const SlstmForwardPointers<bfloat16>&, bfloat16*);
template void SlstmPersistentForward(Context&, const SlstmForwardPointers<double>&, double*);
template void SlstmPersistentBackward(Context&, const SlstmBackwardPointers<float>&);
template void SlstmPersistentBackward(Context&, const SlstmBackwardPointers<bfloat16>&);
template void SlstmPersistentBackward(Context&, const SlstmBackwardPointers<double>&);
}  // namespace carousel::CAROUSEL_DEVICE_NS
