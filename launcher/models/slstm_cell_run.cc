#include "launcher/models/slstm_cell_run.h"

#include "absl/strings/str_cat.h"
#include "core/device_memory.h"
#include "launcher/models/tensor_copy.h"

namespace carousel {
namespace {
constexpr int64_t kNumGates = 4;

// (outer, inner, W) -> (inner, outer, W).
std::vector<double> SwapOuter(const std::vector<double>& x, int64_t outer, int64_t inner, int64_t W) {
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(x.size()), outer * inner * W);
  std::vector<double> y(x.size());
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      const auto from = x.begin() + (o * inner + i) * W;
      std::copy(from, from + W, y.begin() + (i * outer + o) * W);
    }
  }
  return y;
}

struct CellTensors {
  Tensor wx, r, b, dy, y, gates, c, n, m, dwx, dr, db, workspace;
  SlstmState initial, last, dinitial;
};

SlstmState BindState(Arena& arena, const SlstmShape& s, DType wide) {
  const auto place = [&] { return arena.Persistent("cell", wide, {s.B, s.NH * s.D}); };
  return {.y = place(), .c = place(), .n = place(), .m = place()};
}

CellTensors BindCell(Arena& arena, const SlstmCellInputs& in, DType compute, const Ops& ops) {
  const SlstmShape& s = in.shape;
  const DType wide = WideOf(compute);
  const int64_t N = s.B * s.T, W = s.NH * s.D;
  const auto place = [&](DType dtype, int64_t width) { return arena.Persistent("cell", dtype, {N, width}); };
  CellTensors t;
  t.wx = place(wide, kNumGates * W), t.gates = place(wide, kNumGates * W);
  t.dwx = place(compute, kNumGates * W);
  t.dy = place(compute, W), t.y = place(compute, W);
  t.c = place(wide, W), t.n = place(wide, W), t.m = place(wide, W);
  t.r = arena.Persistent("cell", compute, {kNumGates * W, s.D});
  t.dr = arena.Persistent("cell", wide, {kNumGates * W, s.D});
  t.b = arena.Persistent("cell", wide, {kNumGates * W});
  t.db = arena.Persistent("cell", wide, {kNumGates * W});
  t.workspace = arena.Persistent("cell", DType::kU8, {ops.SlstmWorkspaceBytes(s, compute)});
  t.last = BindState(arena, s, wide);
  if (!in.s0.empty()) t.initial = BindState(arena, s, wide), t.dinitial = BindState(arena, s, wide);
  return t;
}

// The four tensors of a state, one after the other.
std::vector<double> DownloadState(Device& device, const SlstmState& state) {
  std::vector<double> all;
  for (const Tensor& t : {state.y, state.c, state.n, state.m}) {
    const std::vector<double> values = Download(device, t);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}
}  // namespace

absl::StatusOr<SlstmCellResults> RunSlstmCell(const SlstmCellInputs& in, DType compute, Device& device) {
  const SlstmShape& s = in.shape;
  const int64_t W = s.NH * s.D, head_rows = s.D * s.D;
  Ops& ops = device.ops();
  CellTensors t;
  const DeviceMemory memory(device, [&](Arena& arena) { t = BindCell(arena, in, compute, ops); });
  if (!memory.ok()) {
    return absl::ResourceExhaustedError(memory.NotEnough("the cell"));
  }
  Upload(device, t.wx, SwapOuter(in.wx, s.T, s.B, kNumGates * W));
  Upload(device, t.r, SwapOuter(in.r, s.NH, kNumGates, head_rows));
  Upload(device, t.b, in.b);
  Upload(device, t.dy, SwapOuter(in.dy, s.T, s.B, W));
  if (!in.s0.empty()) {
    const int64_t count = s.B * W;
    const Tensor states[] = {t.initial.y, t.initial.c, t.initial.n, t.initial.m};
    for (int64_t j = 0; j < 4; ++j) {
      const auto begin = in.s0.begin() + j * count;
      Upload(device, states[j], std::vector<double>(begin, begin + count));
    }
  }
  ops.SlstmForward({.y = t.y,
                    .gates = t.gates,
                    .c = t.c,
                    .n = t.n,
                    .m = t.m,
                    .last = t.last,
                    .wx = t.wx,
                    .recurrent = t.r,
                    .bias = t.b,
                    .initial = t.initial,
                    .workspace = t.workspace,
                    .shape = s});
  SlstmCellResults r;
  r.y = SwapOuter(Download(device, t.y), s.B, s.T, W);
  r.last = DownloadState(device, t.last);

  for (const Tensor& gradient : {t.dr, t.db}) ops.Fill({.y = gradient, .value = 0});
  ops.SlstmBackward({.dwx = t.dwx,
                     .drecurrent = t.dr,
                     .dbias = t.db,
                     .dinitial = t.dinitial,
                     .dy = t.dy,
                     .y = t.y,
                     .gates = t.gates,
                     .c = t.c,
                     .n = t.n,
                     .m = t.m,
                     .recurrent = t.r,
                     .initial = t.initial,
                     .workspace = t.workspace,
                     .shape = s});
  r.dwx = SwapOuter(Download(device, t.dwx), s.B, s.T, kNumGates * W);
  r.dr = SwapOuter(Download(device, t.dr), kNumGates, s.NH, head_rows);
  r.db = Download(device, t.db);
  if (!in.s0.empty()) r.ds0 = DownloadState(device, t.dinitial);
  return r;
}
}  // namespace carousel
