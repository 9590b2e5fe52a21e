#include "launcher/models/mlstm_cell_run.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/device_memory.h"
#include "launcher/models/tensor_copy.h"

namespace carousel {
namespace {

// (B, NH, T, W) -> (B*T, NH*W) if `to_tokens`, else back. Gates: W = 1.
std::vector<double> Permute(const std::vector<double>& x, const MlstmShape& s, int64_t W, bool to_tokens) {
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(x.size()), s.B * s.NH * s.T * W);
  std::vector<double> y(x.size());
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t h = 0; h < s.NH; ++h) {
      for (int64_t t = 0; t < s.T; ++t) {
        const int64_t heads_first = ((b * s.NH + h) * s.T + t) * W,
                      tokens_first = ((b * s.T + t) * s.NH + h) * W;
        for (int64_t w = 0; w < W; ++w) {
          if (to_tokens) {
            y[static_cast<size_t>(tokens_first + w)] = x[static_cast<size_t>(heads_first + w)];
          } else {
            y[static_cast<size_t>(heads_first + w)] = x[static_cast<size_t>(tokens_first + w)];
          }
        }
      }
    }
  }
  return y;
}

// All tensors of one run.
struct CellTensors {
  Tensor q, k, v, i, f, h, denominator, m, dh, dq, dk, dv, di, df, workspace;
  MlstmState initial, last, dinitial, dlast;
};

MlstmState BindState(Arena& arena, const MlstmShape& s, DType wide) {
  return {.C = arena.Persistent("cell", wide, {s.B, s.NH, s.DHQK, s.DHV}),
          .n = arena.Persistent("cell", wide, {s.B, s.NH, s.DHQK}),
          .m = arena.Persistent("cell", wide, {s.B, s.NH})};
}

CellTensors BindCell(Arena& arena, const MlstmCellInputs& in, DType compute, const Ops& ops) {
  const MlstmShape& s = in.shape;
  const DType wide = WideOf(compute);
  const int64_t N = s.B * s.T, QK = s.NH * s.DHQK, V = s.NH * s.DHV;
  const auto place = [&](DType dtype, int64_t width) { return arena.Persistent("cell", dtype, {N, width}); };
  CellTensors t;
  t.q = place(compute, QK), t.k = place(compute, QK), t.v = place(compute, V);
  t.i = place(wide, s.NH), t.f = place(wide, s.NH);
  t.h = place(compute, V), t.denominator = place(wide, s.NH), t.m = place(wide, s.NH);
  t.dh = place(compute, V), t.dq = place(compute, QK), t.dk = place(compute, QK), t.dv = place(compute, V);
  t.di = place(wide, s.NH), t.df = place(wide, s.NH);
  t.workspace = arena.Persistent("cell", DType::kU8, {ops.MlstmWorkspaceBytes(s, compute)});
  t.last = BindState(arena, s, wide);
  if (!in.c0.empty()) t.initial = BindState(arena, s, wide), t.dinitial = BindState(arena, s, wide);
  if (!in.dc_true.empty() || !in.dn_true.empty()) t.dlast = BindState(arena, s, wide);
  return t;
}

// exp(m) * d, repeated over the `width` elements that belong to each m: the gradient of the stored state from
// the gradient of the true one. Without d: zeros.
std::vector<double> ScaleByExp(const std::vector<double>& m, const std::vector<double>& d, int64_t width) {
  std::vector<double> y(m.size() * static_cast<size_t>(width), 0);
  for (size_t j = 0; j < y.size() && !d.empty(); ++j)
    y[j] = std::exp(m[j / static_cast<size_t>(width)]) * d[j];
  return y;
}
}  // namespace

absl::StatusOr<MlstmCellResults> RunMlstmCell(const MlstmCellInputs& in, DType compute, Device& device) {
  const MlstmShape& s = in.shape;
  Ops& ops = device.ops();
  CellTensors t;
  const DeviceMemory memory(device, [&](Arena& arena) { t = BindCell(arena, in, compute, ops); });
  if (!memory.ok()) {
    return absl::ResourceExhaustedError(memory.NotEnough("the cell"));
  }
  const bool has_initial = !in.c0.empty(), has_dlast = t.dlast.C.defined();

  // Forward.
  Upload(device, t.q, Permute(in.q, s, s.DHQK, true));
  Upload(device, t.k, Permute(in.k, s, s.DHQK, true));
  Upload(device, t.v, Permute(in.v, s, s.DHV, true));
  Upload(device, t.i, Permute(in.i, s, 1, true));
  Upload(device, t.f, Permute(in.f, s, 1, true));
  Upload(device, t.dh, Permute(in.dh, s, s.DHV, true));
  if (has_initial) {
    Upload(device, t.initial.C, in.c0);
    Upload(device, t.initial.n, in.n0);
    Upload(device, t.initial.m, in.m0);
  }
  ops.MlstmForward({.h = t.h,
                    .denominator = t.denominator,
                    .m = t.m,
                    .last = t.last,
                    .q = t.q,
                    .k = t.k,
                    .v = t.v,
                    .i_pre = t.i,
                    .f_pre = t.f,
                    .initial = t.initial,
                    .workspace = t.workspace,
                    .shape = s});
  MlstmCellResults r;
  r.h = Permute(Download(device, t.h), s, s.DHV, false);
  r.denominator = Permute(Download(device, t.denominator), s, 1, false);
  r.c_last = Download(device, t.last.C);
  r.n_last = Download(device, t.last.n);
  r.m_last = Download(device, t.last.m);

  // Backward.
  if (has_dlast) {
    Upload(device, t.dlast.C, ScaleByExp(r.m_last, in.dc_true, s.DHQK * s.DHV));
    Upload(device, t.dlast.n, ScaleByExp(r.m_last, in.dn_true, s.DHQK));
  }
  ops.MlstmBackward({.dq = t.dq,
                     .dk = t.dk,
                     .dv = t.dv,
                     .di_pre = t.di,
                     .df_pre = t.df,
                     .dinitial = t.dinitial,
                     .dh = t.dh,
                     .dlast = t.dlast,
                     .q = t.q,
                     .k = t.k,
                     .v = t.v,
                     .i_pre = t.i,
                     .f_pre = t.f,
                     .initial = t.initial,
                     .h = t.h,
                     .denominator = t.denominator,
                     .m = t.m,
                     .workspace = t.workspace,
                     .shape = s,
                     .normalizer_gradient = in.normalizer_gradient});
  r.dq = Permute(Download(device, t.dq), s, s.DHQK, false);
  r.dk = Permute(Download(device, t.dk), s, s.DHQK, false);
  r.dv = Permute(Download(device, t.dv), s, s.DHV, false);
  r.di = Permute(Download(device, t.di), s, 1, false);
  r.df = Permute(Download(device, t.df), s, 1, false);
  if (has_initial) {
    r.dc0 = Download(device, t.dinitial.C);
    r.dn0 = Download(device, t.dinitial.n);
    r.dm0 = Download(device, t.dinitial.m);
  }
  return r;
}
}  // namespace carousel
