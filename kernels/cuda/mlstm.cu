// mlstm.cu - the mLSTM cell (xLSTM, arXiv:2405.04517; chunkwise arXiv:2503.14376): checks, the choice of a
// scan and the order of its kernels.
//
//   forward   gates -> records -> scan kH                      (one token: mlstm_step.h instead)
//   backward  records -> normaliser -> fold -> scans kDQ, kDV, kDK -> gradients of the gates
// The normaliser's step gives its value with its sign and dh.h, which nobody keeps: by mlstm_normalizer.h
// beside the tensor-core scan, which needs no matrix state for it, by the scan kDelta, which repeats the
// forward, elsewhere. It is left out where no gradient goes through the normaliser. A sequence that is split
// into segments has a scan of the states and LaunchMlstmCombine before the first scan of each direction.
#include <climits>
#include <type_traits>

#include "core/base/int_math.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/mlstm_config.h"
#include "kernels/cuda/mlstm_gates.h"
#include "kernels/cuda/mlstm_generic.h"
#include "kernels/cuda/mlstm_normalizer.h"
#include "kernels/cuda/mlstm_step.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// ---- checks
void CheckShape(const MlstmShape& s) {
  CAROUSEL_CHECK(s.B >= 0 && s.T >= 0 && s.NH >= 1 && s.DHQK >= 1 && s.DHV >= 1);
  CAROUSEL_CHECK_GE(s.L, 1);
  CAROUSEL_CHECK_GE(s.eps, 0.0);
  CAROUSEL_CHECK_MSG(s.normalize || s.input_gate == InputGate::kSigmoid,
                     "the exponential input gate needs the normalizer");
}
void CheckRows(const Tensor& x, const char* name, DType dtype, int64_t rows, int64_t width) {
  CAROUSEL_CHECK_MSG(x.dtype == dtype,
                     std::string(name) + " must be " + NameOf(dtype) + ", is " + NameOf(x.dtype));
  CAROUSEL_CHECK_MSG(
      x.HasShape({rows, width}) && x.row_stride >= width,
      std::string(name) + " must be (" + std::to_string(rows) + ", " + std::to_string(width) + ")");
  CAROUSEL_CHECK_MSG(x.data != nullptr || rows * width == 0, std::string(name) + " has no memory");
}
void CheckState(const MlstmState& state, const char* name, const MlstmShape& s, DType wide, bool needs_m) {
  const std::string prefix = name;
  if (!state.C.defined()) {
    CAROUSEL_CHECK_MSG(!state.n.defined() && !state.m.defined(), prefix + " must have C, n and m, or none");
    return;
  }
  CAROUSEL_CHECK_MSG(state.C.dtype == wide && state.C.HasShape({s.B, s.NH, s.DHQK, s.DHV}), prefix + ".C");
  CAROUSEL_CHECK_MSG(state.n.dtype == wide && state.n.HasShape({s.B, s.NH, s.DHQK}), prefix + ".n");
  if (!needs_m && !state.m.defined()) return;
  CAROUSEL_CHECK_MSG(state.m.dtype == wide && state.m.HasShape({s.B, s.NH}) && state.m.contiguous(),
                     prefix + ".m");
}
void CheckReset(const Tensor& reset, int64_t rows) {
  if (!reset.defined()) return;
  CAROUSEL_CHECK(reset.dtype == DType::kU8);
  CAROUSEL_CHECK_SHAPE(reset, {rows});
}
void CheckWorkspace(const Tensor& workspace, int64_t bytes) {
  CAROUSEL_CHECK_MSG(workspace.defined() && workspace.num_bytes() >= bytes,
                     "workspace needs " + std::to_string(bytes) + " bytes");
}
// What both directions read.
template <class Args>
void CheckInputs(const Args& a, int64_t workspace_bytes) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType compute = a.q.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK(IsFloat(compute));
  const int64_t N = s.B * s.T;
  CheckRows(a.h, "h", compute, N, s.NH * s.DHV);
  CheckRows(a.denominator, "denominator", wide, N, s.NH);
  CheckRows(a.m, "m", wide, N, s.NH);
  CheckRows(a.q, "q", compute, N, s.NH * s.DHQK);
  CheckRows(a.k, "k", compute, N, s.NH * s.DHQK);
  CheckRows(a.v, "v", compute, N, s.NH * s.DHV);
  CheckRows(a.i_pre, "i_pre", wide, N, s.NH);
  CheckRows(a.f_pre, "f_pre", wide, N, s.NH);
  CheckReset(a.reset, N);
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  CheckWorkspace(a.workspace, workspace_bytes);
}
void CheckBackward(const MlstmBackwardArgs& a, int64_t workspace_bytes) {
  CheckInputs(a, workspace_bytes);
  const MlstmShape& s = a.shape;
  const DType compute = a.q.dtype, wide = WideOf(compute);
  const int64_t N = s.B * s.T;
  CheckRows(a.dq, "dq", compute, N, s.NH * s.DHQK);
  CheckRows(a.dk, "dk", compute, N, s.NH * s.DHQK);
  CheckRows(a.dv, "dv", compute, N, s.NH * s.DHV);
  CheckRows(a.di_pre, "di_pre", wide, N, s.NH);
  CheckRows(a.df_pre, "df_pre", wide, N, s.NH);
  CheckRows(a.dh, "dh", compute, N, s.NH * s.DHV);
  CheckState(a.dinitial, "dinitial", s, wide, /*needs_m=*/true);
  CheckState(a.dlast, "dlast", s, wide, /*needs_m=*/false);
}

