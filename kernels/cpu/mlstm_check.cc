#include "kernels/cpu/mlstm_check.h"

#include <string>

namespace carousel::cpu {
namespace {

void CheckRows(const Tensor& x, const char* name, DType dtype, int64_t rows, int64_t width) {
  CAROUSEL_CHECK_MSG(x.dtype == dtype,
                     std::string(name) + " must be " + NameOf(dtype) + ", is " + NameOf(x.dtype));
  CAROUSEL_CHECK_MSG(
      x.HasShape({rows, width}) && x.row_stride >= width,
      std::string(name) + " must be (" + std::to_string(rows) + ", " + std::to_string(width) + ")");
  CAROUSEL_CHECK_MSG(x.data != nullptr || rows * width == 0, std::string(name) + " has no memory");
}

void CheckState(const MlstmState& state, const char* name, const MlstmShape& s, DType wide, bool needs_m) {
  if (!state.C.defined()) {
    CAROUSEL_CHECK_MSG(!state.n.defined() && !state.m.defined(),
                       std::string(name) + " must have C, n and m, or none");
    return;
  }
  CAROUSEL_CHECK_MSG(state.C.dtype == wide && state.C.HasShape({s.B, s.NH, s.DHQK, s.DHV}),
                     std::string(name) + ".C");
  CAROUSEL_CHECK_MSG(state.n.dtype == wide && state.n.HasShape({s.B, s.NH, s.DHQK}),
                     std::string(name) + ".n");
  if (needs_m || state.m.defined()) {
    CAROUSEL_CHECK_MSG(state.m.dtype == wide && state.m.HasShape({s.B, s.NH}), std::string(name) + ".m");
    CAROUSEL_CHECK_MSG(state.m.contiguous(), std::string(name) + ".m must be contiguous");
  }
}

void CheckShape(const MlstmShape& s) {
  CAROUSEL_CHECK(s.B >= 0 && s.T >= 0 && s.NH >= 1 && s.DHQK >= 1 && s.DHV >= 1);
  CAROUSEL_CHECK_GE(s.L, 1);
  CAROUSEL_CHECK_GE(s.eps, 0.0);
  CAROUSEL_CHECK_MSG(s.normalize || s.input_gate == InputGate::kSigmoid,
                     "the exponential input gate needs the normalizer");
}

void CheckReset(const Tensor& reset, int64_t rows) {
  if (!reset.defined()) return;
  CAROUSEL_CHECK(reset.dtype == DType::kU8);
  CAROUSEL_CHECK_SHAPE(reset, {rows});
}

void CheckFlat(const Tensor& x, const char* name, DType dtype, int64_t num_elems) {
  CAROUSEL_CHECK_MSG(
      x.dtype == dtype && x.HasShape({num_elems}) && x.contiguous(),
      std::string(name) + " must be " + std::to_string(num_elems) + " values of " + NameOf(dtype));
}
void CheckWide(DType dtype) { CAROUSEL_CHECK(dtype == DType::kF32 || dtype == DType::kF64); }
void CheckSegments(int64_t num_segments, int64_t index) {
  CAROUSEL_CHECK_GE(num_segments, 1);
  CAROUSEL_CHECK(index >= 0 && index < num_segments);
}
void CheckFactors(const Tensor& factors, const MlstmShape& s, DType wide, int64_t num_segments) {
  CAROUSEL_CHECK_MSG(
      factors.dtype == wide && factors.HasShape({num_segments, s.B, s.NH}) && factors.contiguous(),
      "factors must be (segments, B, NH)");
}

void CheckWorkspace(const Tensor& workspace, int64_t bytes) {
  CAROUSEL_CHECK_MSG(workspace.defined() && workspace.num_bytes() >= bytes,
                     "workspace needs " + std::to_string(bytes) + " bytes");
}

}  // namespace

void CheckMlstmForward(const MlstmForwardArgs& a, int64_t workspace_bytes) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType compute = a.q.dtype, wide = WideOf(compute);
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
  CheckState(a.last, "last", s, wide, /*needs_m=*/true);
  CheckWorkspace(a.workspace, workspace_bytes);
}

