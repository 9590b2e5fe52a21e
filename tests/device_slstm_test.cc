// The sLSTM op of a device made of the sources in kernels/cuda, against the specification on the host in f64.
//
// bf16 heads of width 16, 32, .. 128 run on tensor cores, as do those of 192, 256, 384 and 512 where there
// are clusters of blocks; other small heads (f64 up to width 101, f32 143, bf16 202) in one launch of plain
// arithmetic, wider ones token by token.
#include <gtest/gtest.h>

#include "tests/device_testing.h"
#include "tests/slstm_test_util.h"

namespace carousel::slstm_test {
namespace {

// Memory of one tensor on the device.
template <class T>
class DeviceStorage {
 public:
  // offset: elements between an allocation and the tensor.
  DeviceStorage(Device& device, std::initializer_list<int64_t> dims, const Values& x, int64_t offset = 0)
      : device_(device), tensor_(nullptr, DTypeOf<T>::value, dims) {
    memory_ = static_cast<T*>(device.Allocate((tensor_.num_elems() + offset + 1) * sizeof(T)));
    tensor_.data = memory_ + offset;
    EXPECT_EQ(static_cast<int64_t>(x.size()), tensor_.num_elems());
    std::vector<T> converted(x.size());
    for (size_t e = 0; e < x.size(); ++e) converted[e] = FromDouble<T>(x[e]);
    if (!x.empty()) device.CopyToDevice(tensor_.data, converted.data(), tensor_.num_bytes());
  }
  DeviceStorage(Device& device, std::initializer_list<int64_t> dims, double value, int64_t offset = 0)
      : DeviceStorage(device, dims, Values(Tensor(nullptr, DType::kU8, dims).num_elems(), value), offset) {}
  ~DeviceStorage() { device_.Free(memory_); }
  DeviceStorage(const DeviceStorage&) = delete;
  DeviceStorage& operator=(const DeviceStorage&) = delete;

  Tensor tensor() const { return tensor_; }
  Values values() const {
    std::vector<T> converted(tensor_.num_elems());
    if (!converted.empty()) device_.CopyToHost(converted.data(), tensor_.data, tensor_.num_bytes());
    Values x(converted.size());
    for (size_t e = 0; e < x.size(); ++e) {
      if constexpr (std::is_same_v<T, double>) {
        x[e] = converted[e];
      } else {
        x[e] = static_cast<double>(static_cast<float>(converted[e]));
      }
    }
    return x;
  }

