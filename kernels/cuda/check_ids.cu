// CheckIds: one thread per id, kThreads threads per block; reads the ids once.
#include "kernels/cuda/check_ids.h"

#include <cstdio>

#include "core/base/int_math.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    CheckIdsKernel(const int32_t* ids, int64_t N, int64_t V, IdKind kind) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= N) return;
  const int32_t id = ids[n];
  if (id < V && (id >= 0 || kind == IdKind::kTarget)) return;
  printf("%s %d at position %lld is outside of the vocabulary of %lld\n",
         kind == IdKind::kToken ? "token id" : "target", static_cast<int>(id), static_cast<long long>(n),
         static_cast<long long>(V));
  __trap();
}
}  // namespace

void CheckIds(Context& context, const int32_t* ids, int64_t N, int64_t V, IdKind kind) {
  if (N == 0) return;
  const char* name = kind == IdKind::kToken ? "CheckIdsKernel: token ids of the vocabulary"
                                            : "CheckIdsKernel: targets of the vocabulary";
  context.Launch(CheckIdsKernel,
                 {.grid = dim3(GridExtent(CeilDiv(N, kThreads))), .block = kThreads, .name = name}, ids, N, V,
                 kind);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
