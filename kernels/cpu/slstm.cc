// The sLSTM cell: R is packed once per call, then every group of sequences of a head runs through its tokens
// on its own (simd/slstm_kernels.h). The gradient of R is one matmul per gate and head over all tokens.
//
// The groups may depend on the number of threads, because a sequence's bits do not depend on its group.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"
#include "kernels/cpu/simd/slstm_kernels.h"
#include "kernels/cpu/slstm_check.h"
#include "kernels/cpu/slstm_internal.h"
#include "kernels/cpu/slstm_reference.h"

namespace carousel::cpu {
namespace {

SlstmDims DimsOf(const SlstmShape& s) {
  return {.B = s.B, .T = s.T, .NH = s.NH, .D = s.D, .Dp = RoundUp(s.D, kSlstmPad)};
}

// The workspace of either pass. By head: packed. By head, then by sequence: sequences.
struct Scratch {
  Scratch(SlstmScratch memory, const SlstmDims& d, DType compute, bool backward)
      : zeros(memory.Take<float>(d.width())),
        packed(memory.Take<float>(d.NH * d.packed_floats())),
        sequences(memory.Take<float>(d.NH * d.B * (backward ? d.backward_floats() : d.forward_floats()))),
        // one token: operands by panel
        operands(memory.Take<float>(!backward && d.T == 1 ? d.NH * d.num_panels() * kSlstmMaxSequences * d.Dp
                                                          : 0)),
        dbias(memory.Take<float>(backward ? d.NH * d.B * 4 * d.Dp : 0)),
        y_before(memory.Take<std::byte>(backward ? d.B * d.T * d.width() * SizeOf(compute) : 0)),
        needed_bytes(memory.needed_bytes()) {}
  float *zeros, *packed, *sequences, *operands;
  float* dbias;         // (NH, B, 4, Dp): sums of draw over a sequence
  std::byte* y_before;  // (N, NH*D) compute: the recurrent operand of every token
  int64_t needed_bytes;
};

SlstmStateArrays ArraysOf(const SlstmState& state) {
  if (!state.y.defined()) return {};
  return {state.y.as<float>(), state.c.as<float>(), state.n.as<float>(), RawDataOrNull<float>(state.m)};
}
const uint8_t* ResetOf(const Tensor& reset) { return RawDataOrNull<uint8_t>(reset); }

const SlstmKernels& PickKernels(SimdLevel level, DType compute, [[maybe_unused]] bool use_tiles) {
  if (compute == DType::kF32) return CAROUSEL_PICK_SIMD(level, GetSlstmKernelsF32);
#if defined(__x86_64__)
  if (use_tiles) return simd_tiles::GetSlstmKernelsBf16();
#endif
  return CAROUSEL_PICK_SIMD(level, GetSlstmKernelsBf16);
}

// Calls run(group) for groups that cover every sequence of every head: as large as the kernels like them, but
// at least one for every thread.
template <class Run>
void ForEachGroup(const SlstmDims& d, const SlstmKernels& kernels, const Scratch& scratch,
                  int64_t floats_per_sequence, ThreadPool& pool, Run&& run) {
  const int64_t groups =
      std::min(d.B, std::max(CeilDiv(d.B, kernels.max_sequences), CeilDiv(pool.num_threads(), d.NH)));
  if (groups == 0) return;
  const int64_t size = CeilDiv(d.B, groups), groups_in_use = CeilDiv(d.B, size);
  pool.ParallelFor(d.NH * groups_in_use, [&](int64_t task) {
    const int64_t head = task / groups_in_use, first = task % groups_in_use * size;
    run(SlstmGroup{.head = head,
                   .first = first,
                   .count = std::min(size, d.B - first),
                   .packed = scratch.packed + head * d.packed_floats(),
                   .scratch = scratch.sequences + (head * d.B + first) * floats_per_sequence});
  });
}

// y_before: row n holds what the recurrence of token n reads: the row of y before it, the initial y rounded,
// or zeros.
template <class T>
void FillBefore(const SlstmBackwardArgs& a, T* y_before, ThreadPool& pool) {
  const int64_t tokens = a.shape.T, width = a.shape.NH * a.shape.D;
  pool.ParallelForBlocks(a.shape.B * tokens, RowsPerTask(width), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      T* const row = y_before + n * width;
      if (SlstmStarts(a.reset, n) || (n % tokens == 0 && !a.initial.y.defined())) {
        std::fill_n(row, width, T(0.0f));
      } else if (n % tokens == 0) {
        const float* const y = a.initial.y.as<float>() + n / tokens * width;
        for (int64_t e = 0; e < width; ++e) row[e] = static_cast<T>(y[e]);
      } else {
        std::memcpy(static_cast<void*>(row), a.y.as<T>() + (n - 1) * width, width * sizeof(T));
      }
    }
  });
}
}  // namespace

int64_t CpuOps::SlstmWorkspaceBytes(const SlstmShape& shape, DType compute) const {
  CheckSlstmShape(shape, compute);
  int64_t bytes = SlstmReferenceWorkspaceBytes(shape, compute);
  if (compute == DType::kF64) return bytes;
  // One token takes a path of its own, which a caller with room for T tokens may take as well.
  SlstmShape step = shape;
  step.T = 1;
  for (const bool backward : {false, true}) {
    for (const SlstmShape& s : {shape, step}) {
      bytes = std::max(bytes, Scratch({}, DimsOf(s), compute, backward).needed_bytes);
    }
  }
  return bytes;
}