 private:
  Device& device_;
  T* memory_;
  Tensor tensor_;
};
template <class W>
struct DeviceState {
  DeviceState(Device& device, const Problem& p, const State& x, int64_t offset = 0)
      : y(device, {p.shape.B, p.Width()}, x.y, offset),
        c(device, {p.shape.B, p.Width()}, x.c, offset),
        n(device, {p.shape.B, p.Width()}, x.n, offset),
        m(device, {p.shape.B, p.Width()}, x.m.empty() ? Values(x.y.size(), NAN) : x.m, offset) {}
  SlstmState state() const { return {y.tensor(), c.tensor(), n.tensor(), m.tensor()}; }
  State values() const { return {y.values(), c.values(), n.values(), m.values()}; }
  DeviceStorage<W> y, c, n, m;
};
// Bytes that begin at no aligned address; the last 64 must survive.
class Workspace {
 public:
  Workspace(Device& device, int64_t bytes) : device_(device), bytes_(bytes), fill_(bytes + 65, 0xff) {
    std::fill(fill_.end() - 64, fill_.end(), 0x5a);
    memory_ = static_cast<uint8_t*>(device.Allocate(bytes + 65));
    Poison();
  }
  ~Workspace() { device_.Free(memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  Tensor tensor() const { return Tensor(memory_ + 1, DType::kU8, {bytes_}); }
  // All bits set: NaN in every float type.
  void Poison() { device_.CopyToDevice(memory_, fill_.data(), bytes_ + 65); }
  void ExpectNothingBeyond() {
    std::vector<uint8_t> end(64);
    device_.CopyToHost(end.data(), memory_ + 1 + bytes_, 64);
    EXPECT_EQ(end, std::vector<uint8_t>(64, 0x5a)) << "written beyond the workspace";
  }

 private:
  Device& device_;
  const int64_t bytes_;
  std::vector<uint8_t> fill_;
  uint8_t* memory_;
};

struct DeviceRunOptions : RunOptions {
  int64_t offset = 0;  // elements between an allocation and a tensor
};
// Forward and, unless the problem has no dy, backward.
template <class T>
Result RunOn(Device& device, const Problem& p, const DeviceRunOptions& options = {}) {
  using W = Wide<T>;
  const SlstmShape& s = p.shape;
  const int64_t N = p.N(), width = p.Width(), offset = options.offset;
  Ops& ops = device.ops();
  Workspace workspace(device, ops.SlstmWorkspaceBytes(s, DTypeOf<T>::value));
  uint8_t* reset_memory = nullptr;
  if (!p.reset.empty()) {
    reset_memory = static_cast<uint8_t*>(device.Allocate(N));
    device.CopyToDevice(reset_memory, p.reset.data(), N);
  }
  const Tensor reset = reset_memory == nullptr ? Tensor() : Tensor(reset_memory, DType::kU8, {N});
  const DeviceStorage<W> wx(device, {N, 4 * width}, p.wx, offset),
      separate_gates(device, {N, 4 * width}, NAN, offset), bias(device, {4 * width}, p.b, offset);
  const DeviceStorage<W>& gates = options.in_place ? wx : separate_gates;
  const DeviceStorage<T> R(device, {4 * width, s.D}, p.R, offset), y(device, {N, width}, NAN, offset);
  const DeviceStorage<W> c(device, {N, width}, NAN, offset), n(device, {N, width}, NAN, offset),
      m(device, {N, width}, NAN, offset);
  const Values zeros(s.B * width, 0.0), nans(s.B * width, NAN);
  const State none = {zeros, zeros, zeros, zeros}, unwritten = {nans, nans, nans, nans};
  const DeviceState<W> initial(device, p, p.initial.given() ? p.initial : none, offset),
      initial_copy(device, p, p.initial.given() ? p.initial : none, offset),
      separate_last(device, p, unwritten, offset);
  const DeviceState<W>& last = options.in_place ? initial : separate_last;
  ops.SlstmForward({.y = y.tensor(),
                    .gates = gates.tensor(),
                    .c = c.tensor(),
                    .n = n.tensor(),
                    .m = m.tensor(),
                    .last = options.without_last ? SlstmState() : last.state(),
                    .wx = wx.tensor(),
                    .recurrent = R.tensor(),
                    .bias = bias.tensor(),
                    .reset = reset,
                    .initial = p.initial.given() ? initial.state() : SlstmState(),
                    .workspace = workspace.tensor(),
                    .shape = s});
  Result r;
  r.y = y.values();
  r.c = c.values();
  r.n = n.values();
  r.m = m.values();
  if (!options.without_last) r.last = last.values();
  workspace.ExpectNothingBeyond();
  if (!p.dy.empty() || p.N() == 0) {
    workspace.Poison();
    const DeviceStorage<T> dy(device, {N, width}, p.dy, offset), dwx(device, {N, 4 * width}, NAN, offset);
    const DeviceStorage<W> dR(device, {4 * width, s.D}, options.accumulated, offset),
        db(device, {4 * width}, options.accumulated, offset);
    const DeviceState<W> dinitial(device, p, unwritten, offset),
        dlast(device, p, p.dlast.given() ? p.dlast : none, offset);
    SlstmState dlast_state = dlast.state();
    dlast_state.m = {};
    ops.SlstmBackward({.dwx = dwx.tensor(),
                       .drecurrent = dR.tensor(),
                       .dbias = db.tensor(),
                       .dinitial = options.without_last ? SlstmState() : dinitial.state(),
                       .dy = dy.tensor(),
                       .dlast = p.dlast.given() ? dlast_state : SlstmState(),
                       .y = y.tensor(),
                       .gates = gates.tensor(),
                       .c = c.tensor(),
                       .n = n.tensor(),
                       .m = m.tensor(),
                       .recurrent = R.tensor(),
                       .reset = reset,
                       .initial = p.initial.given() ? initial_copy.state() : SlstmState(),
                       .workspace = workspace.tensor(),
                       .shape = s,
                       .gradient_clip = p.gradient_clip,
                       .gradient_cut = p.gradient_cut});
    r.dwx = dwx.values();
    r.dR = dR.values();
    r.db = db.values();
    if (!options.without_last) r.dinitial = dinitial.values();
    workspace.ExpectNothingBeyond();
  }
  device.Synchronize();
  device.Free(reset_memory);
  return r;
}
Result RunOn(Device& device, DType compute, const Problem& p, const DeviceRunOptions& options = {}) {
  Result r;
  DispatchFloat(compute, [&]<class T>() { r = RunOn<T>(device, p, options); });
  return r;
}

struct Case {
  int64_t B, T, NH, D;
  bool with_states = false;
  std::vector<int64_t> resets = {};
  double clip = 0;
  bool cut = false;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.B << " T" << c.T << " NH" << c.NH << " D" << c.D << " states " << c.with_states
             << " resets " << c.resets.size() << " clip " << c.clip << " cut " << c.cut;
}
Problem ProblemOf(const Case& c, DType compute) {
  Problem p = RandomProblem({.B = c.B, .T = c.T, .NH = c.NH, .D = c.D}, 11);
  if (c.with_states) {
    AddInitialState(p, 12);
    AddLastGradient(p, 13);
    // some elements begin anew
    for (size_t e = 0; e < p.initial.y.size(); e += 5) {
      for (Values* x : {&p.initial.c, &p.initial.n, &p.initial.m}) (*x)[e] = 0;
    }
  }
  if (!c.resets.empty()) p.reset.assign(p.N(), 0);
  for (const int64_t row : c.resets) p.reset[row] = 1;
  p.gradient_clip = c.clip;
  p.gradient_cut = c.cut;
  if (compute != DType::kF64) RoundInputs(p, compute);
  return p;
}
// One sequence, some, a whole tile of 8, one more than one and two tiles; every width that has kernels of its
// own on tensor cores, and others.
const std::vector<Case>& Cases() {
  static const std::vector<Case>& cases = *new std::vector<Case>{
      {1, 9, 1, 1, true},
      {2, 1, 2, 3, true},
      {3, 7, 2, 3, true, {0, 5, 7, 16}},
      {17, 2, 3, 3, false, {4}, 0.05},
      {9, 33, 2, 16, true, {0, 1, 40, 41, 296}},
      {3, 7, 1, 32, true, {3, 7}, 0.05},
      {17, 7, 2, 32, false},
      {8, 7, 1, 48, true, {}, 0, true},
      {9, 2, 2, 64, true, {1, 2, 17}, 0.1},
      {1, 33, 1, 64, false, {32}},
      {1, 7, 1, 80, true, {2}},
      {3, 2, 1, 96, true},
      {3, 7, 1, 100, true, {7, 20}},
      {2, 1, 1, 112, true, {1}},
      {8, 7, 1, 128, true, {6, 7, 30}},
      {1, 1, 2, 128, true},
      {9, 2, 1, 136, true, {3}, 0.05},
      {1, 3, 1, 192, true, {1}},
      {2, 2, 1, 256, true, {2}, 0.05},
      {3, 3, 1, 210, true, {5}, 0.05},
      {9, 2, 1, 260, false, {}, 0, true},
  };
  return cases;
}

TEST(DeviceSlstm, F64EqualsTheSpecification) {
  const auto device = testing::MakeTestDevice();
  for (const Case& c : Cases()) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kF64);
    // sums of up to 4 D terms in another order, carried over up to 33 tokens
    ExpectClose(RunOn<double>(*device, p, {{.accumulated = 0.5}}), Specification(p, {.accumulated = 0.5}),
                1e-13);
  }
}

TEST(DeviceSlstm, F32EqualsTheSpecificationToRounding) {
  const auto device = testing::MakeTestDevice();
  for (const Case& c : Cases()) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kF32);
    // sums of up to 4 D terms in f32, carried over up to 33 tokens
    ExpectClose(RunOn<float>(*device, p, {{.accumulated = 0.5}}), Specification(p, {.accumulated = 0.5}),
                4e-6);
  }
}