// ---- workspace
constexpr int64_t kAlign = 256;  // bytes

// Cuts arrays out of the workspace; without a base address it only counts.
class Cutter {
 public:
  explicit Cutter(const Tensor& workspace) {
    const auto address = reinterpret_cast<uintptr_t>(workspace.data);
    base_ = static_cast<std::byte*>(workspace.data) +
            (RoundUp(static_cast<int64_t>(address), kAlign) - static_cast<int64_t>(address));
  }
  Cutter() = default;
  template <class W>
  W* Take(int64_t num_elems) {
    std::byte* const place = base_ == nullptr ? nullptr : base_ + used_bytes_;
    used_bytes_ += RoundUp(num_elems * static_cast<int64_t>(sizeof(W)), kAlign);
    return reinterpret_cast<W*>(place);
  }
  int64_t used_bytes() const { return used_bytes_; }

 private:
  std::byte* base_ = nullptr;
  int64_t used_bytes_ = 0;
};

enum class Pass { kForward, kBackward };

// E: float for the tensor-core scan, double for the generic one.
template <class E>
constexpr bool kTensorCores = std::is_same_v<E, float>;
template <class E>
int64_t Slices(MlstmRole role, const MlstmShape& s) {
  return kTensorCores<E> ? MlstmScanSlices(role, s.DHQK, s.DHV) : MlstmGenericSlices(role, s.DHQK, s.DHV);
}

