// y = x / (1 - rate) where an element is kept, 0 where not. Element e = row * W + column of the whole
// activation draws word e % 4 of Philox4x32-10 with counter e / 4 and the call's key (core/base/random.h),
// and is kept if that word is at least rate * 2^32. Srivastava et al. 2014.
#include "kernels/cpu/simd/dropout.h"
#include "core/base/random.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

// The first element of row r in the whole activation.
uint64_t FirstElement(const DropoutArgs& a, int64_t r) {
  const int64_t columns = a.places.num_columns > 0 ? a.places.num_columns : a.x.dim[1];
  return static_cast<uint64_t>(a.places.WholeRow(r) * columns + a.places.first_column);
}

template <class T>
void Specification(const DropoutArgs& a, uint32_t threshold, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], width = a.x.dim[1];
  const W scale = static_cast<W>(1 / (1 - a.rate));
  pool.ParallelForBlocks(N, RowsPerTask(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint64_t first = FirstElement(a, r);
      for (int64_t c = 0; c < width; ++c) {
        const uint64_t e = first + static_cast<uint64_t>(c);
        const bool keep = RandomBits(a.key, /*stream=*/0, e / 4)[e % 4] >= threshold;
        Row<T>(a.y, r)[c] = static_cast<T>(keep ? static_cast<W>(Row<T>(a.x, r)[c]) * scale : W{0});
      }
    }
  });
}

// Rows without gaps are one range of elements.
template <class T, class Drop>
void DropElements(const DropoutArgs& a, Drop drop, const DropoutDraw& draw, ThreadPool& pool) {
  const int64_t N = a.x.dim[0], width = a.x.dim[1];
  const T* x = RawData<T>(a.x);
  T* y = RawData<T>(a.y);
  if (a.x.contiguous() && a.y.contiguous() && a.places.Gapless(width)) {
    const uint64_t first = FirstElement(a, 0);
    return pool.ParallelForBlocks(N * width, kElemsPerTask, [&](int64_t begin, int64_t end) {
      drop(y + begin, x + begin, end - begin, first + static_cast<uint64_t>(begin), draw);
    });
  }
  pool.ParallelForBlocks(N, RowsPerTask(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      drop(y + r * a.y.row_stride, x + r * a.x.row_stride, width, FirstElement(a, r), draw);
    }
  });
}
}  // namespace

void CpuOps::Dropout(const DropoutArgs& a) {
  CheckArgs(a);
  if (a.rate == 0) {
    if (a.y.data != a.x.data) Cast({.y = a.y, .x = a.x});
    return;
  }
  const uint32_t threshold = static_cast<uint32_t>(a.rate * 0x1p32);
  if (!Fast(a.x.dtype)) {
    return DispatchFloat(a.x.dtype, [&]<class T>() { Specification<T>(a, threshold, pool_); });
  }
  const DropoutDraw draw = {
      .key = a.key, .threshold = threshold, .scale = static_cast<float>(1 / (1 - a.rate))};
  const DropoutKernels& kernels = CAROUSEL_PICK_SIMD(level_, GetDropoutKernels);
  if (a.x.dtype == DType::kF32) {
    DropElements<float>(a, kernels.drop_f32, draw, pool_);
  } else {
    DropElements<uint16_t>(a, kernels.drop_bf16, draw, pool_);
  }
}
}  // namespace carousel::cpu
