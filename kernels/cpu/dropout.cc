// y = x / (1 - rate) where an element is kept, 0 where not. Element e = row * W + column draws word e % 4 of
// Philox4x32-10 with counter e / 4 and the call's key (core/base/random.h), and is kept if that word is at
// least rate * 2^32. Srivastava et al. 2014.
#include "core/base/random.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class T>
void Specification(const DropoutArgs& a, uint32_t threshold, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.x.dim[0], width = a.x.dim[1];
  const W scale = static_cast<W>(1 / (1 - a.rate));
  pool.ParallelForBlocks(N, RowsPerTask(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        const uint64_t e = static_cast<uint64_t>(r * width + c);
        const bool keep = RandomBits(a.key, /*stream=*/0, e / 4)[e % 4] >= threshold;
        Row<T>(a.y, r)[c] = static_cast<T>(keep ? static_cast<W>(Row<T>(a.x, r)[c]) * scale : W{0});
      }
    }
  });
}
}  // namespace

void CpuOps::Dropout(const DropoutArgs& a) {
  CAROUSEL_CHECK(IsFloat(a.x.dtype));
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  CAROUSEL_CHECK_STRIDED(a.y, a.x.dtype, {a.x.dim[0], a.x.dim[1]});
  CAROUSEL_CHECK(a.rate >= 0 && a.rate < 1);
  const uint32_t threshold = static_cast<uint32_t>(a.rate * 0x1p32);
  DispatchFloat(a.x.dtype, [&]<class T>() { Specification<T>(a, threshold, pool_); });
}
}  // namespace carousel::cpu
