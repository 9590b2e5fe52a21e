// mlstm_summary.cu - the mLSTM over segments of a sequence that lie on different ranks (core/ops.h; LASP-2,
// arXiv:2502.07563): checks, the order of the kernels and the folds.
//
//   summary            gates from no state -> records -> scan kForwardState -> G
//   summary backward   records -> normaliser -> division -> scan kBackwardState
// The scans of states are those by which a sequence is split over the blocks of a device: one product per
// chunk, 2 DHQK DHV operations per token and pair, where kH has two and the scores. They read each of their
// two operands once and write one state, 4 (DHQK DHV + DHQK) bytes per pair and wide f32. The normaliser's
// step, left out where no gradient goes through it, takes no matrix state: mlstm_normalizer.h beside the
// tensor-core scan, mlstm_plain_normalizer.h beside the generic one.
//
// The folds. MlstmFoldStepsKernel: a thread per pair goes over the segments. MlstmFoldKernel and
// MlstmFoldBackwardKernel: grid (blocks of kFoldElems elements of a pair's C and n x pairs), four elements
// per thread: every summary or gradient that takes part is read once, coalesced, and the state written once.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/mlstm_call.h"
#include "kernels/cuda/mlstm_normalizer.h"
#include "kernels/cuda/mlstm_plain_normalizer.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// ---- checks
void CheckFlat(const Tensor& x, const char* name, DType dtype, int64_t num_elems) {
  CAROUSEL_CHECK_MSG(
      x.dtype == dtype && x.HasShape({num_elems}) && x.contiguous(),
      std::string(name) + " must be " + std::to_string(num_elems) + " values of " + NameOf(dtype));
}
void CheckSegments(const MlstmShape& s, DType wide, int64_t num_segments, int64_t index) {
  CheckShape(s);
  CAROUSEL_CHECK(wide == DType::kF32 || wide == DType::kF64);
  CAROUSEL_CHECK_GE(num_segments, 1);
  CAROUSEL_CHECK(index >= 0 && index < num_segments);
}
void CheckSummary(const MlstmSummaryArgs& a, int64_t workspace_bytes) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType compute = a.k.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK(IsFloat(compute));
  const int64_t N = s.B * s.T;
  CheckFlat(a.summary, "summary", wide, MlstmSummaryElems(s));
  CheckRows(a.k, "k", compute, N, s.NH * s.DHQK);
  CheckRows(a.v, "v", compute, N, s.NH * s.DHV);
  CheckRows(a.i_pre, "i_pre", wide, N, s.NH);
  CheckRows(a.f_pre, "f_pre", wide, N, s.NH);
  CheckReset(a.reset, N);
  CheckWorkspace(a.workspace, workspace_bytes);
}
void CheckSummaryBackward(const MlstmSummaryBackwardArgs& a, int64_t workspace_bytes) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType compute = a.q.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK(IsFloat(compute));
  const int64_t N = s.B * s.T;
  CheckFlat(a.dstate, "dstate", wide, MlstmStateGradientElems(s));
  CheckRows(a.dh, "dh", compute, N, s.NH * s.DHV);
  CheckRows(a.q, "q", compute, N, s.NH * s.DHQK);
  CheckRows(a.k, "k", compute, N, s.NH * s.DHQK);
  CheckRows(a.i_pre, "i_pre", wide, N, s.NH);
  CheckRows(a.f_pre, "f_pre", wide, N, s.NH);
  CheckRows(a.h, "h", compute, N, s.NH * s.DHV);
  CheckRows(a.denominator, "denominator", wide, N, s.NH);
  CheckRows(a.m, "m", wide, N, s.NH);
  CheckReset(a.reset, N);
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  CheckWorkspace(a.workspace, workspace_bytes);
}

// ---- the passes over tokens
template <class T, class E>
class SummaryCall : MlstmCall<T, E> {
 public:
  using Base = MlstmCall<T, E>;
  using W = Wide<T>;
  using Base::Base;
  SummaryCall(Context& context, const MlstmSummaryArgs& a, const MlstmConfig& config)
      : Base(context, a.shape, a.workspace, MlstmPass::kForward, config) {}
  SummaryCall(Context& context, const MlstmSummaryBackwardArgs& a, const MlstmConfig& config)
      : Base(context, a.shape, a.workspace, MlstmPass::kSummaryBackward, config) {}

