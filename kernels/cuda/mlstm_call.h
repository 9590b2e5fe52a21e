// What the calls of the mLSTM cell share on the host's side: checks of arguments, the workspace cut into
// arrays, views of tensors, and the order of a split sequence's kernels.
#pragma once
#include <algorithm>
#include <climits>
#include <type_traits>

#include "core/base/int_math.h"
#include "kernels/cuda/mlstm_config.h"
#include "kernels/cuda/mlstm_gate_gradients.h"
#include "kernels/cuda/mlstm_gates.h"
#include "kernels/cuda/mlstm_generic.h"
#include "kernels/cuda/mlstm_step.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// ---- checks
inline void CheckShape(const MlstmShape& s) {
  CAROUSEL_CHECK(s.B >= 0 && s.T >= 0 && s.NH >= 1 && s.DHQK >= 1 && s.DHV >= 1);
  CAROUSEL_CHECK_GE(s.L, 1);
  CAROUSEL_CHECK_GE(s.eps, 0.0);
  CAROUSEL_CHECK_MSG(s.normalize || s.input_gate == InputGate::kSigmoid,
                     "the exponential input gate needs the normalizer");
}
inline void CheckRows(const Tensor& x, const char* name, DType dtype, int64_t rows, int64_t width) {
  CAROUSEL_CHECK_MSG(x.dtype == dtype,
                     std::string(name) + " must be " + NameOf(dtype) + ", is " + NameOf(x.dtype));
  CAROUSEL_CHECK_MSG(
      x.HasShape({rows, width}) && x.row_stride >= width,
      std::string(name) + " must be (" + std::to_string(rows) + ", " + std::to_string(width) + ")");
  CAROUSEL_CHECK_MSG(x.data != nullptr || rows * width == 0, std::string(name) + " has no memory");
}
inline void CheckState(const MlstmState& state, const char* name, const MlstmShape& s, DType wide,
                       bool needs_m) {
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
inline void CheckReset(const Tensor& reset, int64_t rows) {
  if (!reset.defined()) return;
  CAROUSEL_CHECK(reset.dtype == DType::kU8);
  CAROUSEL_CHECK_SHAPE(reset, {rows});
}
inline void CheckWorkspace(const Tensor& workspace, int64_t bytes) {
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

// ---- workspace
constexpr int64_t kMlstmAlign = 256;  // bytes

// Cuts arrays out of the workspace; without a base address it only counts.
class MlstmCutter {
 public:
  explicit MlstmCutter(const Tensor& workspace) {
    const auto address = reinterpret_cast<uintptr_t>(workspace.data);
    base_ = static_cast<std::byte*>(workspace.data) +
            (RoundUp(static_cast<int64_t>(address), kMlstmAlign) - static_cast<int64_t>(address));
  }
  MlstmCutter() = default;
  template <class W>
  W* Take(int64_t num_elems) {
    std::byte* const place = base_ == nullptr ? nullptr : base_ + used_bytes_;
    used_bytes_ += RoundUp(num_elems * static_cast<int64_t>(sizeof(W)), kMlstmAlign);
    return reinterpret_cast<W*>(place);
  }
  int64_t used_bytes() const { return used_bytes_; }

 private:
  std::byte* base_ = nullptr;
  int64_t used_bytes_ = 0;
};

enum class MlstmPass { kForward, kBackward, kSummaryBackward };  // a summary takes the room of kForward

// E: float for the tensor-core scan, double for the generic one.
template <class E>
constexpr bool kTensorCores = std::is_same_v<E, float>;
template <class E>
int64_t Slices(MlstmRole role, const MlstmShape& s) {
  return kTensorCores<E> ? MlstmScanSlices(role, s.DHQK, s.DHV) : MlstmGenericSlices(role, s.DHQK, s.DHV);
}
// Parts of `dots`, whichever scan of E it will be.
template <class E>
int64_t MaxDotParts(MlstmRole role, const MlstmShape& s) {
  const int64_t parts = Slices<E>(role, s);
  return kTensorCores<E> ? std::max(parts, MlstmSm90DotParts(s.DHQK, s.DHV)) : parts;
}

template <class W, class E>
struct MlstmRoom {
  MlstmRoom(MlstmCutter& cut, const MlstmShape& s, MlstmPass pass, const DeviceInfo& device) {
    const int64_t pairs = s.B * s.NH, NC = CeilDiv(s.T, kMlstmChunk), tokens = pairs * NC * kMlstmChunk;
    records = cut.Take<MlstmRecord<E, W>>(pairs * NC);
    gamma = cut.Take<W>(pairs * NC);
    chunk_sums = cut.Take<double>(pairs * NC * 2);
    if (kTensorCores<E>) {
      const int64_t num_states = MaxMlstmSegmentStates(device, s) * s.NH;
      segments.C = cut.Take<W>(num_states * s.DHQK * s.DHV);
      segments.n = cut.Take<W>(num_states * s.DHQK);
      partials = cut.Take<W>(MlstmPartialElems(s.B, s.T, s.NH, s.DHQK, s.DHV));
    } else {
      generic = cut.Take<W>(MlstmGenericScratchElems(s.B, s.NH, s.DHQK, s.DHV, /*num_segments=*/1));
    }
    if (pass == MlstmPass::kForward) {
      if (kTensorCores<E> && MlstmBlockWidth(s.DHQK, s.DHV) > 0)
        a = cut.Take<W>(tokens * NumMlstmColumnBlocks(MlstmRole::kH, s.DHQK, s.DHV));
      m_start = cut.Take<W>(pairs * (NC + 1));
      initial_n = cut.Take<W>(pairs * s.DHQK);
      step_factors = cut.Take<W>(pairs * kMlstmStepFactors);
      return;
    }
    a = cut.Take<W>(tokens);
    if (pass == MlstmPass::kSummaryBackward) {
      n = cut.Take<W>(pairs * NC * s.DHQK);
      delta_dots = cut.Take<W>(tokens);
      return;
    }
    if (kTensorCores<E>) {
      n = cut.Take<W>(pairs * NC * s.DHQK);
      const int64_t num_anchors = pairs * NumMlstmAnchors(NC);
      int64_t state_elems = num_anchors * s.DHQK * s.DHV;
      if (!device.portable_kernels && MlstmSm90JoinedScans(device, s.DHQK, s.DHV) == MlstmSm90Joined::kAll) {
        state_elems = std::max(state_elems, MlstmSm90SavedBytes(pairs, NC, s.DHQK, s.DHV) / 2);
      }
      anchors.C = cut.Take<bfloat16>(state_elems);
      anchors.n = cut.Take<W>(num_anchors * s.DHQK * NumMlstmColumnBlocks(MlstmRole::kDQ, s.DHQK, s.DHV));
      anchors.dots = cut.Take<W>(num_anchors * MlstmScanAnchorParts(s.DHQK, s.DHV));
    }
    delta_dots = cut.Take<W>(tokens * (kTensorCores<E> ? 1 : Slices<E>(MlstmRole::kDelta, s)));
    q_dots = cut.Take<W>(tokens * MaxDotParts<E>(MlstmRole::kDQ, s));
    k_dots = cut.Take<W>(tokens * MaxDotParts<E>(MlstmRole::kDK, s));
    state.C = cut.Take<W>(pairs * s.DHQK * s.DHV);
    state.n = cut.Take<W>(pairs * s.DHQK);
    initial_term = cut.Take<double>(pairs);
    final_term = cut.Take<double>(pairs);
    chunk_runs = cut.Take<MlstmDotsRun>(pairs * NC * 2);
  }
  MlstmRecord<E, W>* records;
  W* gamma;
  double* chunk_sums;          // (pairs, NC, 2)
  MlstmScanState<W> segments;  // of one direction at a time
  W *generic = nullptr, *partials = nullptr;
  W *m_start = nullptr, *initial_n = nullptr, *step_factors = nullptr;  // forward
  W* n = nullptr;
  W* a = nullptr;  // backward; with heads that are cut also forward
  W *delta_dots = nullptr, *q_dots = nullptr, *k_dots = nullptr;  // backward
  MlstmAnchors<W> anchors;
  // The last state, where a gradient arrives there; then the initial state's gradient, where nobody wants it.
  MlstmScanState<W> state;
  double *initial_term = nullptr, *final_term = nullptr;
  MlstmDotsRun* chunk_runs = nullptr;
};
template <class W, class E>
int64_t MlstmRoomBytes(const MlstmShape& s, const DeviceInfo& device) {
  MlstmCutter forward, backward, summary_backward;
  MlstmRoom<W, E>(forward, s, MlstmPass::kForward, device);
  MlstmRoom<W, E>(backward, s, MlstmPass::kBackward, device);
  MlstmRoom<W, E>(summary_backward, s, MlstmPass::kSummaryBackward, device);
  return std::max({forward.used_bytes(), backward.used_bytes(), summary_backward.used_bytes()}) + kMlstmAlign;
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
  const W* initial_m = nullptr;
  if constexpr (requires { a.initial; }) {
    if (s.input_gate == InputGate::kExponential) initial_m = DataOrNull<W>(a.initial.m);
  }
  return {.B = s.B,
          .num_tokens = s.T,
          .NH = s.NH,
          .NC = CeilDiv(s.T, kMlstmChunk),
          .DHQK = s.DHQK,
          .sigmoid_input_gate = s.input_gate == InputGate::kSigmoid,
          .i_pre = RowsOf<const W>(a.i_pre),
          .f_pre = RowsOf<const W>(a.f_pre),
          .reset = DataOrNull<uint8_t>(a.reset),
          .initial_m = initial_m};
}
inline bool Aligned(const Tensor& x) { return MlstmScanSupports(RowsOf<const bfloat16>(x)); }

// ---- one call, by one kind of scan. args_: what every scan of the call takes.
template <class T, class E>
class MlstmCall {
 protected:
  using W = Wide<T>;
  MlstmCall(Context& context, const MlstmShape& shape, const Tensor& workspace, MlstmPass pass,
            const MlstmConfig& config)
      : context_(context),
        s_(shape),
        config_(config),
        cut_(workspace),
        room_(cut_, s_, pass, context.info()) {
    args_.B = s_.B;
    args_.num_tokens = s_.T;
    args_.NH = s_.NH;
    args_.DHQK = s_.DHQK;
    args_.DHV = s_.DHV;
    args_.NC = CeilDiv(s_.T, kMlstmChunk);
    args_.num_segments = kTensorCores<E> ? config.segments.num_segments : 1;
    args_.chunks_per_segment = kTensorCores<E> ? config.segments.chunks_per_segment : args_.NC;
    args_.records = room_.records;
    args_.gamma = room_.gamma;
    args_.partials = room_.partials;
    args_.a = room_.a;
    args_.eps = static_cast<W>(s_.eps);
    args_.normalize = s_.normalize;
  }

  void Scan(MlstmRole role, const MlstmScanArgs<T, E>& x) {
    if constexpr (kTensorCores<E>) {
      const bool with_anchors = role == MlstmRole::kDQ || role == MlstmRole::kDK;
      const bool sm90 =
          !IsState(role) && (with_anchors ? sm90_anchors_ : config_.sm90 && MlstmSm90Writes(x.out));
      sm90 ? LaunchMlstmSm90(context_, role, x) : LaunchMlstmScan(context_, role, x);
    } else {
      LaunchMlstmGeneric<T>(context_, role, x, room_.generic);
    }
  }
  // The states that the segments begin with: `first` itself where there is one segment.
  MlstmScanState<const W> Split(MlstmRole state_role, const MlstmScanState<const W>& first) {
    if constexpr (kTensorCores<E>) {
      if (args_.num_segments > 1) {
        ScanSegments(state_role, first, /*final=*/{});
        return Const(room_.segments);
      }
    }
    return first;
  }
  // The state of a state role at the end of all its chunks, from zero.
  void ScanState(MlstmRole state_role, const MlstmScanState<W>& final) {
    if constexpr (kTensorCores<E>) {
      if (args_.num_segments > 1) return ScanSegments(state_role, /*first=*/{}, final);
    }
    MlstmScanArgs<T, E> x = args_;
    x.final = final;
    Scan(state_role, x);
  }
  void ScanSegments(MlstmRole state_role, const MlstmScanState<const W>& first,
                    const MlstmScanState<W>& final) {
    MlstmScanArgs<T, E> x = args_;
    x.final = room_.segments;
    Scan(state_role, x);
    LaunchMlstmCombine<W>(context_, {.states = room_.segments,
                                     .first = first,
                                     .final = final,
                                     .gamma = room_.gamma,
                                     .num_pairs = s_.B * s_.NH,
                                     .DHQK = s_.DHQK,
                                     .DHV = s_.DHV,
                                     .NC = args_.NC,
                                     .num_segments = args_.num_segments,
                                     .chunks_per_segment = args_.chunks_per_segment,
                                     .reverse = IsReverse(state_role)});
  }

  Context& context_;
  const MlstmShape& s_;
  const MlstmConfig config_;
  MlstmCutter cut_;
  const MlstmRoom<W, E> room_;
  MlstmScanArgs<T, E> args_;
  bool sm90_anchors_ = false;  // kDQ and kDK, which must agree on the anchors, are those of mlstm_scan_sm90.h
  MlstmSm90Joined joined_ = MlstmSm90Joined::kNone;  // which of the backward's scans are one
};
}  // namespace carousel::CAROUSEL_DEVICE_NS
