// The recurrent cells alone: the mLSTM over whole sequences and one token, the sLSTM likewise.
// FLOPs and bytes of the mLSTM: a state of N = DHQK*DHV per head takes 4N + L(DHQK+DHV) per token forward and
// 10N + L(3 DHQK + 2 DHV) backward; q, k, v, h are read or written once each.
#include <algorithm>

#include "kernels/bench/op_timer.h"

namespace carousel {
namespace {

double Product(std::initializer_list<int64_t> factors) {
  double product = 1;
  for (const int64_t f : factors) product *= static_cast<double>(f);
  return product;
}

struct MlstmTensors {
  MlstmTensors(OpTimer& timer, const MlstmShape& s)
      : shape(s),
        q(timer.Random(timer.compute(), {s.B * s.T, s.NH * s.DHQK})),
        k(timer.Random(timer.compute(), {s.B * s.T, s.NH * s.DHQK})),
        v(timer.Random(timer.compute(), {s.B * s.T, s.NH * s.DHV})),
        h(timer.Empty(timer.compute(), {s.B * s.T, s.NH * s.DHV})),
        i_pre(timer.Random(timer.wide(), {s.B * s.T, s.NH})),
        f_pre(timer.Random(timer.wide(), {s.B * s.T, s.NH})),
        denominator(timer.Empty(timer.wide(), {s.B * s.T, s.NH})),
        m(timer.Empty(timer.wide(), {s.B * s.T, s.NH})),
        workspace(timer.Empty(DType::kU8, {timer.ops().MlstmWorkspaceBytes(s, timer.compute())})) {}
  void Forward(Ops& ops, const MlstmState& state) const {
    ops.MlstmForward({.h = h,
                      .denominator = denominator,
                      .m = m,
                      .last = state,
                      .q = q,
                      .k = k,
                      .v = v,
                      .i_pre = i_pre,
                      .f_pre = f_pre,
                      .initial = state,
                      .workspace = workspace,
                      .shape = shape});
  }
  MlstmShape shape;
  Tensor q, k, v, h, i_pre, f_pre, denominator, m, workspace;
};

void TimeMlstm(OpTimer& timer) {
  const OpBenchShape& s = timer.shape();
  const MlstmShape shape = {.B = s.B, .T = s.T, .NH = s.NH, .DHQK = s.DHQK, .DHV = s.DHV, .L = s.L};
  const double token_heads = Product({s.B, s.T, s.NH}), N = Product({s.DHQK, s.DHV});
  const auto L = static_cast<double>(s.L), QK = static_cast<double>(s.DHQK), V = static_cast<double>(s.DHV);
  const auto size = static_cast<double>(SizeOf(timer.compute()));
  const MlstmTensors t(timer, shape);
  timer.Time("mlstm forward",
             {.calls = s.num_blocks - s.num_slstm_blocks,
              .flops = token_heads * (4 * N + L * (QK + V)),
              .bytes = token_heads * size * 2 * (QK + V)},
             [&] { t.Forward(timer.ops(), {}); });
  const Tensor dh = timer.Random(timer.compute(), {s.B * s.T, s.NH * s.DHV}),
               dq = timer.Empty(timer.compute(), {s.B * s.T, s.NH * s.DHQK}),
               dk = timer.Empty(timer.compute(), {s.B * s.T, s.NH * s.DHQK}),
               dv = timer.Empty(timer.compute(), {s.B * s.T, s.NH * s.DHV}),
               di_pre = timer.Empty(timer.wide(), {s.B * s.T, s.NH}),
               df_pre = timer.Empty(timer.wide(), {s.B * s.T, s.NH});
  timer.Time("mlstm backward",
             {.calls = s.num_blocks - s.num_slstm_blocks,
              .flops = token_heads * (10 * N + L * (3 * QK + 2 * V)),
              .bytes = token_heads * size * (4 * QK + 3 * V)},
             [&] {
               timer.ops().MlstmBackward({.dq = dq,
                                          .dk = dk,
                                          .dv = dv,
                                          .di_pre = di_pre,
                                          .df_pre = df_pre,
                                          .dh = dh,
                                          .q = t.q,
                                          .k = t.k,
                                          .v = t.v,
                                          .i_pre = t.i_pre,
                                          .f_pre = t.f_pre,
                                          .h = t.h,
                                          .denominator = t.denominator,
                                          .m = t.m,
                                          .workspace = t.workspace,
                                          .shape = shape});
             });
  timer.FreeAll();

  MlstmShape step = shape;
  step.T = 1;
  const MlstmTensors one(timer, step);
  const MlstmState state = {timer.Random(timer.wide(), {s.B, s.NH, s.DHQK, s.DHV}),
                            timer.Random(timer.wide(), {s.B, s.NH, s.DHQK}),
                            timer.Random(timer.wide(), {s.B, s.NH})};
  const double heads = Product({s.B, s.NH});
  timer.Time("mlstm step",
             {.flops = heads * 4 * N,
              .bytes = heads * (2 * N * static_cast<double>(SizeOf(timer.wide())) + size * 2 * (QK + V)),
              .steps = 1},
             [&] { one.Forward(timer.ops(), state); });
  timer.FreeAll();
}

void TimeSlstm(OpTimer& timer) {
  const OpBenchShape& s = timer.shape();
  const int64_t NH = s.slstm_NH > 0 ? s.slstm_NH : s.NH, head = s.D / NH, width = head * NH;
  const int64_t B = s.slstm_B > 0 ? s.slstm_B : s.B, longest = s.slstm_T > 0 ? s.slstm_T : s.T;
  for (const int64_t T : {longest, int64_t{1}}) {
    const SlstmShape shape = {.B = B, .T = T, .NH = NH, .D = head};
    const int64_t rows = B * T;
    const DType compute = timer.compute(), wide = timer.wide();
    // a small R: gradients neither grow nor vanish
    const Tensor R = timer.Random(compute, {4 * width, head}, 0.01), bias = timer.Random(wide, {4 * width}),
                 dR = timer.Random(wide, {4 * width, head}), dbias = timer.Random(wide, {4 * width}),
                 y = timer.Empty(compute, {rows, width}), wx = timer.Random(wide, {rows, 4 * width}),
                 gates = timer.Empty(wide, {rows, 4 * width}), c = timer.Empty(wide, {rows, width}),
                 n = timer.Empty(wide, {rows, width}), m = timer.Empty(wide, {rows, width}),
                 dy = timer.Random(compute, {rows, width}), dwx = timer.Empty(compute, {rows, 4 * width});
    const Tensor workspace = timer.Empty(DType::kU8, {timer.ops().SlstmWorkspaceBytes(shape, compute)});
    SlstmState state = {timer.Empty(wide, {B, width}), timer.Empty(wide, {B, width}),
                        timer.Empty(wide, {B, width}), timer.Empty(wide, {B, width})};
    for (const Tensor& part : {state.y, state.c, state.n, state.m}) timer.ops().Fill({.y = part, .value = 0});
    const bool step = T == 1;
    const double flops = 8 * Product({rows, width, head}), elems = Product({rows, width});
    const auto wide_bytes = static_cast<double>(SizeOf(wide)),
               compute_bytes = static_cast<double>(SizeOf(compute));
    const auto R_bytes = static_cast<double>(R.num_bytes());
    timer.Time(step ? "slstm step" : "slstm forward",
               {.calls = step ? 0 : s.num_slstm_blocks,
                .flops = flops,
                .bytes = elems * (11 * wide_bytes + compute_bytes) + R_bytes,
                .steps = T},
               [&] {
                 timer.ops().SlstmForward({.y = y,
                                           .gates = gates,
                                           .c = c,
                                           .n = n,
                                           .m = m,
                                           .last = step ? state : SlstmState(),
                                           .wx = wx,
                                           .recurrent = R,
                                           .bias = bias,
                                           .initial = step ? state : SlstmState(),
                                           .workspace = workspace,
                                           .shape = shape});
               });
    if (!step) {
      timer.Time("slstm backward",
                 {.calls = s.num_slstm_blocks,
                  .flops = 2 * flops,
                  .bytes = elems * (6 * wide_bytes + 7 * compute_bytes) + 2 * R_bytes,
                  .steps = T},
                 [&] {
                   timer.ops().SlstmBackward({.dwx = dwx,
                                              .drecurrent = dR,
                                              .dbias = dbias,
                                              .dy = dy,
                                              .y = y,
                                              .gates = gates,
                                              .c = c,
                                              .n = n,
                                              .m = m,
                                              .recurrent = R,
                                              .workspace = workspace,
                                              .shape = shape});
                 });
    }
    timer.FreeAll();
  }
}
}  // namespace

std::vector<OpTiming> TimeCells(Device& device, const OpBenchShape& shape, int64_t repeats) {
  OpTimer timer(device, shape, repeats);
  TimeMlstm(timer);
  TimeSlstm(timer);
  return timer.Take();
}
}  // namespace carousel
