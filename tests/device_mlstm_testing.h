// Runs a problem of mlstm_test_util.h on any device: every output and the workspace start as NaN, and what
// lies between the rows of a tensor must survive.
#pragma once
#include <utility>
#include <vector>

#include "core/device.h"
#include "tests/mlstm_test_util.h"

namespace carousel::mlstm_test {

// Memory of one tensor on a device.
template <class T>
class DeviceArray {
 public:
  static constexpr float kSentinel = 77.0f;
  // A matrix with `extra` unused elements after every row. Empty x: NaN.
  DeviceArray(Device& device, const Values& x, int64_t rows, int64_t cols, int64_t extra)
      : device_(device), rows_(rows), cols_(cols), stride_(cols + extra) {
    std::vector<T> host(static_cast<size_t>(rows * stride_), FromDouble<T>(kSentinel));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c)
        host[r * stride_ + c] = FromDouble<T>(x.empty() ? std::nan("") : x[r * cols + c]);
    }
    memory_ = device.Allocate(bytes());
    if (bytes() > 0) device.CopyToDevice(memory_, host.data(), bytes());
  }
  ~DeviceArray() {
    if (memory_ != nullptr) device_.Free(memory_);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  Tensor tensor() const {
    Tensor t(memory_, DTypeOf<T>::value, {rows_, cols_});
    t.row_stride = stride_;
    return t;
  }
  Tensor As(std::initializer_list<int64_t> dims) const { return {memory_, DTypeOf<T>::value, dims}; }
  Values values() const {
    std::vector<T> host(static_cast<size_t>(rows_ * stride_));
    if (bytes() > 0) device_.CopyToHost(host.data(), memory_, bytes());
    Values x(static_cast<size_t>(rows_ * cols_));
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) x[r * cols_ + c] = AsDouble(host[r * stride_ + c]);
      for (int64_t c = cols_; c < stride_; ++c)
        EXPECT_EQ(AsDouble(host[r * stride_ + c]), kSentinel) << "written beyond row " << r;
    }
    return x;
  }

 private:
  int64_t bytes() const { return rows_ * stride_ * static_cast<int64_t>(sizeof(T)); }
  Device& device_;
  const int64_t rows_, cols_, stride_;
  void* memory_ = nullptr;
};

// C, n and m. Empty values: NaN.
template <class W>
struct DeviceState {
  DeviceState(Device& device, const MlstmShape& shape, const Values& C_in, const Values& n_in,
              const Values& m_in)
      : s(shape),
        C(device, C_in, 1, s.B * s.NH * s.DHQK * s.DHV, 0),
        n(device, n_in, 1, s.B * s.NH * s.DHQK, 0),
        m(device, m_in, 1, s.B * s.NH, 0) {}
  MlstmState state() const {
    return {C.As({s.B, s.NH, s.DHQK, s.DHV}), n.As({s.B, s.NH, s.DHQK}), m.As({s.B, s.NH})};
  }
  const MlstmShape s;
  DeviceArray<W> C, n, m;
};

struct DeviceRun {
  bool last_in_place = false;  // `last` is the same memory as `initial`
  // Row strides that are multiples of 16 bytes, as the tensor cores need them, or odd ones.
  bool aligned = true;
  bool dv_aligned = true;  // of dv alone
  bool want_dinitial = true;
};

