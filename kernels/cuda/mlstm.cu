// mlstm.cu - the mLSTM cell (xLSTM, arXiv:2405.04517; chunkwise arXiv:2503.14376): checks, the choice of a
// scan and the order of its kernels.
//
//   forward   gates -> records -> scan kH                      (one token: mlstm_step.h instead)
//   backward  records -> normaliser -> division -> scans kDQ, kDV, kDK -> gradients of the gates
//             (two or all of these scans may be one kernel: mlstm_scan_sm90.h)
// The normaliser's step gives its value with its sign and dh.h, which nobody keeps: by mlstm_normalizer.h
// beside the tensor-core scan, which needs no matrix state for it, by the scan kDelta, which repeats the
// forward, elsewhere. It is left out where no gradient goes through the normaliser. A sequence that is split
// into segments has a scan of the states and LaunchMlstmCombine before the first scan of each direction.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/mlstm_call.h"
#include "kernels/cuda/mlstm_normalizer.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

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

// One call, by one kind of scan.
template <class T, class E>
class Call : MlstmCall<T, E> {
 public:
  using Base = MlstmCall<T, E>;
  using W = Wide<T>;
  template <class Args>
  Call(Context& context, const Args& a, MlstmPass pass, const MlstmConfig& config)
      : Base(context, a.shape, a.workspace, pass, config) {
    args_.q = RowsOf<const T>(a.q);
    args_.k = RowsOf<const T>(a.k);
    args_.v = RowsOf<const T>(a.v);
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
    const MlstmScanState<const W> initial = StateOf<const W>(a.initial), dlast = StateOf<const W>(a.dlast);
    const MlstmScanState<W> dinitial = StateOf<W>(a.dinitial);
    args_.dh = RowsOf<const T>(a.dh);
    LaunchMlstmRecords<E, W>(
        context_,
        {.in = GatesOf<W>(a), .records = room_.records, .gamma = room_.gamma, .m = RowsOf<const W>(a.m)});
    const MlstmScanState<const W> forward_states = Split(MlstmRole::kForwardState, initial);

    MlstmDivisionArgs<E, W> division;
    division.B = s_.B;
    division.num_tokens = s_.T;
    division.NH = s_.NH;
    division.NC = args_.NC;
    division.records = room_.records;
    division.eps = static_cast<W>(s_.eps);
    if (s_.normalize) division.denominator = RowsOf<const W>(a.denominator);
    if (s_.normalize && a.normalizer_gradient == NormalizerGradient::kExact) {
      Normaliser(a, initial, forward_states);
      division.a = room_.a;
      division.dots = room_.delta_dots;
      division.divided = kTensorCores<E>;
      division.slices = kTensorCores<E> ? 1 : static_cast<int>(Slices<E>(MlstmRole::kDelta, s_));
    }
    LaunchMlstmDivision<E, W>(context_, division);

    if constexpr (kTensorCores<E>) {
      sm90_anchors_ = config_.sm90 && MlstmSm90Writes(RowsOf<T>(a.dq)) && MlstmSm90Writes(RowsOf<T>(a.dk));
      if (sm90_anchors_ && MlstmSm90Writes(RowsOf<T>(a.dv))) joined_ = config_.sm90_joined;
    }
    // dq, or the states for it, and, where a gradient arrives there, the last state
    MlstmScanArgs<T, E> x = args_;
    x.initial = forward_states;
    if (dlast.C != nullptr) x.final = room_.state;
    x.out = RowsOf<T>(a.dq);
    x.dots = room_.q_dots;
    x.anchors = room_.anchors;
    ScanForward(x);
    if (dlast.C != nullptr) StateDots(Const(room_.state), dlast, room_.final_term, /*rounded=*/nullptr);

    // The gradients of the gates need that of the initial state, wanted or not.
    const MlstmScanState<W> dfirst = dinitial.C == nullptr && initial.C != nullptr ? room_.state : dinitial;
    x = args_;
    x.initial = Split(MlstmRole::kBackwardState, dlast);
    x.final = dfirst;
    x.out = RowsOf<T>(a.dk);
    x.dots = room_.k_dots;
    x.anchors = room_.anchors;
    x.q_dots = room_.q_dots;
    ScanReverse(x, RowsOf<T>(a.dv), RowsOf<T>(a.dq));

    W* const dm = DataOrNull<W>(a.dinitial.m);
    const bool has_m = s_.input_gate == InputGate::kExponential && initial.C != nullptr;
    if (initial.C != nullptr) StateDots(initial, Const(dfirst), room_.initial_term, has_m ? dm : nullptr);
    if (dm != nullptr && !has_m) StateDots({}, {}, /*out=*/nullptr, dm);  // zeros
    LaunchMlstmGateGradients<W>(context_,
                                {.in = GatesOf<W>(a),
                                 .di_pre = RowsOf<W>(a.di_pre),
                                 .df_pre = RowsOf<W>(a.df_pre),
                                 .q_dots = room_.q_dots,
                                 .k_dots = room_.k_dots,
                                 .q_slices = DotParts(MlstmRole::kDQ),
                                 .k_slices = DotParts(MlstmRole::kDK),
                                 .initial_term = initial.C != nullptr ? room_.initial_term : nullptr,
                                 .final_term = dlast.C != nullptr ? room_.final_term : nullptr,
                                 .anchor_dots = room_.anchors.dots,
                                 .anchor_parts = kTensorCores<E> ? MlstmScanAnchorParts(s_.DHQK, s_.DHV) : 0,
                                 .chunk_runs = room_.chunk_runs});
  }