  void Summary(const MlstmSummaryArgs& a) {
    const int64_t pairs = s_.B * s_.NH;
    W* const C = a.summary.as<W>();
    W* const n = C + pairs * s_.DHQK * s_.DHV;
    W* const m = n + pairs * s_.DHQK;
    MlstmGateInputs<W> gates = GatesOf<W>(a);
    if (!gates.sigmoid_input_gate) gates.start_m = kMlstmNoStabiliser<W>;
    LaunchMlstmForwardGates<E, W>(context_, {.in = gates,
                                             .records = room_.records,
                                             .gamma = room_.gamma,
                                             .m = {},
                                             .last_m = m,
                                             .chunk_sums = room_.chunk_sums,
                                             .m_start = room_.m_start});
    LaunchMlstmSegmentGates<W>(context_,
                               {.in = gates, .G = m + pairs, .last_m = m, .chunk_sums = room_.chunk_sums});
    args_.k = RowsOf<const T>(a.k);
    args_.v = RowsOf<const T>(a.v);
    ScanState(MlstmRole::kForwardState, {C, n});
  }

  void Backward(const MlstmSummaryBackwardArgs& a) {
    args_.q = RowsOf<const T>(a.q);
    args_.k = RowsOf<const T>(a.k);
    args_.dh = RowsOf<const T>(a.dh);
    LaunchMlstmRecords<E, W>(
        context_,
        {.in = GatesOf<W>(a), .records = room_.records, .gamma = room_.gamma, .m = RowsOf<const W>(a.m)});
    MlstmDivisionArgs<E, W> division;
    division.B = s_.B;
    division.num_tokens = s_.T;
    division.NH = s_.NH;
    division.NC = args_.NC;
    division.records = room_.records;
    division.eps = static_cast<W>(s_.eps);
    if (s_.normalize) division.denominator = RowsOf<const W>(a.denominator);
    if (s_.normalize && a.normalizer_gradient == NormalizerGradient::kExact && args_.NC > 0) {
      Normaliser(a);
      division.a = room_.a;
      division.dots = room_.delta_dots;
      division.divided = true;
      division.slices = 1;
    }
    LaunchMlstmDivision<E, W>(context_, division);
    W* const dC = a.dstate.as<W>();
    ScanState(MlstmRole::kBackwardState, {dC, dC + s_.B * s_.NH * s_.DHQK * s_.DHV});
  }

 private:
  using Base::args_, Base::context_, Base::room_, Base::s_;
  using Base::ScanState;

  // a and delta_dots
  void Normaliser(const MlstmSummaryBackwardArgs& a) {
    const auto launch = [&]<class Args>(Args args, auto run) {
      args.B = s_.B;
      args.num_tokens = s_.T;
      args.NH = s_.NH;
      args.DHQK = s_.DHQK;
      args.DHV = s_.DHV;
      args.NC = args_.NC;
      args.q = args_.q;
      args.k = args_.k;
      args.h = RowsOf<const T>(a.h);
      args.dh = args_.dh;
      args.records = room_.records;
      args.gamma = room_.gamma;
      args.initial_n = DataOrNull<W>(a.initial.n);
      args.n = room_.n;
      args.a = room_.a;
      args.dots = room_.delta_dots;
      run(context_, args);
    };
    if constexpr (kTensorCores<E>) {
      launch(MlstmNormalizerArgs(), LaunchMlstmNormalizer);
    } else {
      launch(MlstmPlainNormalizerArgs<T>(), LaunchMlstmPlainNormalizer<T>);
    }
  }
};

// ---- the folds
constexpr int kFoldThreads = 256;
constexpr int kFoldElems = 4 * kFoldThreads;

