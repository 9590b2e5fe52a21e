// y_b = x_b W_b^T (+ bias) for every block b of columns. Backward: dx_b = dy_b W_b, dW_b += dy_b^T x_b,
// dbias += sum over rows of dy.
#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"
#include "kernels/cpu/simd/block_linear.h"

namespace carousel::cpu {
namespace {

template <class T, class Y>
void Forward(const BlockLinearForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.y.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  pool.ParallelForBlocks(N, RowsPerTask(a.num_blocks * out * in), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < a.num_blocks * out; ++c) {
        const T* x = Row<T>(a.x, r) + c / out * in;
        const T* weight = a.weight.as<T>() + c * in;
        W sum = 0;
        for (int64_t i = 0; i < in; ++i) sum += static_cast<W>(x[i]) * static_cast<W>(weight[i]);
        if (a.bias.defined()) sum += a.bias.as<W>()[c];
        Row<Y>(a.y, r)[c] = static_cast<Y>(sum);
      }
    }
  });
}

template <class T>
void Backward(const BlockLinearBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.dy.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  pool.ParallelForBlocks(N, RowsPerTask(a.num_blocks * out * in), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < a.num_blocks * in; ++c) {
        const int64_t block = c / in;
        const T* dy = Row<T>(a.dy, r) + block * out;
        const T* weight = a.weight.as<T>() + block * out * in + c % in;
        W sum = 0;
        for (int64_t o = 0; o < out; ++o) sum += static_cast<W>(dy[o]) * static_cast<W>(weight[o * in]);
        T& dx = Row<T>(a.dx, r)[c];
        dx = static_cast<T>(sum + (a.accumulate_dx ? static_cast<W>(dx) : W{0}));
      }
    }
  });
  pool.ParallelFor(a.num_blocks * out, [&](int64_t c) {
    for (int64_t i = 0; i < in; ++i) {
      W sum = 0;
      for (int64_t r = 0; r < N; ++r) {
        sum += static_cast<W>(Row<T>(a.dy, r)[c]) * static_cast<W>(Row<T>(a.x, r)[c / out * in + i]);
      }
      a.dweight.as<W>()[c * in + i] += sum;
    }
    if (!a.dbias.defined()) return;
    W sum = 0;
    for (int64_t r = 0; r < N; ++r) sum += static_cast<W>(Row<T>(a.dy, r)[c]);
    a.dbias.as<W>()[c] += sum;
  });
}
// ---- blocks of at most kMaxSmallBlock: vectors over columns (simd/block_linear.h). T is float, or uint16_t
// for bf16.

bool SmallBlocks(int64_t in, int64_t out) { return std::max(in, out) <= kMaxSmallBlock; }

BlockLinearShape ShapeOf(int64_t num_blocks, int64_t in, int64_t out) {
  int64_t padded = 1;
  while (padded < std::max(in, out)) padded *= 2;
  return {.num_blocks = num_blocks,
          .in = in,
          .out = out,
          .padded = padded,
          .columns = RoundUp(num_blocks * padded, kMaxSmallBlock)};
}
// Where the packed matrix has the coefficient of column i of a block in column o of it.
int64_t PackedIndex(const BlockLinearShape& s, int64_t block, int64_t o, int64_t i) {
  const int64_t c = block * s.padded + o;
  return c / 16 * 16 * s.padded + 16 * (o ^ i) + c % 16;
}
// Calls fn(index in `weight`, index in the packed matrix) for every element of W, packed as it is or
// transposed.
template <class Fn>
void ForEachCoefficient(const BlockLinearShape& s, bool transpose, Fn&& fn) {
  for (int64_t b = 0; b < s.num_blocks; ++b) {
    for (int64_t o = 0; o < s.out; ++o) {
      for (int64_t i = 0; i < s.in; ++i) {
        fn((b * s.out + o) * s.in + i, transpose ? PackedIndex(s, b, i, o) : PackedIndex(s, b, o, i));
      }
    }
  }
}
template <class T>
void Pack(float* to, const Tensor& weight, const BlockLinearShape& s, bool transpose) {
  std::fill_n(to, s.padded * s.columns, 0.0f);
  const T* from = weight.as<T>();
  ForEachCoefficient(s, transpose,
                     [&](int64_t place, int64_t packed) { to[packed] = static_cast<float>(from[place]); });
}
int64_t ScratchElems(const BlockLinearShape& s) { return 3 * kBlockLinearTileRows * s.columns; }

