// Norms: how a block's threads lie over rows whose segments (one head's columns, or the whole row) are
// normalised one by one, and what such kernels share.
//
// Block: (threads of a segment, segments side by side, rows). A segment of at most 32 threads lies inside of
// one warp; a longer one has the block for itself. A thread's columns are the same in every row: vectors
// threadIdx.x + i * blockDim.x of its segment, i < kItems, so it keeps them in registers from the statistics
// to the output, and sums gradients of weights over rows in registers.
#pragma once
#include <algorithm>
#include <numeric>
#include <string>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/int_math.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kMaxRowThreads = 512;    // of a long segment
constexpr int kRowBlockThreads = 256;  // of short segments together
// Elements per thread of a block that belongs to one segment; segments wider than the most threads of these
// are walked through again (kItems = 0). Rows that cannot be read 16 bytes at a time have fewer.
constexpr int kLongSegmentElems = 16, kUnalignedElems = 8;

// Threads of a block at most, for __launch_bounds__: more than kLongSegmentElems elements per thread are for
// short segments.
template <int V, int kItems>
constexpr int kRowThreads = V* kItems > kLongSegmentElems ? kRowBlockThreads : kMaxRowThreads;

struct RowLayout {
  int items;  // vectors per thread; 0: a loop over the segment's vectors
  dim3 block;
  int64_t row_blocks, segment_blocks;  // that cover all rows and all segments of a row
};
// `width` columns per segment, V elements at a time. max_short_items: vectors per thread at most in segments
// of one warp. max_threads: of a long segment.
inline RowLayout PickRowLayout(int64_t rows, int64_t segments, int64_t width, int V, int max_short_items,
                               int64_t max_threads) {
  const int64_t vectors = CeilDiv(width, V);
  // one element at a time: one instance for all widths
  int64_t items = V == 1 ? kUnalignedElems : 1;
  while (CeilDiv(vectors, items) > kWarpSize && items < max_short_items) items *= 2;
  int64_t threads = CeilDiv(vectors, items);
  if (threads > kWarpSize) {
    if (V > 1) items = kLongSegmentElems / V;
    threads = RoundUp(CeilDiv(vectors, items), kWarpSize);
    if (threads > max_threads) {
      items = 0;
      threads = max_threads;
    }
    return {.items = static_cast<int>(items),
            .block = dim3(static_cast<unsigned>(threads)),
            .row_blocks = rows,
            .segment_blocks = segments};
  }
  int64_t group = 4;
  while (group < threads) group *= 2;
  // Segments and rows that make whole warps.
  int64_t side_by_side = std::min(segments, kRowBlockThreads / group);
  if (group * side_by_side > 2 * kWarpSize)
    side_by_side = side_by_side * group / kWarpSize * kWarpSize / group;
  const auto rows_of_whole_warps = [&] {
    return kWarpSize / std::gcd<int64_t>(kWarpSize, group * side_by_side);
  };
  while (group * side_by_side * rows_of_whole_warps() > kRowBlockThreads) --side_by_side;
  const int64_t unit = rows_of_whole_warps();
  const int64_t wanted = std::min(kRowBlockThreads / (group * side_by_side), rows);
  const int64_t deep = std::max(unit, wanted / unit * unit);
  return {.items = static_cast<int>(items),
          .block = dim3(static_cast<unsigned>(group), static_cast<unsigned>(side_by_side),
                        static_cast<unsigned>(deep)),
          .row_blocks = CeilDiv(rows, deep),
          .segment_blocks = CeilDiv(segments, side_by_side)};
}
// Blocks that share the rows of a backward pass: enough to fill the device, few enough to keep their partial
// sums small.
inline int64_t PersistentBlocks(const RowLayout& layout, int num_sms) {
  const int64_t threads = int64_t{layout.block.x} * layout.block.y * layout.block.z;
  const int64_t per_sm = std::max<int64_t>(2, kMaxRowThreads / threads);
  return std::min(layout.row_blocks, std::max<int64_t>(1, per_sm * num_sms / layout.segment_blocks));
}

// f64 serves comparisons, not speed: one instance, without registers for rows.
template <class T>
constexpr bool kRowsInRegisters = !std::is_same_v<T, double>;

// Calls fn.operator()<V, kItems>() with the instance for a layout; kItems = 0: a loop. kMaxItems: the
// max_short_items of the layout.
template <class T, int kMaxItems, class Fn>
void DispatchItems(int V, int items, Fn&& fn) {
  if constexpr (kRowsInRegisters<T>) {
    if (V == 1) {
      if (items == 0) return fn.template operator()<1, 0>();
      CAROUSEL_CHECK_EQ(items, kUnalignedElems);
      return fn.template operator()<1, kUnalignedElems>();
    }
    constexpr int kV = kVecElems<T>;
    static_assert(kLongSegmentElems / kV <= kMaxItems && kMaxItems <= 4);
    if (items == 0) return fn.template operator()<kV, 0>();
    if (items == 1) return fn.template operator()<kV, 1>();
    if (items == 2) return fn.template operator()<kV, 2>();
    if constexpr (kMaxItems == 4) {
      if (items == 4) return fn.template operator()<kV, 4>();
    }
    CAROUSEL_CHECK_MSG(false, "no kernel keeps " + std::to_string(items) + " vectors per thread");
  } else {
    fn.template operator()<1, 0>();
  }
}

// Where vector i of this thread begins in its segment; no less than the segment's width if it has none.
template <int V>
__device__ inline int64_t ColumnOf(int i) {
  return (static_cast<int64_t>(threadIdx.x) + i * static_cast<int64_t>(blockDim.x)) * V;
}

// Sums of a segment's threads, in place; every thread of the segment gets them.
template <int kCount, class W>
__device__ inline void SegmentSum(W (&values)[kCount], W* room) {
  if (blockDim.x > kWarpSize) {
    BlockReduce(values, room, SumOf());
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      values[i] = GroupReduce(values[i], static_cast<int>(blockDim.x), SumOf());
  }
}

// Adds what the block's rows of threads hold of the same columns, in their order, and writes one row of
// partial sums: item i of a thread to partials[column of item i]. `exchange` has kRowBlockThreads * V
// elements. `present` says whether the thread's segment exists; all threads call.
template <int V, int kItems, class W>
__device__ inline void StorePartials(W* partials, const W (&sums)[kItems][V], bool present, int64_t width,
                                     W* exchange) {
  const int per_row = static_cast<int>(blockDim.x * blockDim.y);
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    W total[V];
#pragma unroll
    for (int e = 0; e < V; ++e) total[e] = sums[i][e];
    if (blockDim.z > 1) {
      __syncthreads();  // exchange: the reads of what stood there, then these writes
      Store(exchange + (static_cast<int>(threadIdx.z) * per_row + thread) * V, total);
      __syncthreads();  // exchange: every row's writes, then row 0's reads
      for (int z = 1; z < static_cast<int>(blockDim.z) && threadIdx.z == 0; ++z) {
        W more[V];
        Load(more, exchange + (z * per_row + thread) * V);
#pragma unroll
        for (int e = 0; e < V; ++e) total[e] += more[e];
      }
    }
    const int64_t column = ColumnOf<V>(i);
    if (threadIdx.z == 0 && present && column < width) Store(partials + column, total);
  }
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