// `pairs` pairs, each with `size` elements of C and DHQK of n.
struct FoldShape {
  int64_t pairs, size, DHQK, num_segments, index, blocks_per_pair;
};
FoldShape FoldShapeOf(const MlstmShape& s, int64_t num_segments, int64_t index) {
  const int64_t size = s.DHQK * s.DHV;
  return {s.B * s.NH, size, s.DHQK, num_segments, index, CeilDiv(size + s.DHQK, kFoldElems)};
}
// This thread's i-th element of C and n: `in` a segment's [C | n], and `to` one state.
template <class W>
struct FoldElement {
  __device__ FoldElement(const FoldShape& x, int i, const MlstmScanState<W>& state)
      : pair(blockIdx.x / x.blocks_per_pair) {
    const int64_t e = blockIdx.x % x.blocks_per_pair * kFoldElems + i * kFoldThreads + threadIdx.x;
    if (e < x.size) {
      in = pair * x.size + e;
      to = state.C + in;
    } else if (e < x.size + x.DHQK) {
      const int64_t at = pair * x.DHQK + e - x.size;
      in = x.pairs * x.size + at;
      to = state.n + at;
    }
  }
  int64_t pair, in = 0;
  W* to = nullptr;  // null: there is no such element
};

// factors, and for every segment before `index` what its own state is multiplied by in `steps` (num_segments,
// pairs, 2) = [factor, own]. first (pairs): what is before this segment does not reach the state.
template <class W>
__global__ void __launch_bounds__(kFoldThreads)
    MlstmFoldStepsKernel(FoldShape x, const W* summaries, W* m_out, W* factors, W* steps, int32_t* first) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kFoldThreads + threadIdx.x;
  if (pair >= x.pairs) return;
  const int64_t stabilisers = x.pairs * (x.size + x.DHQK), elems = stabilisers + 2 * x.pairs;
  const W infinity = static_cast<W>(HUGE_VAL);
  W m = 0;
  int32_t from = 0;
  for (int64_t j = 0; j < x.num_segments; ++j) {
    if (j == x.index) m_out[pair] = m;
    const W* const segment = summaries + j * elems + stabilisers;
    const W before = segment[x.pairs + pair] + m, own = segment[pair];
    m = before > own ? before : own;
    // A segment that is cut off or that has no token gives no difference of infinities.
    const W factor = before == -infinity ? W(0) : exp(before - m);
    if (factors != nullptr) factors[j * x.pairs + pair] = factor;
    if (j >= x.index) continue;
    if (factor == 0) from = static_cast<int32_t>(j);
    steps[(j * x.pairs + pair) * 2] = factor;
    steps[(j * x.pairs + pair) * 2 + 1] = own == -infinity ? W(0) : exp(own - m);
  }
  first[pair] = from;
}

template <class W>
__global__ void __launch_bounds__(kFoldThreads)
    MlstmFoldKernel(FoldShape x, const W* summaries, const W* steps, const int32_t* first,
                    MlstmScanState<W> initial) {
  const int64_t elems = x.pairs * (x.size + x.DHQK + 2);
#pragma unroll
  for (int i = 0; i < kFoldElems / kFoldThreads; ++i) {
    const FoldElement<W> place(x, i, initial);
    if (place.to == nullptr) continue;
    const int64_t begin = first[place.pair];
    W state = 0;
    for (int64_t j = begin; j < x.index; ++j) {
      const W* const step = steps + (j * x.pairs + place.pair) * 2;
      const W own = step[1] * summaries[j * elems + place.in];
      state = j == begin ? own : step[0] * state + own;
    }
    *place.to = state;
  }
}

template <class W>
__global__ void __launch_bounds__(kFoldThreads)
    MlstmFoldBackwardKernel(FoldShape x, const W* dstates, const W* factors, MlstmScanState<W> dlast) {
  const int64_t elems = x.pairs * (x.size + x.DHQK);
#pragma unroll
  for (int i = 0; i < kFoldElems / kFoldThreads; ++i) {
    const FoldElement<W> place(x, i, dlast);
    if (place.to == nullptr) continue;
    W gradient = 0, weight = 1;  // weight: the product of the factors of the segments between
    for (int64_t j = x.index + 1; j < x.num_segments && weight != 0; ++j) {
      gradient += weight * dstates[j * elems + place.in];
      weight *= factors[j * x.pairs + place.pair];
    }
    *place.to = gradient;
  }
}