template <class T>
const BlockLinearKernels<T>& Kernels(SimdLevel level, [[maybe_unused]] bool use_tiles) {
  if constexpr (sizeof(T) == 2) {
#if defined(__x86_64__)
    // a processor with matrix tiles has AVX-512 BF16, too
    if (use_tiles) return simd_tiles::GetBlockLinearKernelsBf16();
#endif
    return CAROUSEL_PICK_SIMD(level, GetBlockLinearKernelsBf16);
  } else {
    return CAROUSEL_PICK_SIMD(level, GetBlockLinearKernelsF32);
  }
}

// Floats of scratch memory of a forward call: packed, bias, then scratch by worker.
int64_t ForwardElems(const BlockLinearShape& s, int num_threads) {
  return (s.padded + 1) * s.columns + num_threads * ScratchElems(s);
}
// packed is filled.
template <class T>
void SmallForward(const BlockLinearForwardArgs& a, const BlockLinearShape& s,
                  const BlockLinearKernels<T>& kernels, float* packed, ThreadPool& pool) {
  float* bias = packed + s.padded * s.columns;
  float* scratch = bias + s.columns;
  if (a.bias.defined()) {
    std::fill_n(bias, s.columns, 0.0f);
    for (int64_t c = 0; c < s.num_blocks * s.out; ++c) {
      bias[c / s.out * s.padded + c % s.out] = a.bias.as<float>()[c];
    }
  }
  const bool wide = a.y.dtype != a.x.dtype;
  const BlockLinearForwardRows<T> rows = {.y = wide ? nullptr : RawData<T>(a.y),
                                          .y_wide = wide ? a.y.as<float>() : nullptr,
                                          .x = RawData<T>(a.x),
                                          .packed = packed,
                                          .bias = a.bias.defined() ? bias : nullptr,
                                          .shape = s,
                                          .y_stride = a.y.row_stride,
                                          .x_stride = a.x.row_stride};
  const int64_t N = a.x.dim[0];
  const int64_t rows_per_task = RoundUp(RowsPerTask(s.columns), kBlockLinearTileRows);
  pool.ParallelFor(CeilDiv(N, rows_per_task), [&](int64_t task, int worker) {
    const int64_t begin = task * rows_per_task;
    kernels.forward(rows, begin, std::min(N, begin + rows_per_task), scratch + worker * ScratchElems(s));
  });
}

// Where the parts of backward's scratch memory begin, in floats.
struct BackwardScratch {
  BackwardScratch(const BlockLinearShape& s, int64_t N, int num_threads)
      : rows_per_partial(RowsPerPartial(N)), num_partials(CeilDiv(N, rows_per_partial)) {
    const int64_t packed_elems = s.padded * s.columns;
    sum = packed_elems;
    dweight = sum + packed_elems + s.columns;
    dbias = dweight + num_partials * packed_elems;
    rows = dbias + num_partials * s.columns;
    elems = rows + num_threads * ScratchElems(s);
  }
  int64_t rows_per_partial, num_partials;
  int64_t packed = 0;
  int64_t sum;             // of dweight, then of dbias
  int64_t dweight, dbias;  // by partial sum
  int64_t rows;            // by worker
  int64_t elems;
};
// The packed matrix is filled.
template <class T>
void SmallBackward(const BlockLinearBackwardArgs& a, const BlockLinearShape& s,
                   const BlockLinearKernels<T>& kernels, const BackwardScratch& at, float* scratch,
                   ThreadPool& pool) {
  const BlockLinearBackwardRows<T> rows = {.dx = RawData<T>(a.dx),
                                           .dy = RawData<T>(a.dy),
                                           .x = RawData<T>(a.x),
                                           .packed = scratch + at.packed,
                                           .shape = s,
                                           .dx_stride = a.dx.row_stride,
                                           .dy_stride = a.dy.row_stride,
                                           .x_stride = a.x.row_stride,
                                           .accumulate_dx = a.accumulate_dx};
  const int64_t N = a.x.dim[0];
  pool.ParallelFor(at.num_partials, [&](int64_t partial, int worker) {
    const int64_t begin = partial * at.rows_per_partial;
    kernels.backward(rows, begin, std::min(N, begin + at.rows_per_partial),
                     scratch + at.dweight + partial * s.padded * s.columns,
                     scratch + at.dbias + partial * s.columns, scratch + at.rows + worker * ScratchElems(s));
  });
}
}  // namespace

