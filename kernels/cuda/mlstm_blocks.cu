// mlstm_blocks.cu - adds the parts of a scan over heads that are cut into blocks (mlstm_blocks.h).
//
// Grid: tokens; a thread per four columns at a time. Reads (4 column blocks) bytes and writes 2 per column,
// all coalesced, once; the parts of the normaliser, one number per block and head, come from the cache.
#include "kernels/cuda/mlstm_blocks.h"

#include <climits>

#include "kernels/cuda/op_check.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {
constexpr int kThreads = 256, kElems = 4;  // of a thread at a time

template <bool kDivides>
__global__ void __launch_bounds__(kThreads)
    MlstmJoinKernel(const __grid_constant__ MlstmFastScanArgs x, int width, int num_parts, bool aligned) {
  const int64_t token = blockIdx.x, columns = x.NH * width, part_elems = x.B * x.num_tokens * columns;
  const int num_tokens = static_cast<int>(x.num_tokens);
  const int entry = static_cast<int>(blockIdx.x) / num_tokens, t = static_cast<int>(blockIdx.x) % num_tokens;
  bfloat16* const out = x.out.data + token * x.out.row_stride;
  for (int column = static_cast<int>(threadIdx.x) * kElems; column < columns; column += kThreads * kElems) {
    const float* from = x.partials + token * columns + column;
    float sum[kElems];
    Load(sum, from);
#pragma unroll 2
    for (int part = 1; part < num_parts; ++part) {
      from += part_elems;
      float more[kElems];
      Load(more, from);
#pragma unroll
      for (int i = 0; i < kElems; ++i) sum[i] += more[i];
    }
    if constexpr (kDivides) {
      const int head = column / width;
      const int64_t pairs = x.B * x.NH, pair = entry * x.NH + head;
      float N = 1.0f, inverse = 1.0f;
      if (x.normalize) {
        const float* part_of_a = x.a + pair * x.NC * kMlstmChunk + t;
        float a = *part_of_a;
        for (int part = 1; part < num_parts; ++part) {
          part_of_a += pairs * x.NC * kMlstmChunk;
          a += *part_of_a;
        }
        N = fmaxf(fabsf(a), x.records[pair * x.NC + t / kMlstmChunk].floor[t % kMlstmChunk]);
        inverse = gpu::rcp_fast(N + x.eps);
      }
      if (column == head * width) x.denominator.data[token * x.denominator.row_stride + head] = N;
#pragma unroll
      for (int i = 0; i < kElems; ++i) sum[i] *= inverse;
    }
    if (aligned) {
      Store(out + column, sum);
    } else {
#pragma unroll
      for (int i = 0; i < kElems; ++i) out[column + i] = gpu::to_bf16(sum[i]);
    }
  }
}
}  // namespace

void LaunchMlstmJoin(Context& context, MlstmRole role, const MlstmFastScanArgs& args) {
  const int64_t tokens = args.B * args.num_tokens;
  const bool rows_are_values = role == MlstmRole::kH || role == MlstmRole::kDV;
  const int64_t width = rows_are_values ? args.DHV : args.DHQK;
  CAROUSEL_CHECK(tokens <= INT_MAX && args.NH * width <= INT_MAX - kThreads * kElems);
  CAROUSEL_CHECK(width % kElems == 0 && args.partials != nullptr);
  if (tokens == 0) return;
  const bool aligned = args.out.row_stride % kElems == 0 &&
                       reinterpret_cast<uintptr_t>(args.out.data) % (kElems * sizeof(bfloat16)) == 0;
  const int num_parts = static_cast<int>(NumMlstmColumnBlocks(role, args.DHQK, args.DHV));
  const auto launch = [&](auto kernel) {
    context.Launch(kernel, {.grid = GridExtent(tokens), .block = kThreads, .name = "MlstmJoinKernel"}, args,
                   static_cast<int>(width), num_parts, aligned);
  };
  role == MlstmRole::kH ? launch(MlstmJoinKernel<true>) : launch(MlstmJoinKernel<false>);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