template <class W, class E>
struct Room {
  Room(Cutter& cut, const MlstmShape& s, Pass pass, const DeviceInfo& device) {
    const int64_t pairs = s.B * s.NH, NC = CeilDiv(s.T, kMlstmChunk), tokens = pairs * NC * kMlstmChunk;
    records = cut.Take<MlstmRecord<E, W>>(pairs * NC);
    gamma = cut.Take<W>(pairs * NC);
    chunk_sums = cut.Take<double>(pairs * NC * 2);
    if (kTensorCores<E>) {
      const int64_t num_states = MaxMlstmSegmentStates(device, s) * s.NH;
      segments.C = cut.Take<W>(num_states * s.DHQK * s.DHV);
      segments.n = cut.Take<W>(num_states * s.DHQK);
    } else {
      generic = cut.Take<W>(MlstmGenericScratchElems(s.B, s.NH, s.DHQK, s.DHV, /*num_segments=*/1));
    }
    if (pass == Pass::kForward) {
      m_start = cut.Take<W>(pairs * (NC + 1));
      initial_n = cut.Take<W>(pairs * s.DHQK);
      step_factors = cut.Take<W>(pairs * kMlstmStepFactors);
      return;
    }
    a = cut.Take<W>(tokens);
    if (kTensorCores<E>) {
      n = cut.Take<W>(pairs * NC * s.DHQK);
      const int64_t num_anchors = pairs * NumMlstmAnchors(NC);
      anchors.C = cut.Take<bfloat16>(num_anchors * s.DHQK * s.DHV);
      anchors.n = cut.Take<W>(num_anchors * s.DHQK);
      anchors.dots = cut.Take<W>(num_anchors * MlstmScanAnchorParts(s.DHQK, s.DHV));
    }
    delta_dots = cut.Take<W>(tokens * (kTensorCores<E> ? 1 : Slices<E>(MlstmRole::kDelta, s)));
    q_dots = cut.Take<W>(tokens * Slices<E>(MlstmRole::kDQ, s));
    k_dots = cut.Take<W>(tokens * Slices<E>(MlstmRole::kDK, s));
    last.C = cut.Take<W>(pairs * s.DHQK * s.DHV);
    last.n = cut.Take<W>(pairs * s.DHQK);
    final_term = cut.Take<double>(pairs);
  }
  MlstmRecord<E, W>* records;
  W* gamma;
  double* chunk_sums;          // (pairs, NC, 2)
  MlstmScanState<W> segments;  // of one direction at a time
  W* generic = nullptr;
  W *m_start = nullptr, *initial_n = nullptr, *step_factors = nullptr;  // forward
  W* n = nullptr;
  W *a = nullptr, *delta_dots = nullptr, *q_dots = nullptr, *k_dots = nullptr;  // backward
  MlstmAnchors<W> anchors;
  MlstmScanState<W> last;  // the last state, where a gradient arrives there
  double* final_term = nullptr;
};
template <class W, class E>
int64_t RoomBytes(const MlstmShape& s, const DeviceInfo& device) {
  Cutter forward, backward;
  Room<W, E>(forward, s, Pass::kForward, device);
  Room<W, E>(backward, s, Pass::kBackward, device);
  return std::max(forward.used_bytes(), backward.used_bytes()) + kAlign;
}

// ---- views
template <class T>
MlstmRows<T> RowsOf(const Tensor& x) {
  return {x.as<std::remove_const_t<T>>(), x.row_stride};
}
template <class W>
MlstmScanState<W> StateOf(const MlstmState& state) {
  if (!state.C.defined()) return {};
  return {state.C.as<std::remove_const_t<W>>(), state.n.as<std::remove_const_t<W>>()};
}
template <class W>
MlstmScanState<const W> Const(const MlstmScanState<W>& state) {
  return {state.C, state.n};
}
template <class W, class Args>
MlstmGateInputs<W> GatesOf(const Args& a) {
  const MlstmShape& s = a.shape;
  return {.B = s.B,
          .num_tokens = s.T,
          .NH = s.NH,
          .NC = CeilDiv(s.T, kMlstmChunk),
          .DHQK = s.DHQK,
          .sigmoid_input_gate = s.input_gate == InputGate::kSigmoid,
          .i_pre = RowsOf<const W>(a.i_pre),
          .f_pre = RowsOf<const W>(a.f_pre),
          .reset = DataOrNull<uint8_t>(a.reset),
          .initial_m = s.input_gate == InputGate::kSigmoid ? nullptr : DataOrNull<W>(a.initial.m)};
}
bool Aligned(const Tensor& x) { return MlstmScanSupports(RowsOf<const bfloat16>(x)); }

