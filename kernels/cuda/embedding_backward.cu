// EmbeddingBackward: dweight[ids[n]] += dy[n]. Of a part of the table (first_id), ids of other rows become
// the row behind the last one, which is sorted to the end and left out.
//
// Positions are sorted by their id (stable), so that the rows of one id stand together, in ascending n. Then:
//   PartKernel     kPartRows sorted positions per block adds up runs of equal ids. A run that lies inside the
//                  part is added to dweight; of one that goes on in a neighbouring part, the sum of this
//                  part's rows goes to scratch memory: to `heads` if the run began in an earlier part, else
//                  to `tails`.
//   JoinKernel     the part in which such a run begins adds its tail and the heads of the parts that follow,
//   in
//                  their order, to dweight.
// Every row of dweight has one writer; no atomics. Grid of both: (parts, columns / (kThreads * V)). dy is
// read once, rows of dweight that occur are read and written once; heads and tails are 2 / kPartRows of dy.
// Sums in the type of dweight.
#include <algorithm>
#include <bit>

#include "core/base/int_math.h"
#include "kernels/cuda/check_ids.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/sort.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 128;
constexpr int kPartRows = 64;
constexpr int kRowsAtOnce = 4;  // rows of dy that a thread has in flight
static_assert(kPartRows % kRowsAtOnce == 0 && kPartRows <= kThreads);

// positions[n] = n; rows[n] = the row of the table, or `vocabulary` if it is elsewhere.
__global__ void __launch_bounds__(kThreads)
    PositionsKernel(int32_t* positions, int32_t* rows, const int32_t* ids, int64_t first_id,
                    int64_t vocabulary, int64_t N) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= N) return;
  positions[n] = static_cast<int32_t>(n);
  const int64_t row = ids[n] - first_id;
  rows[n] = static_cast<int32_t>(row >= 0 && row < vocabulary ? row : vocabulary);
}

template <class W>
struct Sorted {
  const int32_t* ids;        // (N) ascending; `vocabulary`: of another part
  const int32_t* positions;  // (N)
  W* heads;                  // (parts, D)
  W* tails;                  // (parts, D)
  int64_t N, D, vocabulary;
};

template <class W, int V>
__device__ void AddTo(W* to, const W (&sum)[V]) {
  W value[V];
  Load(value, to);
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] += sum[i];
  Store(to, value);
}

template <class W, int V>
__global__ void __launch_bounds__(kThreads)
    EmbeddingBackwardPartKernel(W* dweight, const W* dy, Sorted<W> sorted) {
  SHARED_ARRAY(int32_t, ids, [kPartRows]);
  SHARED_ARRAY(int32_t, positions, [kPartRows]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t part = blockIdx.x, begin = part * kPartRows, D = sorted.D;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kPartRows), sorted.N - begin));
  if (thread < rows) {
    ids[thread] = sorted.ids[begin + thread];
    positions[thread] = sorted.positions[begin + thread];
  }
  __syncthreads();  // ids and positions: their writes, then everybody's reads
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + thread) * V;
  if (column >= D || ids[0] == sorted.vocabulary) return;
  bool run_began_before = begin > 0 && sorted.ids[begin - 1] == ids[0];
  const bool last_run_goes_on = begin + rows < sorted.N && sorted.ids[begin + rows] == ids[rows - 1];
  W sum[V] = {};
  for (int first = 0; first < rows; first += kRowsAtOnce) {
    W value[kRowsAtOnce][V];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int row = min(first + i, rows - 1);
      Load(value[i], dy + positions[row] * D + column);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int row = first + i;
      if (row >= rows) break;
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += value[i][j];
      const bool last = row + 1 == rows;
      if (!last && ids[row + 1] == ids[row]) continue;
      if (ids[row] == sorted.vocabulary) return;
      // the run ends here, or goes on in the next part
      if (run_began_before) {
        Store(sorted.heads + part * D + column, sum);
      } else if (last && last_run_goes_on) {
        Store(sorted.tails + part * D + column, sum);
      } else {
        AddTo(dweight + ids[row] * D + column, sum);
      }
      run_began_before = false;
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] = 0;
    }
  }
}