void CpuOps::SlstmForward(const SlstmForwardArgs& a) {
  const DType compute = a.y.dtype;
  CheckSlstmForward(a, SlstmWorkspaceBytes(a.shape, compute));
  if (!Fast(compute) || a.shape.T == 0) return SlstmReferenceForward(a, pool_);
  const SlstmDims d = DimsOf(a.shape);
  const SlstmKernels& kernels = PickKernels(level_, compute, use_tiles_);
  const Scratch scratch(SlstmScratch(a.workspace), d, compute, /*backward=*/false);
  std::fill_n(scratch.zeros, d.width(), 0.0f);
  const SlstmForwardArrays arrays = {.y = a.y.data,
                                     .gates = a.gates.as<float>(),
                                     .c = a.c.as<float>(),
                                     .n = a.n.as<float>(),
                                     .m = a.m.as<float>(),
                                     .last = ArraysOf(a.last),
                                     .wx = a.wx.as<float>(),
                                     .recurrent = a.recurrent.data,
                                     .bias = a.bias.as<float>(),
                                     .reset = ResetOf(a.reset),
                                     .initial = ArraysOf(a.initial),
                                     .zeros = scratch.zeros};
  const auto panel_memory = [&](int64_t head, int64_t panel) {
    return scratch.packed + head * d.packed_floats() + panel * d.panel_floats();
  };
  const int64_t num_panels = d.num_panels();
  if (d.T == 1) {
    // nothing recurs: panels are tasks, each packs its part of R and uses it at once
    pool_.ParallelFor(d.NH * num_panels, [&](int64_t task) {
      const int64_t head = task / num_panels, panel = task % num_panels;
      kernels.step(d, arrays, head, panel, panel_memory(head, panel),
                   scratch.operands + task * kSlstmMaxSequences * d.Dp);
    });
    if (arrays.last.y != nullptr) kernels.copy_last(d, arrays);
    return;
  }
  pool_.ParallelFor(d.NH * num_panels, [&](int64_t task) {
    const int64_t head = task / num_panels, panel = task % num_panels;
    kernels.pack_panel(d, arrays.recurrent, head, panel, panel_memory(head, panel));
  });
  ForEachGroup(d, kernels, scratch, d.forward_floats(), pool_,
               [&](const SlstmGroup& group) { kernels.forward(d, arrays, group); });
}

void CpuOps::SlstmBackward(const SlstmBackwardArgs& a) {
  const DType compute = a.y.dtype;
  CheckSlstmBackward(a, SlstmWorkspaceBytes(a.shape, compute));
  if (!Fast(compute) || a.shape.T == 0) return SlstmReferenceBackward(a, pool_);
  const SlstmDims d = DimsOf(a.shape);
  const int64_t N = d.B * d.T, width = d.width();
  const SlstmKernels& kernels = PickKernels(level_, compute, use_tiles_);
  const Scratch scratch(SlstmScratch(a.workspace), d, compute, /*backward=*/true);
  std::fill_n(scratch.zeros, width, 0.0f);
  const SlstmBackwardArrays arrays = {.dwx = a.dwx.data,
                                      .dinitial = ArraysOf(a.dinitial),
                                      .dy = a.dy.data,
                                      .dlast = ArraysOf(a.dlast),
                                      .gates = a.gates.as<float>(),
                                      .c = a.c.as<float>(),
                                      .n = a.n.as<float>(),
                                      .reset = ResetOf(a.reset),
                                      .initial = ArraysOf(a.initial),
                                      .zeros = scratch.zeros,
                                      .dbias = scratch.dbias,
                                      .clip = static_cast<float>(a.gradient_clip),
                                      .cut = a.gradient_cut};
  pool_.ParallelFor(d.NH, [&](int64_t head) {
    kernels.pack_transposed(d, a.recurrent.data, head, scratch.packed + head * d.packed_floats());
  });
  ForEachGroup(d, kernels, scratch, d.backward_floats(), pool_,
               [&](const SlstmGroup& group) { kernels.backward(d, arrays, group); });
  for (int64_t unit = 0; unit < 4 * width; ++unit) {
    const int64_t gate = unit / width, head = unit % width / d.D, e = unit % d.D;
    float sum = 0.0f;
    for (int64_t b = 0; b < d.B; ++b) sum += scratch.dbias[((head * d.B + b) * 4 + gate) * d.Dp + e];
    a.dbias.as<float>()[unit] += sum;
  }
  if (N == 0) return;
  // dR of a gate and head: draw^T y_before over all tokens
  const Tensor y_before(scratch.y_before, compute, {N, width});
  compute == DType::kF32 ? FillBefore(a, y_before.as<float>(), pool_)
                         : FillBefore(a, y_before.as<bfloat16>(), pool_);
  for (int64_t block = 0; block < 4 * d.NH; ++block) {
    matmul_.Run({.c = a.drecurrent.Rows(block * d.D, d.D),
                 .a = a.dwx.Columns(block * d.D, d.D),
                 .b = y_before.Columns(block % d.NH * d.D, d.D),
                 .transpose_a = true,
                 .accumulate = true});
  }
}
}  // namespace carousel::cpu
