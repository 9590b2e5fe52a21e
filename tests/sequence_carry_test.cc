// The mLSTM's state over the borders of the sequence axis: on every rank the state that a cell over all
// tokens before it would leave, and the gradient that a cell over all tokens after it would hand back.
#include "core/comm/sequence_carry.h"

#include "tests/mesh_testing.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::RelativeL2;
using testing::Unit;

// A cell over B sequences of T tokens: inputs in f64 by the token's place in the whole.
struct Cell {
  MlstmShape shape = {};
  std::vector<double> q, k, v, i_pre, f_pre, dh;
  std::vector<uint8_t> resets;

  // Of tokens [begin, begin + count) of every sequence of a whole of T tokens.
  static Cell Of(const MlstmShape& whole, int64_t begin, int64_t count, const std::vector<uint8_t>& resets) {
    Cell cell;
    cell.shape = whole;
    cell.shape.T = count;
    for (int64_t b = 0; b < whole.B; ++b) {
      for (int64_t t = begin; t < begin + count; ++t) {
        const int64_t n = b * whole.T + t;
        const auto fill = [&](std::vector<double>& x, const char* name, int64_t width, double shift,
                              double scale) {
          for (int64_t j = 0; j < width; ++j) x.push_back(shift + scale * Unit(name, n * width + j));
        };
        fill(cell.q, "q", whole.NH * whole.DHQK, 0, 1);
        fill(cell.k, "k", whole.NH * whole.DHQK, 0, 1);
        fill(cell.v, "v", whole.NH * whole.DHV, 0, 1);
        fill(cell.i_pre, "i", whole.NH, 0, 4);
        fill(cell.f_pre, "f", whole.NH, 2, 3);
        fill(cell.dh, "dh", whole.NH * whole.DHV, 0, 1);
        cell.resets.push_back(resets.empty() ? 0 : resets[static_cast<size_t>(n)]);
      }
    }
    return cell;
  }
  int64_t N() const { return shape.B * shape.T; }
  Tensor View(std::vector<double>& x) const {
    return Tensor(x.data(), DType::kF64, {N(), static_cast<int64_t>(x.size()) / N()});
  }
  Tensor Resets() { return Tensor(resets.data(), DType::kU8, {N()}); }
};

struct State {
  explicit State(const MlstmShape& s)
      : C(static_cast<size_t>(s.B * s.NH * s.DHQK * s.DHV)),
        n(static_cast<size_t>(s.B * s.NH * s.DHQK)),
        m(static_cast<size_t>(s.B * s.NH)) {}
  MlstmState View(const MlstmShape& s) {
    return {.C = Tensor(C.data(), DType::kF64, {s.B, s.NH, s.DHQK, s.DHV}),
            .n = Tensor(n.data(), DType::kF64, {s.B, s.NH, s.DHQK}),
            .m = Tensor(m.data(), DType::kF64, {s.B, s.NH})};
  }
  std::vector<double> C, n, m;
};
std::vector<double> ValuesOf(Tensor x) {
  return std::vector<double>(x.as<double>(), x.as<double>() + x.num_elems());
}

// What the forward pass leaves for the backward pass.
struct Kept {
  explicit Kept(const Cell& cell)
      : h(static_cast<size_t>(cell.N() * cell.shape.NH * cell.shape.DHV)),
        denominator(static_cast<size_t>(cell.N() * cell.shape.NH)),
        m(denominator.size()) {}
  std::vector<double> h, denominator, m;
};
void Forward(Ops& ops, Cell& cell, Kept& kept, MlstmState initial, MlstmState last, Tensor workspace) {
  ops.MlstmForward({.h = cell.View(kept.h),
                    .denominator = cell.View(kept.denominator),
                    .m = cell.View(kept.m),
                    .last = last,
                    .q = cell.View(cell.q),
                    .k = cell.View(cell.k),
                    .v = cell.View(cell.v),
                    .i_pre = cell.View(cell.i_pre),
                    .f_pre = cell.View(cell.f_pre),
                    .reset = cell.Resets(),
                    .initial = initial,
                    .workspace = workspace,
                    .shape = cell.shape});
}