 private:
  int DotParts(MlstmRole role) const {
    return static_cast<int>(sm90_anchors_ ? MlstmSm90DotParts(s_.DHQK, s_.DHV) : Slices<E>(role, s_));
  }

  void StateDots(const MlstmScanState<const W>& a, const MlstmScanState<const W>& b, double* out,
                 W* rounded) {
    LaunchMlstmStateDots<W>(context_, {.out = out,
                                       .rounded = rounded,
                                       .a = a,
                                       .b = b,
                                       .num_pairs = s_.B * s_.NH,
                                       .DHQK = s_.DHQK,
                                       .DHV = s_.DHV});
  }
  // kDQ, or in its place what leaves states for ScanReverse.
  void ScanForward(const MlstmScanArgs<T, E>& x) {
    if constexpr (kTensorCores<E>) {
      if (joined_ == MlstmSm90Joined::kAll) return LaunchMlstmSm90States(context_, x);
    }
    Scan(MlstmRole::kDQ, x);
  }
  // dv, and dk with what `x` says of it; dq, if ScanForward left it out.
  void ScanReverse(const MlstmScanArgs<T, E>& x, const MlstmRows<T>& dv, const MlstmRows<T>& dq) {
    if constexpr (kTensorCores<E>) {
      if (joined_ == MlstmSm90Joined::kAll) return LaunchMlstmSm90All(context_, x, dv, dq);
      if (joined_ == MlstmSm90Joined::kDKV) return LaunchMlstmSm90DKV(context_, x, dv);
    }
    MlstmScanArgs<T, E> values = args_;
    values.initial.C = x.initial.C;
    values.out = dv;
    Scan(MlstmRole::kDV, values);
    Scan(MlstmRole::kDK, x);
  }

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

  using Base::args_, Base::config_, Base::context_, Base::room_, Base::s_, Base::sm90_anchors_, Base::joined_;
  using Base::Scan, Base::Split;
};
}  // namespace

MlstmConfig PickMlstmConfig(const MlstmShape& s, DType compute, const DeviceInfo& device) {
  if (compute != DType::kBF16 || s.B == 0 || s.T == 0 || !MlstmScanSupports(device, s.DHQK, s.DHV)) return {};
  if (s.B * s.T > INT_MAX || s.B * s.NH > INT_MAX / MlstmScanMaxSlices(s.DHQK, s.DHV))
    return {};  // its tokens and pairs are numbered in int
  return {.tensor_cores = true,
          .sm90 = !device.portable_kernels && MlstmSm90Supports(device, s.DHQK, s.DHV),
          .sm90_joined =
              device.portable_kernels ? MlstmSm90Joined::kNone : MlstmSm90JoinedScans(device, s.DHQK, s.DHV),
          .segments = PickMlstmSegments(device, s)};
}

int64_t DeviceOps::MlstmWorkspaceBytes(const MlstmShape& s, DType compute) const {
  CheckShape(s);
  const DeviceInfo& device = context_.info();
  if (compute == DType::kF64) return MlstmRoomBytes<double, double>(s, device);
  const int64_t generic = MlstmRoomBytes<float, double>(s, device);
  if (compute != DType::kBF16 || !MlstmScanSupports(device, s.DHQK, s.DHV)) return generic;
  return std::max(generic, MlstmRoomBytes<float, float>(s, device));  // tensors may be unaligned
}

void DeviceOps::MlstmForward(const MlstmForwardArgs& a) {
  const MlstmShape& s = a.shape;
  CheckInputs(a, MlstmWorkspaceBytes(s, a.q.dtype));
  CheckState(a.last, "last", s, WideOf(a.q.dtype), /*needs_m=*/true);
  if (s.B == 0) return;
  DispatchFloat(a.q.dtype, [&]<class T>() {
    const MlstmConfig config = PickMlstmConfig(s, a.q.dtype, context_.info());
    if (s.T == 1) return Call<T, double>(context_, a, MlstmPass::kForward, config).Step(a);
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (config.tensor_cores && Aligned(a.q) && Aligned(a.k) && Aligned(a.v))
        return Call<T, float>(context_, a, MlstmPass::kForward, config).Forward(a);
    }
    Call<T, double>(context_, a, MlstmPass::kForward, config).Forward(a);
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
        return Call<T, float>(context_, a, MlstmPass::kBackward, config).Backward(a);
    }
    Call<T, double>(context_, a, MlstmPass::kBackward, config).Backward(a);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
