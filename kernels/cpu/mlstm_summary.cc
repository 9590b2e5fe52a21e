// Segments of a sequence on the CPU: the passes over tokens for f32 and bf16, and the folds.
//
// A fold reads each summary or gradient that takes part once and writes one state:
// (segments before + 1) * DHQK * DHV values per pair, 2 operations each.
#include "kernels/cpu/mlstm_summary.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/mlstm_check.h"
#include "kernels/cpu/mlstm_head.h"
#include "kernels/cpu/mlstm_summary_views.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

constexpr int64_t kFoldBlock = 4096;  // elements of one pair's C and n that a task makes

// Calls fn(b, head, begin, end) for blocks [begin, end) of every pair's DHQK * DHV + DHQK elements of C and
// n.
template <class Fn>
void ForEachBlock(const MlstmShape& s, ThreadPool& pool, Fn&& fn) {
  const int64_t size = s.DHQK * s.DHV + s.DHQK, blocks = CeilDiv(size, kFoldBlock);
  pool.ParallelFor(s.B * s.NH * blocks, [&](int64_t task) {
    const int64_t pair = task / blocks, begin = task % blocks * kFoldBlock;
    fn(pair / s.NH, pair % s.NH, begin, std::min(begin + kFoldBlock, size));
  });
}
// Calls fn(of_C, from, to) for the parts of elements [begin, end) that are elements [from, to) of C and of n.
template <class Fn>
void SplitBlock(const MlstmShape& s, int64_t begin, int64_t end, Fn&& fn) {
  const int64_t size = s.DHQK * s.DHV;
  if (begin < size) fn(true, begin, std::min(end, size));
  if (end > size) fn(false, std::max(begin, size) - size, end - size);
}

// One step over a segment: the state after it is factor * (the state before it) + own * (the segment's).
template <class W>
struct FoldStep {
  W factor, own;
};
template <class W>
FoldStep<W> StepOver(const SummaryViews<const W>& segment, W& m) {
  constexpr W kInfinity = std::numeric_limits<W>::infinity();
  const W from_before = *segment.G + m, m_segment = *segment.state.m;
  m = std::max(from_before, m_segment);
  // A segment that is cut off or that has no token gives no difference of infinities.
  return {.factor = from_before == -kInfinity ? W(0) : std::exp(from_before - m),
          .own = m_segment == -kInfinity ? W(0) : std::exp(m_segment - m)};
}

template <class W>
void Fold(const MlstmFoldArgs& args, ThreadPool& pool) {
  const MlstmShape& s = args.shape;
  const auto segment = [&](int64_t j, int64_t b, int64_t head) {
    return SummaryViews<const W>(args.summaries.as<W>() + j * MlstmSummaryElems(s), s, b, head);
  };
  ForEachBlock(s, pool, [&](int64_t b, int64_t head, int64_t begin, int64_t end) {
    const HeadState<W> out = HeadStateOf<W>(args.initial, s, b, head);
    std::vector<FoldStep<W>> steps(static_cast<size_t>(args.num_segments));
    W m = 0;
    int64_t first = 0;  // what is before this segment does not reach the state
    for (int64_t j = 0; j < args.num_segments; ++j) {
      if (j == args.index && begin == 0) *out.m = m;
      steps[j] = StepOver(segment(j, b, head), m);
      if (j < args.index && steps[j].factor == 0) first = j;
      if (begin == 0 && args.factors.defined())
        args.factors.as<W>()[(j * s.B + b) * s.NH + head] = steps[j].factor;
    }
    SplitBlock(s, begin, end, [&](bool of_C, int64_t from, int64_t to) {
      W* const y = of_C ? out.C : out.n;
      std::fill(y + from, y + to, W(0));
      for (int64_t j = first; j < args.index; ++j) {
        const SummaryViews<const W> x = segment(j, b, head);
        const W* const own = of_C ? x.state.C : x.state.n;
        const FoldStep<W> step = steps[j];
        if (j == first) {
          for (int64_t e = from; e < to; ++e) y[e] = step.own * own[e];
        } else {
          for (int64_t e = from; e < to; ++e) y[e] = step.factor * y[e] + step.own * own[e];
        }
      }
    });
  });
}

template <class W>
void FoldBackward(const MlstmFoldBackwardArgs& args, ThreadPool& pool) {
  const MlstmShape& s = args.shape;
  ForEachBlock(s, pool, [&](int64_t b, int64_t head, int64_t begin, int64_t end) {
    const HeadState<W> out = HeadStateOf<W>(args.dlast, s, b, head);
    SplitBlock(s, begin, end, [&](bool of_C, int64_t from, int64_t to) {
      W* const y = of_C ? out.C : out.n;
      std::fill(y + from, y + to, W(0));
      W weight = 1;  // product of the factors of the segments between
      for (int64_t j = args.index + 1; j < args.num_segments && weight != 0; ++j) {
        const HeadState<const W> x =
            StateGradientOf<const W>(args.dstates.as<W>() + j * MlstmStateGradientElems(s), s, b, head);
        const W* const dstate = of_C ? x.C : x.n;
        for (int64_t e = from; e < to; ++e) y[e] += weight * dstate[e];
        weight *= args.factors.as<W>()[(j * s.B + b) * s.NH + head];
      }
    });
  });
}
}  // namespace