// ---- one call, by one kind of scan
template <class T, class E>
class Call {
 public:
  using W = Wide<T>;
  template <class Args>
  Call(Context& context, const Args& a, Pass pass, const MlstmConfig& config)
      : context_(context), s_(a.shape), cut_(a.workspace), room_(cut_, s_, pass, context.info()) {
    args_.B = s_.B;
    args_.num_tokens = s_.T;
    args_.NH = s_.NH;
    args_.DHQK = s_.DHQK;
    args_.DHV = s_.DHV;
    args_.NC = CeilDiv(s_.T, kMlstmChunk);
    args_.num_segments = kTensorCores<E> ? config.segments.num_segments : 1;
    args_.chunks_per_segment = kTensorCores<E> ? config.segments.chunks_per_segment : args_.NC;
    args_.q = RowsOf<const T>(a.q);
    args_.k = RowsOf<const T>(a.k);
    args_.v = RowsOf<const T>(a.v);
    args_.records = room_.records;
    args_.gamma = room_.gamma;
    args_.eps = static_cast<W>(s_.eps);
    args_.normalize = s_.normalize;
  }

  void Forward(const MlstmForwardArgs& a) {
    MlstmScanState<const W> initial = StateOf<const W>(a.initial);
    const MlstmScanState<W> last = StateOf<W>(a.last);
    if (initial.n != nullptr && initial.n == last.n) {  // every block reads n, one of them writes it
      CheckCuda(cudaMemcpyAsync(room_.initial_n, initial.n, a.initial.n.num_bytes(), cudaMemcpyDeviceToDevice,
                                context_.stream()),
                "copy of the initial n");
      initial.n = room_.initial_n;
    }
    LaunchMlstmForwardGates<E, W>(context_, {.in = GatesOf<W>(a),
                                             .records = room_.records,
                                             .gamma = room_.gamma,
                                             .m = RowsOf<W>(a.m),
                                             .last_m = DataOrNull<W>(a.last.m),
                                             .chunk_sums = room_.chunk_sums,
                                             .m_start = room_.m_start});
    MlstmScanArgs<T, E> x = args_;
    x.initial = Split(MlstmRole::kForwardState, initial);
    x.final = last;
    x.out = RowsOf<T>(a.h);
    x.denominator = RowsOf<W>(a.denominator);
    Scan(MlstmRole::kH, x);
  }

  void Step(const MlstmForwardArgs& a) {
    LaunchMlstmStep<T>(context_, {.in = GatesOf<W>(a),
                                  .DHV = s_.DHV,
                                  .q = args_.q,
                                  .k = args_.k,
                                  .v = args_.v,
                                  .h = RowsOf<T>(a.h),
                                  .denominator = RowsOf<W>(a.denominator),
                                  .m = RowsOf<W>(a.m),
                                  .initial = StateOf<const W>(a.initial),
                                  .last = StateOf<W>(a.last),
                                  .last_m = DataOrNull<W>(a.last.m),
                                  .factors = room_.step_factors,
                                  .eps = static_cast<W>(s_.eps),
                                  .normalize = s_.normalize});
  }