TEST(DeviceSlstm, Bf16StaysWithinTheErrorOfItsRoundings) {
  const auto device = testing::MakeTestDevice();
  std::vector<Case> cases = Cases();
  cases.push_back({1, 3, 1, 384, true, {1}, 0.05});
  cases.push_back({2, 3, 1, 512, true, {4}});
  // clusters over more tokens than their tiles and barriers take turns
  cases.push_back({9, 11, 2, 192, true, {0, 5, 30, 98}});
  cases.push_back({1, 10, 1, 256, false, {9}, 0.05});
  cases.push_back({3, 7, 1, 384, true, {8}});
  cases.push_back({1, 9, 1, 512, true});
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kBF16);
    // y and draw are rounded to bf16 (at most 2^-9 relative) on every way through the recurrence
    ExpectClose(RunOn<bfloat16>(*device, p), Specification(p), 8e-3);
  }
}

// One shape for each kind of kernels.
struct Kind {
  DType compute;
  int64_t D;
};
std::ostream& operator<<(std::ostream& out, const Kind& kind) {
  return out << NameOf(kind.compute) << " D" << kind.D;
}
constexpr Kind kKinds[] = {{DType::kBF16, 32}, {DType::kBF16, 80}, {DType::kBF16, 192},
                           {DType::kF32, 21},  {DType::kBF16, 33}, {DType::kF32, 150}};