// Forward and, unless the problem has no dh, backward. Gradients are NaN where nothing was asked for.
template <class T>
Result RunOn(Device& device, const Problem& p, const DeviceRun& run = {}) {
  using W = Wide<T>;
  const MlstmShape& s = p.shape;
  const int64_t N = p.N(), NH = s.NH, QK = NH * s.DHQK, HV = NH * s.DHV;
  const auto extra = [&](int64_t odd) { return run.aligned ? 8 : odd; };
  Ops& ops = device.ops();
  const int64_t workspace_bytes = ops.MlstmWorkspaceBytes(s, DTypeOf<T>::value);
  const std::vector<uint8_t> poison(static_cast<size_t>(workspace_bytes), 0xff);  // NaN in every float type
  void* const workspace = device.Allocate(workspace_bytes);
  device.CopyToDevice(workspace, poison.data(), workspace_bytes);
  const Tensor workspace_tensor(workspace, DType::kU8, {workspace_bytes});
  void* reset = nullptr;
  if (!p.reset.empty()) {
    reset = device.Allocate(N);
    device.CopyToDevice(reset, p.reset.data(), N);
  }

  const DeviceArray<T> q(device, p.q, N, QK, extra(3)), k(device, p.k, N, QK, extra(5)),
      v(device, p.v, N, HV, extra(7)), h(device, {}, N, HV, extra(2));
  const DeviceArray<W> i_pre(device, p.i_pre, N, NH, 1), f_pre(device, p.f_pre, N, NH, 2),
      denominator(device, {}, N, NH, 0), m(device, {}, N, NH, 0);
  const bool has_initial = !p.initial_C.empty(), has_dlast = !p.dC.empty();
  const DeviceState<W> initial(device, s, p.initial_C, p.initial_n, p.initial_m), last(device, s, {}, {}, {});
  const DeviceState<W>& last_memory = run.last_in_place ? initial : last;

  const MlstmForwardArgs forward = {.h = h.tensor(),
                                    .denominator = denominator.tensor(),
                                    .m = m.tensor(),
                                    .last = last_memory.state(),
                                    .q = q.tensor(),
                                    .k = k.tensor(),
                                    .v = v.tensor(),
                                    .i_pre = i_pre.tensor(),
                                    .f_pre = f_pre.tensor(),
                                    .reset = reset == nullptr ? Tensor() : Tensor(reset, DType::kU8, {N}),
                                    .initial = has_initial ? initial.state() : MlstmState(),
                                    .workspace = workspace_tensor,
                                    .shape = s};
  ops.MlstmForward(forward);
  Result r;
  r.h = h.values();
  r.denominator = denominator.values();
  r.m = m.values();
  r.last_C = last_memory.C.values();
  r.last_n = last_memory.n.values();
  r.last_m = last_memory.m.values();

  if (!p.dh.empty()) {
    device.CopyToDevice(workspace, poison.data(), workspace_bytes);
    const DeviceArray<T> dh(device, p.dh, N, HV, extra(4)), dq(device, {}, N, QK, extra(6)),
        dk(device, {}, N, QK, extra(1)), dv(device, {}, N, HV, run.dv_aligned ? extra(3) : 3);
    const DeviceArray<W> di_pre(device, {}, N, NH, 3), df_pre(device, {}, N, NH, 1);
    const DeviceState<W> dlast(device, s, p.dC, p.dn, {}), dinitial(device, s, {}, {}, {});
    const DeviceState<W> initial_again(device, s, p.initial_C, p.initial_n, p.initial_m);
    ops.MlstmBackward({.dq = dq.tensor(),
                       .dk = dk.tensor(),
                       .dv = dv.tensor(),
                       .di_pre = di_pre.tensor(),
                       .df_pre = df_pre.tensor(),
                       .dinitial = run.want_dinitial ? dinitial.state() : MlstmState(),
                       .dh = dh.tensor(),
                       .dlast = has_dlast ? dlast.state() : MlstmState(),
                       .q = forward.q,
                       .k = forward.k,
                       .v = forward.v,
                       .i_pre = forward.i_pre,
                       .f_pre = forward.f_pre,
                       .reset = forward.reset,
                       .initial = has_initial ? initial_again.state() : MlstmState(),
                       .h = forward.h,
                       .denominator = forward.denominator,
                       .m = forward.m,
                       .workspace = workspace_tensor,
                       .shape = s,
                       .normalizer_gradient = p.normalizer_gradient});
    r.dq = dq.values();
    r.dk = dk.values();
    r.dv = dv.values();
    r.di_pre = di_pre.values();
    r.df_pre = df_pre.values();
    r.dC = dinitial.C.values();
    r.dn = dinitial.n.values();
    r.dm = dinitial.m.values();
  }
  device.Synchronize();
  device.Free(workspace);
  if (reset != nullptr) device.Free(reset);
  return r;
}
}  // namespace carousel::mlstm_test
