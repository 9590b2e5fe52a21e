// y[n] = weight[ids[n]]; dweight[ids[n]] += dy[n] in ascending n. The plain loops are the fast ones: they
// copy and add whole rows. Of a part of the table (first_id), ids of other rows give zeros and nothing.
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

// Row of the table for an id; -1: another rank has it.
int64_t RowOf(int64_t id, int64_t first_id, int64_t V) {
  const int64_t row = id - std::max<int64_t>(first_id, 0);
  return row >= 0 && row < V ? row : -1;
}

// Without first_id every id must be a row of the table.
void CheckIds(const Tensor& ids, int64_t first_id, int64_t V) {
  if (first_id >= 0) return;
  for (int64_t n = 0; n < ids.dim[0]; ++n) {
    const int64_t id = ids.as<int32_t>()[n];
    CAROUSEL_CHECK_MSG(id >= 0 && id < V, "token id " + std::to_string(id) + " at position " +
                                              std::to_string(n) + " is outside of the vocabulary of " +
                                              std::to_string(V));
  }
}

template <class T>
void Forward(const EmbeddingForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.ids.dim[0], V = a.weight.dim[0], D = a.weight.dim[1];
  const int32_t* ids = a.ids.as<int32_t>();
  pool.ParallelForBlocks(N, RowsPerTask(D), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      W* y = Row<W>(a.y, n);
      const int64_t row = RowOf(ids[n], a.first_id, V);
      if (row < 0) {
        std::fill_n(y, D, W{0});
        continue;
      }
      const T* weight = Row<T>(a.weight, row);
      for (int64_t c = 0; c < D; ++c) y[c] = static_cast<W>(weight[c]);
    }
  });
}

// Each task owns a range of columns of the whole table, so that no two tasks add to one place and the order
// of the additions is that of the tokens.
template <class W>
void Backward(const EmbeddingBackwardArgs& a, ThreadPool& pool) {
  constexpr int64_t kColumnsPerTask = 32;
  const int64_t N = a.ids.dim[0], V = a.dweight.dim[0], D = a.dweight.dim[1];
  const int32_t* ids = a.ids.as<int32_t>();
  W* dweight = a.dweight.as<W>();
  const W* dy = a.dy.as<W>();
  pool.ParallelForBlocks(D, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < N; ++n) {
      const int64_t row = RowOf(ids[n], a.first_id, V);
      if (row < 0) continue;
      W* to = dweight + row * D;
      const W* from = dy + n * D;
      for (int64_t c = begin; c < end; ++c) to[c] += from[c];
    }
  });
}
}  // namespace

void CpuOps::EmbeddingForward(const EmbeddingForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.weight.dtype;
  const int64_t V = a.weight.dim[0];
  CheckIds(a.ids, a.first_id, V);
  DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
}

void CpuOps::EmbeddingBackward(const EmbeddingBackwardArgs& a) {
  CheckArgs(a);
  const DType wide = a.dweight.dtype;
  const int64_t V = a.dweight.dim[0];
  CheckIds(a.ids, a.first_id, V);
  wide == DType::kF64 ? Backward<double>(a, pool_) : Backward<float>(a, pool_);
}
}  // namespace carousel::cpu