TEST(DeviceSlstm, SegmentsEqualTheWholeSequenceBitForBit) {
  const auto device = testing::MakeTestDevice();
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(::testing::Message() << kind);
    const Case c = {3, 6, 1, kind.D, true, {3, 6 + 5}, 0.05};
    const Problem p = ProblemOf(c, kind.compute);
    const Result whole = RunOn(*device, kind.compute, p);
    const int64_t bounds[] = {0, 3, 4, 6};
    State states[4] = {p.initial};
    Result parts[3];
    for (int i = 0; i < 3; ++i) {
      Problem part = Segment(p, bounds[i], bounds[i + 1], states[i]);
      part.dy.clear();
      parts[i] = RunOn(*device, kind.compute, part, {{.in_place = true}});
      for (Values Result::*x : {&Result::y, &Result::c, &Result::n, &Result::m})
        EXPECT_EQ(parts[i].*x, Tokens(whole.*x, p.shape, bounds[i], bounds[i + 1]));
      states[i + 1] = parts[i].last;
    }
    for (Values State::*x : {&State::y, &State::c, &State::n, &State::m})
      EXPECT_EQ(states[3].*x, whole.last.*x);
    // backward from the last segment to the first
    State gradient = p.dlast;
    for (int i = 2; i >= 0; --i) {
      Problem part = Segment(p, bounds[i], bounds[i + 1], states[i]);
      part.dlast = gradient;
      const Result r = RunOn(*device, kind.compute, part);
      EXPECT_EQ(r.dwx, Tokens(whole.dwx, p.shape, bounds[i], bounds[i + 1]));
      gradient = r.dinitial;
    }
    for (Values State::*x : {&State::y, &State::c, &State::n, &State::m})
      EXPECT_EQ(gradient.*x, whole.dinitial.*x);
  }
}