  void Backward(const MlstmBackwardArgs& a) {
    const int64_t pairs = s_.B * s_.NH;
    const MlstmScanState<const W> initial = StateOf<const W>(a.initial), dlast = StateOf<const W>(a.dlast);
    const MlstmScanState<W> dinitial = StateOf<W>(a.dinitial);
    args_.dh = RowsOf<const T>(a.dh);
    LaunchMlstmRecords<E, W>(
        context_,
        {.in = GatesOf<W>(a), .records = room_.records, .gamma = room_.gamma, .m = RowsOf<const W>(a.m)});
    const MlstmScanState<const W> forward_states = Split(MlstmRole::kForwardState, initial);

    MlstmFoldArgs<E, W> fold;
    fold.B = s_.B;
    fold.num_tokens = s_.T;
    fold.NH = s_.NH;
    fold.NC = args_.NC;
    fold.records = room_.records;
    fold.eps = static_cast<W>(s_.eps);
    if (s_.normalize) fold.denominator = RowsOf<const W>(a.denominator);
    if (s_.normalize && a.normalizer_gradient == NormalizerGradient::kExact) {
      Normaliser(a, initial, forward_states);
      fold.a = room_.a;
      fold.dots = room_.delta_dots;
      fold.divided = kTensorCores<E>;
      fold.slices = kTensorCores<E> ? 1 : static_cast<int>(Slices<E>(MlstmRole::kDelta, s_));
    }
    LaunchMlstmFold<E, W>(context_, fold);

    // dq and, where a gradient arrives there, the last state
    MlstmScanArgs<T, E> x = args_;
    x.initial = forward_states;
    if (dlast.C != nullptr) x.final = room_.last;
    x.out = RowsOf<T>(a.dq);
    x.dots = room_.q_dots;
    x.anchors = room_.anchors;
    Scan(MlstmRole::kDQ, x);

    const MlstmScanState<const W> backward_states = Split(MlstmRole::kBackwardState, dlast);
    x = args_;
    x.initial.C = backward_states.C;
    x.out = RowsOf<T>(a.dv);
    Scan(MlstmRole::kDV, x);
    x.initial = backward_states;
    x.final = dinitial;
    x.out = RowsOf<T>(a.dk);
    x.dots = room_.k_dots;
    x.anchors = room_.anchors;
    Scan(MlstmRole::kDK, x);

    if (dlast.C != nullptr) {
      LaunchMlstmStateDots<W, double>(context_, {.out = room_.final_term,
                                                 .a = Const(room_.last),
                                                 .b = dlast,
                                                 .num_pairs = pairs,
                                                 .DHQK = s_.DHQK,
                                                 .DHV = s_.DHV});
    }
    LaunchMlstmGateGradients<W>(context_,
                                {.in = GatesOf<W>(a),
                                 .di_pre = RowsOf<W>(a.di_pre),
                                 .df_pre = RowsOf<W>(a.df_pre),
                                 .has_initial = initial.C != nullptr,
                                 .q_dots = room_.q_dots,
                                 .k_dots = room_.k_dots,
                                 .q_slices = static_cast<int>(Slices<E>(MlstmRole::kDQ, s_)),
                                 .k_slices = static_cast<int>(Slices<E>(MlstmRole::kDK, s_)),
                                 .final_term = dlast.C != nullptr ? room_.final_term : nullptr,
                                 .anchor_dots = room_.anchors.dots,
                                 .anchor_parts = kTensorCores<E> ? MlstmScanAnchorParts(s_.DHQK, s_.DHV) : 0,
                                 .chunk_sums = room_.chunk_sums});
    if (dinitial.C == nullptr) return;
    const bool has_m = s_.input_gate == InputGate::kExponential && initial.C != nullptr;
    LaunchMlstmStateDots<W, W>(context_, {.out = a.dinitial.m.as<W>(),
                                          .a = has_m ? initial : MlstmScanState<const W>(),
                                          .b = Const(dinitial),
                                          .num_pairs = pairs,
                                          .DHQK = s_.DHQK,
                                          .DHV = s_.DHV});
  }

 private:
  // a and delta_dots
  void Normaliser(const MlstmBackwardArgs& a, const MlstmScanState<const W>& initial,
                  const MlstmScanState<const W>& forward_states) {
    if constexpr (kTensorCores<E>) {
      LaunchMlstmNormalizer(context_, {.B = s_.B,
                                       .num_tokens = s_.T,
                                       .NH = s_.NH,
                                       .DHQK = s_.DHQK,
                                       .DHV = s_.DHV,
                                       .NC = args_.NC,
                                       .q = args_.q,
                                       .k = args_.k,
                                       .h = RowsOf<const T>(a.h),
                                       .dh = args_.dh,
                                       .records = room_.records,
                                       .gamma = room_.gamma,
                                       .initial_n = initial.n,
                                       .n = room_.n,
                                       .a = room_.a,
                                       .dots = room_.delta_dots});
    } else {
      MlstmScanArgs<T, E> x = args_;
      x.initial = forward_states;
      x.a = room_.a;
      x.dots = room_.delta_dots;
      Scan(MlstmRole::kDelta, x);
    }
  }
  void Scan(MlstmRole role, const MlstmScanArgs<T, E>& x) {
    if constexpr (kTensorCores<E>) {
      LaunchMlstmScan(context_, role, x);
    } else {
      LaunchMlstmGeneric<T>(context_, role, x, room_.generic);
    }
  }
  // The states that the segments begin with: `first` itself where there is one segment.
  MlstmScanState<const W> Split(MlstmRole state_role, const MlstmScanState<const W>& first) {
    if constexpr (kTensorCores<E>) {
      if (args_.num_segments > 1) {
        MlstmScanArgs<T, E> x = args_;
        x.final = room_.segments;
        Scan(state_role, x);
        LaunchMlstmCombine<W>(context_, {.states = room_.segments,
                                         .first = first,
                                         .gamma = room_.gamma,
                                         .num_pairs = s_.B * s_.NH,
                                         .DHQK = s_.DHQK,
                                         .DHV = s_.DHV,
                                         .NC = args_.NC,
                                         .num_segments = args_.num_segments,
                                         .chunks_per_segment = args_.chunks_per_segment,
                                         .reverse = IsReverse(state_role)});
        return Const(room_.segments);
      }
    }
    return first;
  }