// The state before token `begin`, and the gradient of the state before token `end`, by one cell each.
struct Expected {
  State initial, dlast;
};
Expected ExpectedAt(Ops& ops, const MlstmShape& whole, int64_t begin, int64_t end,
                    const std::vector<uint8_t>& resets, NormalizerGradient normalizer_gradient,
                    Tensor workspace) {
  Expected expected = {.initial = State(whole), .dlast = State(whole)};
  if (begin > 0) {
    Cell before = Cell::Of(whole, 0, begin, resets);
    Kept kept(before);
    Forward(ops, before, kept, {}, expected.initial.View(whole), workspace);
  }
  if (end < whole.T) {
    State middle(whole);
    Cell until = Cell::Of(whole, 0, end, resets), after = Cell::Of(whole, end, whole.T - end, resets);
    Kept kept_until(until), kept(after);
    Forward(ops, until, kept_until, {}, middle.View(whole), workspace);
    Forward(ops, after, kept, middle.View(whole), {}, workspace);
    std::vector<double> dq(after.q), dk(after.k), dv(after.v), di(after.i_pre), df(after.f_pre);
    ops.MlstmBackward({.dq = after.View(dq),
                       .dk = after.View(dk),
                       .dv = after.View(dv),
                       .di_pre = after.View(di),
                       .df_pre = after.View(df),
                       .dinitial = expected.dlast.View(whole),
                       .dh = after.View(after.dh),
                       .q = after.View(after.q),
                       .k = after.View(after.k),
                       .v = after.View(after.v),
                       .i_pre = after.View(after.i_pre),
                       .f_pre = after.View(after.f_pre),
                       .reset = after.Resets(),
                       .initial = middle.View(whole),
                       .h = after.View(kept.h),
                       .denominator = after.View(kept.denominator),
                       .m = after.View(kept.m),
                       .workspace = workspace,
                       .shape = after.shape,
                       .normalizer_gradient = normalizer_gradient});
  }
  return expected;
}

struct Case {
  MlstmShape whole = {.B = 2, .T = 12, .NH = 3, .DHQK = 4, .DHV = 5, .L = 4};
  std::vector<uint8_t> resets = {};
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
  int64_t more_sequences = 0;  // than the pass has, bound
};

void ExpectStatesAndGradients(const Case& c, int64_t S, const std::string& what) {
  RunLocalMesh({.sequence = S}, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    Ops& ops = device->ops();
    const int64_t T = c.whole.T / S, begin = mesh.sequence.index * T;
    const SequenceCarry carry(mesh.sequence);
    Cell cell = Cell::Of(c.whole, begin, T, c.resets);
    MlstmShape bound = cell.shape;
    bound.B += c.more_sequences;
    SequenceCarry::Memory memory;
    Tensor workspace;
    const DeviceMemory placed(*device, [&](Arena& arena) {
      memory = carry.Bind(arena, DType::kF64, bound, /*train=*/true);
      workspace = arena.Persistent("test", DType::kU8, {ops.MlstmWorkspaceBytes(c.whole, DType::kF64)});
    });
    Expected expected =
        ExpectedAt(ops, c.whole, begin, begin + T, c.resets, c.normalizer_gradient, workspace);

    const MlstmState initial = carry.Forward(ops, memory,
                                             {.summary = {},
                                              .k = cell.View(cell.k),
                                              .v = cell.View(cell.v),
                                              .i_pre = cell.View(cell.i_pre),
                                              .f_pre = cell.View(cell.f_pre),
                                              .reset = cell.Resets(),
                                              .workspace = workspace,
                                              .shape = cell.shape});
    // m is exact beyond rounding because the values of C and n are in its units.
    const std::string at = what + ", segment " + std::to_string(mesh.sequence.index);
    EXPECT_LT(RelativeL2(ValuesOf(initial.C), expected.initial.C), 1e-13) << at;
    EXPECT_LT(RelativeL2(ValuesOf(initial.n), expected.initial.n), 1e-13) << at;
    EXPECT_LT(RelativeL2(ValuesOf(initial.m), expected.initial.m), 1e-13) << at;
    EXPECT_EQ(carry.Initial(memory, cell.shape).C.data, initial.C.data);

    Kept kept(cell);
    Forward(ops, cell, kept, initial, {}, workspace);
    const MlstmState dlast = carry.Backward(ops, memory,
                                            {.dstate = {},
                                             .dh = cell.View(cell.dh),
                                             .q = cell.View(cell.q),
                                             .k = cell.View(cell.k),
                                             .i_pre = cell.View(cell.i_pre),
                                             .f_pre = cell.View(cell.f_pre),
                                             .reset = cell.Resets(),
                                             .h = cell.View(kept.h),
                                             .denominator = cell.View(kept.denominator),
                                             .m = cell.View(kept.m),
                                             .workspace = workspace,
                                             .shape = cell.shape,
                                             .normalizer_gradient = c.normalizer_gradient});
    EXPECT_LT(RelativeL2(ValuesOf(dlast.C), expected.dlast.C), 1e-12) << at;
    EXPECT_LT(RelativeL2(ValuesOf(dlast.n), expected.dlast.n), 1e-12) << at;
    EXPECT_FALSE(dlast.m.defined());
  });
}