TEST(DeviceSlstm, PackedDocumentsEqualSeparateSequencesBitForBit) {
  const auto device = testing::MakeTestDevice();
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(::testing::Message() << kind);
    // the initial state belongs to what came before: not seen, row 0 starts a document
    const Problem packed = ProblemOf({1, 9, 1, kind.D, true, {0, 1, 6, 7}, 0.2}, kind.compute);
    const int64_t bounds[] = {0, 1, 6, 7, 9};
    const Result whole = RunOn(*device, kind.compute, packed);
    for (int i = 0; i < 4; ++i) {
      Problem document = Segment(packed, bounds[i], bounds[i + 1], {});
      document.reset.clear();
      const Result r = RunOn(*device, kind.compute, document);
      for (Values Result::*x : {&Result::y, &Result::c, &Result::n, &Result::m, &Result::dwx})
        EXPECT_EQ(r.*x, Tokens(whole.*x, packed.shape, bounds[i], bounds[i + 1])) << i;
    }
    const Values zeros(packed.Width(), 0.0);
    for (Values State::*x : {&State::y, &State::c, &State::n, &State::m}) EXPECT_EQ(whole.dinitial.*x, zeros);
  }
}

TEST(DeviceSlstm, ASequenceDoesNotDependOnTheOthersOfItsBatch) {
  const auto device = testing::MakeTestDevice();
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(::testing::Message() << kind);
    const Case c = {11, 3, 1, kind.D, true, {3, 7}};
    const int64_t b = 9;
    const Problem batch = ProblemOf(c, kind.compute);
    const auto sequence = [&](const Values& x) {
      const int64_t size = static_cast<int64_t>(x.size()) / c.B;
      return Values(x.begin() + b * size, x.begin() + (b + 1) * size);
    };
    Problem alone = batch;
    alone.shape.B = 1;
    alone.reset.assign(c.T, 0);
    for (Values* x : {&alone.wx, &alone.dy, &alone.initial.y, &alone.initial.c, &alone.initial.n,
                      &alone.initial.m, &alone.dlast.y, &alone.dlast.c, &alone.dlast.n})
      *x = sequence(*x);
    const Result all = RunOn(*device, kind.compute, batch), one = RunOn(*device, kind.compute, alone);
    const auto x = AllOf(all), y = AllOf(one);
    for (size_t e = 0; e < x.size(); ++e) {
      const std::string name = x[e].name;
      if (name == "drecurrent" || name == "dbias") continue;  // sums over the batch
      EXPECT_EQ(sequence(*x[e].values), *y[e].values) << name;
    }
  }
}

TEST(DeviceSlstm, TwoRunsInPlaceOrNotWithStatesOrNotGiveTheSameBits) {
  const auto device = testing::MakeTestDevice();
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(::testing::Message() << kind);
    const Problem p = ProblemOf({5, 3, 2, kind.D, true, {7}}, kind.compute);
    const Result r = RunOn(*device, kind.compute, p);
    ExpectEqualBits(AllOf(RunOn(*device, kind.compute, p, {{.in_place = true}})), AllOf(r));
    const Result without = RunOn(*device, kind.compute, p, {{.without_last = true}});
    for (Values Result::*x : {&Result::y, &Result::c, &Result::dwx, &Result::dR, &Result::db})
      EXPECT_EQ(without.*x, r.*x);
  }
}

TEST(DeviceSlstm, TensorsMayBeginAtAnyElement) {
  const auto device = testing::MakeTestDevice();
  for (const Case& c : {Case{3, 3, 2, 32, true, {4}}, Case{2, 2, 1, 20, true}}) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kBF16);
    DeviceRunOptions options;
    options.offset = 1;
    ExpectClose(RunOn<bfloat16>(*device, p, options), Specification(p), 8e-3);
  }
}