template <class W>
void Fold(Context& context, const MlstmFoldArgs& a) {
  const FoldShape x = FoldShapeOf(a.shape, a.num_segments, a.index);
  const int64_t steps_bytes = RoundUp(2 * x.index * x.pairs * static_cast<int64_t>(sizeof(W)), kMlstmAlign);
  auto* const scratch =
      static_cast<std::byte*>(context.Scratch(steps_bytes + x.pairs * static_cast<int64_t>(sizeof(int32_t))));
  W* const steps = reinterpret_cast<W*>(scratch);
  int32_t* const first = reinterpret_cast<int32_t*>(scratch + steps_bytes);
  const W* const summaries = a.summaries.as<W>();
  context.Launch(MlstmFoldStepsKernel<W>,
                 {.grid = GridExtent(CeilDiv(x.pairs, kFoldThreads)),
                  .block = kFoldThreads,
                  .name = "MlstmFoldStepsKernel"},
                 x, summaries, a.initial.m.as<W>(), DataOrNull<W>(a.factors), steps, first);
  context.Launch(
      MlstmFoldKernel<W>,
      {.grid = GridExtent(x.pairs * x.blocks_per_pair), .block = kFoldThreads, .name = "MlstmFoldKernel"}, x,
      summaries, steps, first, StateOf<W>(a.initial));
}

template <class W>
void FoldBackward(Context& context, const MlstmFoldBackwardArgs& a) {
  const FoldShape x = FoldShapeOf(a.shape, a.num_segments, a.index);
  context.Launch(MlstmFoldBackwardKernel<W>,
                 {.grid = GridExtent(x.pairs * x.blocks_per_pair),
                  .block = kFoldThreads,
                  .name = "MlstmFoldBackwardKernel"},
                 x, a.dstates.as<W>(), a.factors.as<W>(), StateOf<W>(a.dlast));
}
}  // namespace

void DeviceOps::MlstmSummary(const MlstmSummaryArgs& a) {
  const MlstmShape& s = a.shape;
  CheckSummary(a, MlstmWorkspaceBytes(s, a.k.dtype));
  if (s.B == 0) return;
  DispatchFloat(a.k.dtype, [&]<class T>() {
    const MlstmConfig config = PickMlstmConfig(s, a.k.dtype, context_.info());
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (config.tensor_cores && Aligned(a.k) && Aligned(a.v))
        return SummaryCall<T, float>(context_, a, config).Summary(a);
    }
    SummaryCall<T, double>(context_, a, config).Summary(a);
  });
}

void DeviceOps::MlstmSummaryBackward(const MlstmSummaryBackwardArgs& a) {
  const MlstmShape& s = a.shape;
  CheckSummaryBackward(a, MlstmWorkspaceBytes(s, a.q.dtype));
  if (s.B == 0) return;
  DispatchFloat(a.q.dtype, [&]<class T>() {
    const MlstmConfig config = PickMlstmConfig(s, a.q.dtype, context_.info());
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (config.tensor_cores && Aligned(a.q) && Aligned(a.k) && Aligned(a.h) && Aligned(a.dh))
        return SummaryCall<T, float>(context_, a, config).Backward(a);
    }
    SummaryCall<T, double>(context_, a, config).Backward(a);
  });
}

void DeviceOps::MlstmFold(const MlstmFoldArgs& a) {
  const MlstmShape& s = a.shape;
  const DType wide = a.summaries.dtype;
  CheckSegments(s, wide, a.num_segments, a.index);
  CheckFlat(a.summaries, "summaries", wide, a.num_segments * MlstmSummaryElems(s));
  CAROUSEL_CHECK_MSG(a.initial.C.defined(), "initial must be given");
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  CAROUSEL_CHECK_OPTIONAL(a.factors, wide, {a.num_segments, s.B, s.NH});
  if (s.B == 0) return;
  wide == DType::kF64 ? Fold<double>(context_, a) : Fold<float>(context_, a);
}

void DeviceOps::MlstmFoldBackward(const MlstmFoldBackwardArgs& a) {
  const MlstmShape& s = a.shape;
  const DType wide = a.dstates.dtype;
  CheckSegments(s, wide, a.num_segments, a.index);
  CheckFlat(a.dstates, "dstates", wide, a.num_segments * MlstmStateGradientElems(s));
  CAROUSEL_CHECK_TENSOR(a.factors, wide, {a.num_segments, s.B, s.NH});
  CAROUSEL_CHECK_MSG(a.dlast.C.defined(), "dlast must be given");
  CheckState(a.dlast, "dlast", s, wide, /*needs_m=*/false);
  if (s.B == 0) return;
  wide == DType::kF64 ? FoldBackward<double>(context_, a) : FoldBackward<float>(context_, a);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