void CheckMlstmBackward(const MlstmBackwardArgs& a, int64_t workspace_bytes) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType compute = a.q.dtype, wide = WideOf(compute);
  const int64_t N = s.B * s.T;
  CheckRows(a.dq, "dq", compute, N, s.NH * s.DHQK);
  CheckRows(a.dk, "dk", compute, N, s.NH * s.DHQK);
  CheckRows(a.dv, "dv", compute, N, s.NH * s.DHV);
  CheckRows(a.di_pre, "di_pre", wide, N, s.NH);
  CheckRows(a.df_pre, "df_pre", wide, N, s.NH);
  CheckRows(a.dh, "dh", compute, N, s.NH * s.DHV);
  CheckRows(a.q, "q", compute, N, s.NH * s.DHQK);
  CheckRows(a.k, "k", compute, N, s.NH * s.DHQK);
  CheckRows(a.v, "v", compute, N, s.NH * s.DHV);
  CheckRows(a.i_pre, "i_pre", wide, N, s.NH);
  CheckRows(a.f_pre, "f_pre", wide, N, s.NH);
  CheckRows(a.h, "h", compute, N, s.NH * s.DHV);
  CheckRows(a.denominator, "denominator", wide, N, s.NH);
  CheckRows(a.m, "m", wide, N, s.NH);
  CheckReset(a.reset, N);
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  CheckState(a.dinitial, "dinitial", s, wide, /*needs_m=*/true);
  CheckState(a.dlast, "dlast", s, wide, /*needs_m=*/false);
  CheckWorkspace(a.workspace, workspace_bytes);
}

void CheckMlstmSummary(const MlstmSummaryArgs& a, int64_t workspace_bytes) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType compute = a.k.dtype, wide = WideOf(compute);
  const int64_t N = s.B * s.T;
  CheckFlat(a.summary, "summary", wide, MlstmSummaryElems(s));
  CheckRows(a.k, "k", compute, N, s.NH * s.DHQK);
  CheckRows(a.v, "v", compute, N, s.NH * s.DHV);
  CheckRows(a.i_pre, "i_pre", wide, N, s.NH);
  CheckRows(a.f_pre, "f_pre", wide, N, s.NH);
  CheckReset(a.reset, N);
  CheckWorkspace(a.workspace, workspace_bytes);
}

void CheckMlstmFold(const MlstmFoldArgs& a) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType wide = a.summaries.dtype;
  CheckWide(wide);
  CheckSegments(a.num_segments, a.index);
  CheckFlat(a.summaries, "summaries", wide, a.num_segments * MlstmSummaryElems(s));
  CAROUSEL_CHECK_MSG(a.initial.C.defined(), "initial must be given");
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  if (a.factors.defined()) CheckFactors(a.factors, s, wide, a.num_segments);
}

void CheckMlstmSummaryBackward(const MlstmSummaryBackwardArgs& a, int64_t workspace_bytes) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType compute = a.q.dtype, wide = WideOf(compute);
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

void CheckMlstmFoldBackward(const MlstmFoldBackwardArgs& a) {
  const MlstmShape& s = a.shape;
  CheckShape(s);
  const DType wide = a.dstates.dtype;
  CheckWide(wide);
  CheckSegments(a.num_segments, a.index);
  CheckFlat(a.dstates, "dstates", wide, a.num_segments * MlstmStateGradientElems(s));
  CheckFactors(a.factors, s, wide, a.num_segments);
  CAROUSEL_CHECK_MSG(a.dlast.C.defined(), "dlast must be given");
  CheckState(a.dlast, "dlast", s, wide, /*needs_m=*/false);
}
}  // namespace carousel::cpu