// The first index in (begin, N) whose id differs from ids[begin].
__device__ inline int64_t EndOfRun(const int32_t* ids, int64_t begin, int64_t N) {
  const int32_t id = ids[begin];
  int64_t low = begin + 1, high = N;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ids[middle] == id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class W, int V>
__global__ void __launch_bounds__(kThreads) EmbeddingBackwardJoinKernel(W* dweight, Sorted<W> sorted) {
  const int64_t part = blockIdx.x, begin = part * kPartRows, end = begin + kPartRows, N = sorted.N,
                D = sorted.D;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * V;
  if (end >= N || column >= D) return;
  const int32_t id = sorted.ids[end - 1];
  if (sorted.ids[end] != id || id == sorted.vocabulary) return;  // no run leaves this part
  if (begin > 0 && sorted.ids[begin - 1] == id) return;          // it began in an earlier one
  const int64_t last_part = (EndOfRun(sorted.ids, end, N) - 1) / kPartRows;
  W sum[V];
  Load(sum, sorted.tails + part * D + column);
#pragma unroll 8
  for (int64_t p = part + 1; p <= last_part; ++p) {
    W value[V];
    Load(value, sorted.heads + p * D + column);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += value[i];
  }
  AddTo(dweight + id * D + column, sum);
}

// Where the parts of scratch memory begin.
struct Scratch {
  Scratch(int64_t N, int64_t D, int64_t wide_bytes, int num_bits) {
    const int64_t num_parts = CeilDiv(N, int64_t{kPartRows});
    positions = Add(N * 4);
    rows = Add(N * 4);
    sorted_ids = Add(N * 4);
    sorted_positions = Add(N * 4);
    sort = Add(SortPairsWorkspaceBytes(N, num_bits));
    heads = Add(num_parts * D * wide_bytes);
    tails = Add(num_parts * D * wide_bytes);
  }
  int64_t Add(int64_t part_bytes) {
    const int64_t begin = bytes;
    bytes += RoundUp(part_bytes, 256);
    return begin;
  }
  int64_t bytes = 0;
  int64_t positions, rows, sorted_ids, sorted_positions, sort, heads, tails;
};

template <class W, int V>
void Launch(Context& context, const EmbeddingBackwardArgs& a) {
  const int64_t N = a.ids.dim[0], D = a.dweight.dim[1], vocabulary = a.dweight.dim[0];
  const int num_bits = std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(vocabulary))));
  const Scratch at(N, D, sizeof(W), num_bits);
  char* scratch = static_cast<char*>(context.Scratch(at.bytes));
  const auto ints = [&](int64_t offset) { return reinterpret_cast<int32_t*>(scratch + offset); };
  const Sorted<W> sorted = {.ids = ints(at.sorted_ids),
                            .positions = ints(at.sorted_positions),
                            .heads = reinterpret_cast<W*>(scratch + at.heads),
                            .tails = reinterpret_cast<W*>(scratch + at.tails),
                            .N = N,
                            .D = D,
                            .vocabulary = vocabulary};
  context.Launch(PositionsKernel,
                 {.grid = dim3(GridExtent(CeilDiv(N, kThreads))),
                  .block = kThreads,
                  .name = "EmbeddingBackward PositionsKernel"},
                 ints(at.positions), ints(at.rows), a.ids.as<int32_t>(), std::max<int64_t>(a.first_id, 0),
                 vocabulary, N);
  SortPairs({.keys_out = ints(at.sorted_ids),
             .values_out = ints(at.sorted_positions),
             .keys = ints(at.rows),
             .values = ints(at.positions),
             .n = N,
             .num_bits = num_bits,
             .workspace = scratch + at.sort,
             .stream = context.stream()});
  const dim3 grid(GridExtent(CeilDiv(N, kPartRows)), GridExtent(CeilDiv(D, int64_t{kThreads} * V)));
  context.Launch(EmbeddingBackwardPartKernel<W, V>,
                 {.grid = grid, .block = kThreads, .name = "EmbeddingBackwardPartKernel"}, a.dweight.as<W>(),
                 a.dy.as<W>(), sorted);
  context.Launch(EmbeddingBackwardJoinKernel<W, V>,
                 {.grid = grid, .block = kThreads, .name = "EmbeddingBackwardJoinKernel"}, a.dweight.as<W>(),
                 sorted);
}
}  // namespace

void DeviceOps::EmbeddingBackward(const EmbeddingBackwardArgs& a) {
  CheckArgs(a);
  const DType wide = a.dweight.dtype;
  const int64_t V = a.dweight.dim[0], D = a.dweight.dim[1], N = a.ids.dim[0];
  if (a.first_id < 0) CheckIds(context_, a.ids.as<int32_t>(), N, V, IdKind::kToken);
  if (N == 0 || D == 0) return;
  const auto launch = [&]<class W>() {
    constexpr int kVec = kVecElems<W>;
    AllVectorisable(kVec, a.dweight, a.dy) ? Launch<W, kVec>(context_, a) : Launch<W, 1>(context_, a);
  };
  wide == DType::kF64 ? launch.operator()<double>() : launch.operator()<float>();
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