  Context& context_;
  const MlstmShape& s_;
  Cutter cut_;
  const Room<W, E> room_;
  MlstmScanArgs<T, E> args_;
};
}  // namespace

MlstmConfig PickMlstmConfig(const MlstmShape& s, DType compute, const DeviceInfo& device) {
  if (compute != DType::kBF16 || s.B == 0 || s.T == 0 || !MlstmScanSupports(device, s.DHQK, s.DHV)) return {};
  if (s.B * s.T > INT_MAX || s.B * s.NH > INT_MAX / kMlstmScanMaxSlices)
    return {};  // its tokens and pairs are numbered in int
  return {.tensor_cores = true, .segments = PickMlstmSegments(device, s)};
}

int64_t DeviceOps::MlstmWorkspaceBytes(const MlstmShape& s, DType compute) const {
  CheckShape(s);
  const DeviceInfo& device = context_.info();
  if (compute == DType::kF64) return RoomBytes<double, double>(s, device);
  const int64_t generic = RoomBytes<float, double>(s, device);
  if (compute != DType::kBF16 || !MlstmScanSupports(device, s.DHQK, s.DHV)) return generic;
  return std::max(generic, RoomBytes<float, float>(s, device));  // tensors may be unaligned
}

void DeviceOps::MlstmForward(const MlstmForwardArgs& a) {
  const MlstmShape& s = a.shape;
  CheckInputs(a, MlstmWorkspaceBytes(s, a.q.dtype));
  CheckState(a.last, "last", s, WideOf(a.q.dtype), /*needs_m=*/true);
  if (s.B == 0) return;
  DispatchFloat(a.q.dtype, [&]<class T>() {
    const MlstmConfig config = PickMlstmConfig(s, a.q.dtype, context_.info());
    if (s.T == 1) return Call<T, double>(context_, a, Pass::kForward, config).Step(a);
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (config.tensor_cores && Aligned(a.q) && Aligned(a.k) && Aligned(a.v))
        return Call<T, float>(context_, a, Pass::kForward, config).Forward(a);
    }
    Call<T, double>(context_, a, Pass::kForward, config).Forward(a);
  });
}

void DeviceOps::MlstmBackward(const MlstmBackwardArgs& a) {
  const MlstmShape& s = a.shape;
  CheckBackward(a, MlstmWorkspaceBytes(s, a.q.dtype));
  if (s.B == 0) return;
  DispatchFloat(a.q.dtype, [&]<class T>() {
    const MlstmConfig config = PickMlstmConfig(s, a.q.dtype, context_.info());
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (config.tensor_cores && Aligned(a.q) && Aligned(a.k) && Aligned(a.v) && Aligned(a.h) &&
          Aligned(a.dh))
        return Call<T, float>(context_, a, Pass::kBackward, config).Backward(a);
    }
    Call<T, double>(context_, a, Pass::kBackward, config).Backward(a);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
