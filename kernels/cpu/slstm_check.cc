#include "kernels/cpu/slstm_check.h"

#include <string>

#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

void CheckMemory(const Tensor& x, const char* name, DType dtype, std::initializer_list<int64_t> dims) {
  CAROUSEL_CHECK_MSG(x.dtype == dtype,
                     std::string(name) + " must be " + NameOf(dtype) + ", is " + NameOf(x.dtype));
  std::string shape;
  for (const int64_t d : dims) shape += (shape.empty() ? "" : ", ") + std::to_string(d);
  CAROUSEL_CHECK_MSG(x.HasShape(dims) && x.contiguous(),
                     std::string(name) + " must be contiguous, of shape (" + shape + ")");
  CAROUSEL_CHECK_MSG(x.data != nullptr || x.num_elems() == 0, std::string(name) + " has no memory");
}

void CheckState(const SlstmState& state, const std::string& name, const SlstmShape& s, DType wide,
                bool needs_m) {
  if (!state.y.defined()) {
    CAROUSEL_CHECK_MSG(!state.c.defined() && !state.n.defined() && !state.m.defined(),
                       name + " must have y, c, n and m, or none");
    return;
  }
  CheckMemory(state.y, (name + ".y").c_str(), wide, {s.B, s.NH * s.D});
  CheckMemory(state.c, (name + ".c").c_str(), wide, {s.B, s.NH * s.D});
  CheckMemory(state.n, (name + ".n").c_str(), wide, {s.B, s.NH * s.D});
  if (needs_m || state.m.defined()) CheckMemory(state.m, (name + ".m").c_str(), wide, {s.B, s.NH * s.D});
}

void CheckReset(const Tensor& reset, int64_t N) {
  if (reset.defined()) CheckMemory(reset, "reset", DType::kU8, {N});
}

void CheckWorkspace(const Tensor& workspace, int64_t bytes) {
  CAROUSEL_CHECK_MSG(workspace.defined() && workspace.num_bytes() >= bytes && workspace.data != nullptr,
                     "workspace needs " + std::to_string(bytes) + " bytes");
}
}  // namespace

void CheckSlstmShape(const SlstmShape& s, DType compute) {
  CAROUSEL_CHECK_MSG(IsFloat(compute), std::string("compute type ") + NameOf(compute));
  CAROUSEL_CHECK(s.B >= 0 && s.T >= 0 && s.NH >= 1 && s.D >= 1);
}

void CheckSlstmForward(const SlstmForwardArgs& a, int64_t workspace_bytes) {
  const SlstmShape& s = a.shape;
  const DType compute = a.y.dtype, wide = WideOf(compute);
  const int64_t N = s.B * s.T, width = s.NH * s.D;
  CheckMemory(a.y, "y", compute, {N, width});
  CheckMemory(a.gates, "gates", wide, {N, 4 * width});
  CheckMemory(a.c, "c", wide, {N, width});
  CheckMemory(a.n, "n", wide, {N, width});
  CheckMemory(a.m, "m", wide, {N, width});
  CheckMemory(a.wx, "wx", wide, {N, 4 * width});
  CheckMemory(a.recurrent, "recurrent", compute, {4 * width, s.D});
  CheckMemory(a.bias, "bias", wide, {4 * width});
  CheckReset(a.reset, N);
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  CheckState(a.last, "last", s, wide, /*needs_m=*/true);
  CheckWorkspace(a.workspace, workspace_bytes);
}

void CheckSlstmBackward(const SlstmBackwardArgs& a, int64_t workspace_bytes) {
  const SlstmShape& s = a.shape;
  const DType compute = a.y.dtype, wide = WideOf(compute);
  const int64_t N = s.B * s.T, width = s.NH * s.D;
  CheckMemory(a.dwx, "dwx", compute, {N, 4 * width});
  CheckMemory(a.drecurrent, "drecurrent", wide, {4 * width, s.D});
  CheckMemory(a.dbias, "dbias", wide, {4 * width});
  CheckMemory(a.dy, "dy", compute, {N, width});
  CheckMemory(a.y, "y", compute, {N, width});
  CheckMemory(a.gates, "gates", wide, {N, 4 * width});
  CheckMemory(a.c, "c", wide, {N, width});
  CheckMemory(a.n, "n", wide, {N, width});
  CheckMemory(a.m, "m", wide, {N, width});
  CheckMemory(a.recurrent, "recurrent", compute, {4 * width, s.D});
  CheckReset(a.reset, N);
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  CheckState(a.dinitial, "dinitial", s, wide, /*needs_m=*/true);
  CheckState(a.dlast, "dlast", s, wide, /*needs_m=*/false);
  CAROUSEL_CHECK_GE(a.gradient_clip, 0.0);
  CheckWorkspace(a.workspace, workspace_bytes);
}
}  // namespace carousel::cpu