void CpuOps::BlockLinearForward(const BlockLinearForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype;
  const int64_t in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  if (!Fast(compute)) {
    return DispatchFloat(compute, [&]<class T>() {
      a.y.dtype == compute ? Forward<T, T>(a, pool_) : Forward<T, Wide<T>>(a, pool_);
    });
  }
  if (!SmallBlocks(in, out)) {
    for (int64_t b = 0; b < a.num_blocks; ++b) {
      matmul_.Run({.c = a.y.Columns(b * out, out),
                   .a = a.x.Columns(b * in, in),
                   .b = a.weight.Rows(b * out, out),
                   .bias = a.bias.defined() ? a.bias.Rows(b * out, out) : Tensor(),
                   .transpose_b = true});
    }
    return;
  }
  const BlockLinearShape s = ShapeOf(a.num_blocks, in, out);
  float* packed = ScratchF32(ForwardElems(s, pool_.num_threads()));
  if (compute == DType::kF32) {
    Pack<float>(packed, a.weight, s, /*transpose=*/false);
    SmallForward<float>(a, s, Kernels<float>(level_, use_tiles_), packed, pool_);
  } else {
    Pack<bfloat16>(packed, a.weight, s, /*transpose=*/false);
    SmallForward<uint16_t>(a, s, Kernels<uint16_t>(level_, use_tiles_), packed, pool_);
  }
}

void CpuOps::BlockLinearBackward(const BlockLinearBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype;
  const int64_t N = a.x.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  if (!Fast(compute)) return DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
  if (!SmallBlocks(in, out)) {
    for (int64_t b = 0; b < a.num_blocks; ++b) {
      const Tensor dy = a.dy.Columns(b * out, out);
      matmul_.Run({.c = a.dx.Columns(b * in, in),
                   .a = dy,
                   .b = a.weight.Rows(b * out, out),
                   .accumulate = a.accumulate_dx});
      matmul_.Run({.c = a.dweight.Rows(b * out, out),
                   .a = dy,
                   .b = a.x.Columns(b * in, in),
                   .transpose_a = true,
                   .accumulate = true});
    }
    if (a.dbias.defined()) ColumnSum({.y = a.dbias, .x = a.dy});
    return;
  }
  const BlockLinearShape s = ShapeOf(a.num_blocks, in, out);
  const BackwardScratch at(s, N, pool_.num_threads());
  float* scratch = ScratchF32(at.elems);
  if (compute == DType::kF32) {
    Pack<float>(scratch + at.packed, a.weight, s, /*transpose=*/true);
    SmallBackward<float>(a, s, Kernels<float>(level_, use_tiles_), at, scratch, pool_);
  } else {
    Pack<bfloat16>(scratch + at.packed, a.weight, s, /*transpose=*/true);
    SmallBackward<uint16_t>(a, s, Kernels<uint16_t>(level_, use_tiles_), at, scratch, pool_);
  }
  const int64_t packed_elems = s.padded * s.columns;
  float* sum = scratch + at.sum;
  std::fill_n(sum, packed_elems + s.columns, 0.0f);
  AddPartials(sum, scratch + at.dweight, at.num_partials, packed_elems);
  float* dweight = a.dweight.as<float>();
  ForEachCoefficient(s, /*transpose=*/false,
                     [&](int64_t place, int64_t packed) { dweight[place] += sum[packed]; });
  if (!a.dbias.defined()) return;
  sum += packed_elems;
  AddPartials(sum, scratch + at.dbias, at.num_partials, s.columns);
  for (int64_t c = 0; c < a.num_blocks * out; ++c)
    a.dbias.as<float>()[c] += sum[c / out * s.padded + c % out];
}
}  // namespace carousel::cpu