void MlstmSummary(const MlstmSummaryArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles) {
  const MlstmShape& s = args.shape;
  const DType compute = args.k.dtype;
  const MlstmHeadDims dims = MlstmDimsOf(s, compute);
  const MlstmKernels& kernels = PickMlstmKernels(level, compute, use_tiles);
  const int64_t slot_bytes = MlstmSlotBytes(dims, MlstmPass::kForward);
  ForEachHead(s, args.workspace, slot_bytes, pool, [&](int64_t b, int64_t head, std::byte* slot) {
    MlstmScratch scratch(slot);
    const SummaryViews<float> out(args.summary.as<float>(), s, b, head);
    kernels.summary(dims, {.state = {out.state.C, out.state.n, out.state.m},
                           .G = out.G,
                           .k = ComputeRows(args.k, s, b, head, s.DHQK),
                           .v = ComputeRows(args.v, s, b, head, s.DHV),
                           .i_pre = WideRows(args.i_pre, s, b, head),
                           .f_pre = WideRows(args.f_pre, s, b, head),
                           .reset = ResetsOf(args.reset, s, b),
                           .scratch = CutMlstmScratch(scratch, dims, MlstmPass::kForward)});
  });
}

void MlstmSummaryBackward(const MlstmSummaryBackwardArgs& args, ThreadPool& pool, SimdLevel level,
                          bool use_tiles) {
  const MlstmShape& s = args.shape;
  const DType compute = args.q.dtype;
  MlstmHeadDims dims = MlstmDimsOf(s, compute);
  dims.exact_normalizer_gradient = args.normalizer_gradient == NormalizerGradient::kExact;
  const MlstmKernels& kernels = PickMlstmKernels(level, compute, use_tiles);
  const int64_t slot_bytes = MlstmSlotBytes(dims, MlstmPass::kForward);
  ForEachHead(s, args.workspace, slot_bytes, pool, [&](int64_t b, int64_t head, std::byte* slot) {
    MlstmScratch scratch(slot);
    const HeadState<float> out = StateGradientOf(args.dstate.as<float>(), s, b, head);
    kernels.summary_backward(dims, {.dstate = {out.C, out.n, nullptr},
                                    .dh = ComputeRows(args.dh, s, b, head, s.DHV),
                                    .q = ComputeRows(args.q, s, b, head, s.DHQK),
                                    .k = ComputeRows(args.k, s, b, head, s.DHQK),
                                    .i_pre = WideRows(args.i_pre, s, b, head),
                                    .f_pre = WideRows(args.f_pre, s, b, head),
                                    .reset = ResetsOf(args.reset, s, b),
                                    .initial = StateOf(args.initial, s, b, head),
                                    .h = ComputeRows(args.h, s, b, head, s.DHV),
                                    .denominator = WideRows(args.denominator, s, b, head),
                                    .m = WideRows(args.m, s, b, head),
                                    .scratch = CutMlstmScratch(scratch, dims, MlstmPass::kForward)});
  });
}

void MlstmFold(const MlstmFoldArgs& args, ThreadPool& pool) {
  args.summaries.dtype == DType::kF64 ? Fold<double>(args, pool) : Fold<float>(args, pool);
}
void MlstmFoldBackward(const MlstmFoldBackwardArgs& args, ThreadPool& pool) {
  args.dstates.dtype == DType::kF64 ? FoldBackward<double>(args, pool) : FoldBackward<float>(args, pool);
}

void CpuOps::MlstmSummary(const MlstmSummaryArgs& a) {
  CheckMlstmSummary(a, MlstmWorkspaceBytes(a.shape, a.k.dtype));
  if (!Fast(a.k.dtype)) return MlstmReferenceSummary(a, pool_);
  cpu::MlstmSummary(a, pool_, level_, use_tiles_);
}
void CpuOps::MlstmFold(const MlstmFoldArgs& a) {
  CheckMlstmFold(a);
  cpu::MlstmFold(a, pool_);
}
void CpuOps::MlstmSummaryBackward(const MlstmSummaryBackwardArgs& a) {
  CheckMlstmSummaryBackward(a, MlstmWorkspaceBytes(a.shape, a.q.dtype));
  if (!Fast(a.q.dtype)) return MlstmReferenceSummaryBackward(a, pool_);
  cpu::MlstmSummaryBackward(a, pool_, level_, use_tiles_);
}
void CpuOps::MlstmFoldBackward(const MlstmFoldBackwardArgs& a) {
  CheckMlstmFoldBackward(a);
  cpu::MlstmFoldBackward(a, pool_);
}
}  // namespace carousel::cpu