TEST(SequenceCarry, BringsTheStateBeforeAndTheGradientBehindEverySegment) {
  for (const int64_t S : {2, 3, 4, 6, 12}) ExpectStatesAndGradients({}, S, std::to_string(S) + " ranks");
}

TEST(SequenceCarry, ResetsCutTheChain) {
  const Case base;
  const int64_t N = base.whole.B * base.whole.T;
  for (int64_t n = 0; n < N; ++n) {
    Case c;
    c.resets.assign(static_cast<size_t>(N), 0);
    c.resets[static_cast<size_t>(n)] = 1;
    ExpectStatesAndGradients(c, 4, "a document starts at " + std::to_string(n));
  }
  Case everywhere;
  everywhere.resets.assign(static_cast<size_t>(N), 1);
  ExpectStatesAndGradients(everywhere, 4, "documents of one token");
}

TEST(SequenceCarry, HoldsForEveryKindOfCell) {
  Case sigmoid, divided, frozen;
  sigmoid.whole.input_gate = divided.whole.input_gate = InputGate::kSigmoid;
  sigmoid.whole.normalize = false;
  frozen.normalizer_gradient = NormalizerGradient::kFrozen;
  ExpectStatesAndGradients(sigmoid, 3, "sigmoid");
  ExpectStatesAndGradients(divided, 3, "sigmoid, normalised");
  ExpectStatesAndGradients(frozen, 3, "frozen normaliser");
}

TEST(SequenceCarry, APassMayHaveFewerSequencesThanWereBound) {
  ExpectStatesAndGradients({.more_sequences = 3}, 4, "2 of 5 sequences");
}

TEST(SequenceCarry, OneRankHasNothingToCarry) {
  const SequenceCarry carry{Axis()};
  Arena arena;
  const SequenceCarry::Memory memory = carry.Bind(arena, DType::kF64, Case().whole, true);
  EXPECT_EQ(arena.total_bytes(), 0);
  const auto device = testing::CpuDevice(1);
  EXPECT_FALSE(carry.Forward(device->ops(), memory, MlstmSummaryArgs{}).C.defined());
  EXPECT_FALSE(carry.Initial(memory, Case().whole).C.defined());
  EXPECT_FALSE(carry.Backward(device->ops(), memory, MlstmSummaryBackwardArgs{}).C.defined());
}

// One AllGather each way, whatever the length of the sequence.
TEST(SequenceCarry, BytesDoNotDependOnTheLength) {
  for (const int64_t T : {4, 400}) {
    const Case c = {.whole = {.B = 2, .T = T, .NH = 3, .DHQK = 4, .DHV = 5, .L = 4}};
    RunLocalMesh({.sequence = 2}, [&](const Mesh& mesh) {
      const auto device = testing::CpuDevice(1);
      const SequenceCarry carry(mesh.sequence);
      Cell cell = Cell::Of(c.whole, 0, T / 2, {});
      SequenceCarry::Memory memory;
      Tensor workspace;
      const DeviceMemory placed(*device, [&](Arena& arena) {
        memory = carry.Bind(arena, DType::kF64, cell.shape, /*train=*/false);
        workspace = arena.Persistent("test", DType::kU8,
                                     {device->ops().MlstmWorkspaceBytes(cell.shape, DType::kF64)});
      });
      const FlightRecorder& recorder = mesh.sequence.communicator->recorder();
      const int64_t before = recorder.num_calls();
      carry.Forward(device->ops(), memory,
                    {.summary = {},
                     .k = cell.View(cell.k),
                     .v = cell.View(cell.v),
                     .i_pre = cell.View(cell.i_pre),
                     .f_pre = cell.View(cell.f_pre),
                     .workspace = workspace,
                     .shape = cell.shape});
      EXPECT_EQ(recorder.num_calls(), before + 1);
      EXPECT_EQ(recorder.Entries().back().call.num_elems, 2 * MlstmSummaryElems(c.whole));
    });
  }
}
}  // namespace
}  // namespace carousel