TEST(DeviceSlstm, ExtremeGatesEqualTheSpecification) {
  const auto device = testing::MakeTestDevice();
  for (const double size : {100.0, 700.0}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(::testing::Message() << NameOf(compute) << " " << size);
      Problem p = RandomProblem({.B = 9, .T = 24, .NH = 1, .D = 16}, 81);
      AddLastGradient(p, 82);
      // every gate of every element at -size, its own value or +size, in all combinations over time
      for (size_t e = 0; e < p.wx.size(); ++e)
        p.wx[e] += size * static_cast<double>(static_cast<int64_t>(RandomUint64(83, 0, e) % 3) - 1);
      RoundInputs(p, compute);
      const Result r = RunOn(*device, compute, p);
      for (const NamedValues& x : AllOf(r)) {
        for (const double value : *x.values) ASSERT_TRUE(std::isfinite(value)) << x.name;
      }
      // m of 700 has 6e-5 of resolution in f32, and the gates are exponentials of differences of such m; in
      // bf16 an error of 2^-9 in y besides
      ExpectClose(r, Specification(p), compute == DType::kF32 ? 1e-3 : 8e-3);
    }
  }
}

TEST(DeviceSlstm, NotANumberReachesTheOutputOfItsSequenceOnly) {
  const auto device = testing::MakeTestDevice();
  for (const Kind& kind : {Kind{DType::kBF16, 16}, Kind{DType::kF32, 20}, Kind{DType::kF32, 150}}) {
    for (int64_t gate = 0; gate < 4; ++gate) {
      for (const int64_t token : {0, 2}) {  // fresh, or with a state
        SCOPED_TRACE(::testing::Message() << kind << " gate " << gate << " token " << token);
        Problem p = ProblemOf({2, 4, 1, kind.D}, kind.compute);
        p.dy.clear();
        p.wx[(token * 4 + gate) * kind.D + 3] = std::nan("");
        const Values y = RunOn(*device, kind.compute, p).y;
        EXPECT_TRUE(std::isnan(y[3 * kind.D + 3]));
        for (int64_t e = 0; e < 4 * kind.D; ++e) ASSERT_TRUE(std::isfinite(y[4 * kind.D + e]));
      }
    }
  }
}

TEST(DeviceSlstm, AnEmptySequencePassesItsStateAndGradientThrough) {
  const auto device = testing::MakeTestDevice();
  for (const int64_t D : {3, 16}) {
    const Problem p = ProblemOf({2, 0, 2, D, true}, DType::kBF16);
    const Result r = RunOn<bfloat16>(*device, p), expected = Specification(p);
    ExpectEqualBits(OutputsOf(r), OutputsOf(expected));
    ExpectClose(r, expected, 1e-7);  // dinitial.m is a sum in f32
  }
  const Problem nothing = ProblemOf({0, 3, 2, 16, true}, DType::kBF16);
  const Result r = RunOn<bfloat16>(*device, nothing, {{.accumulated = 0.5}});
  EXPECT_EQ(r.dR, Values(r.dR.size(), 0.5));
}

TEST(DeviceSlstm, FewerSequencesOrTokensNeedNoMoreWorkspace) {
  const auto device = testing::MakeTestDevice();
  for (const DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    for (const int64_t D : {3, 64, 300}) {
      for (const int64_t T : {0, 1, 2, 9}) {
        for (const int64_t B : {0, 1, 3, 8}) {
          const auto bytes = [&](int64_t b, int64_t t) {
            return device->ops().SlstmWorkspaceBytes({.B = b, .T = t, .NH = 2, .D = D}, compute);
          };
          EXPECT_LE(bytes(B, T), bytes(B + 1, T));
          EXPECT_LE(bytes(B, T), bytes(B, T + 1));
        }
      }
    }
  }
}
}  // namespace
}  // namespace carousel::slstm_test
