// The mLSTM cell's scans on tensor cores, the portable one and what the device has for its architecture,
// against the specification in f64 on inputs rounded to bf16.
#include <gtest/gtest.h>

#include "tests/device_mlstm_testing.h"
#include "tests/device_testing.h"

namespace carousel::mlstm_test {
namespace {

enum class Gates { kExponential, kSigmoid, kSigmoidNotNormalized };
struct Case {
  int64_t B, T, NH, DHQK, DHV;
  Gates gates = Gates::kExponential;
  bool with_states = false;
  std::vector<int64_t> resets = {};
  double i_mean = 0, f_mean = 3;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.B << " T" << c.T << " NH" << c.NH << " DHQK" << c.DHQK << " DHV" << c.DHV
             << " gates " << static_cast<int>(c.gates) << " states " << c.with_states << " resets "
             << c.resets.size() << " i " << c.i_mean << " f " << c.f_mean;
}
Problem ProblemOf(const Case& c, uint64_t seed = 21) {
  MlstmShape s = {.B = c.B, .T = c.T, .NH = c.NH, .DHQK = c.DHQK, .DHV = c.DHV, .L = 64};
  if (c.gates != Gates::kExponential) s.input_gate = InputGate::kSigmoid;
  s.normalize = c.gates != Gates::kSigmoidNotNormalized;
  Problem p = RandomProblem(s, seed, {.i_mean = c.i_mean, .f_mean = c.f_mean});
  if (c.with_states) {
    AddInitialState(p, seed + 1);
    AddLastGradient(p, seed + 2);
  }
  if (!c.resets.empty()) p.reset.assign(p.N(), 0);
  for (const int64_t t : c.resets) p.reset[t] = 1;
  RoundInputs(p, DType::kBF16);
  return p;
}

class DeviceMlstmScan : public ::testing::Test {
 protected:
  // Operands (the state, weights, y row) and results are rounded to bf16, 2^-9 relative each; sums, exponents
  // and the normaliser are f32.
  void ExpectWithinBf16(const Problem& p, const Result& r, const Result& expected) {
    EXPECT_LE(RelativeError(r.h, expected.h), 4e-3);
    EXPECT_LE(RelativeError(r.denominator, expected.denominator), 4e-3);
    EXPECT_LE(RelativeError(r.m, expected.m), 1e-6);
    EXPECT_LE(RelativeError(r.last_C, expected.last_C), 5e-3);
    EXPECT_LE(RelativeError(r.last_n, expected.last_n), 1e-5);  // never in bf16
    EXPECT_LE(RelativeError(r.last_m, expected.last_m), 1e-6);
    if (p.dh.empty()) return;
    ExpectGradientsWithinBf16(r, expected);
    EXPECT_LE(RelativeError(r.dC, expected.dC), 8e-3);
    EXPECT_LE(RelativeError(r.dn, expected.dn), 8e-3);
  }
  void ExpectCorrect(const std::vector<Case>& cases,
                     NormalizerGradient gradient = NormalizerGradient::kExact) {
    for (const Case& c : cases) {
      SCOPED_TRACE(::testing::Message() << c);
      Problem p = ProblemOf(c);
      p.normalizer_gradient = gradient;
      const Result expected = Specification(p);
      ExpectWithinBf16(p, RunOn<bfloat16>(*device_, p), expected);
      SCOPED_TRACE("portable");
      ExpectWithinBf16(p, RunOn<bfloat16>(*portable_, p), expected);
    }
  }
  const std::unique_ptr<Device> device_ = testing::MakeTestDevice(),
                                portable_ = testing::MakeTestDevice(GpuKernels::kPortable);
};

TEST_F(DeviceMlstmScan, EveryHeadWidthIsWithinTheRoundingsOfBf16) {
  ExpectCorrect({{1, 130, 2, 64, 64, Gates::kExponential, true},
                 {2, 65, 1, 64, 128, Gates::kExponential, true},
                 {1, 96, 1, 128, 128, Gates::kExponential, true},
                 {1, 64, 2, 128, 256, Gates::kExponential, true},
                 {2, 45, 2, 192, 384, Gates::kExponential, true},
                 {1, 63, 1, 256, 256, Gates::kExponential, true},
                 {1, 70, 1, 256, 512, Gates::kExponential, true},
                 {2, 40, 2, 384, 384, Gates::kExponential, true, {33}},
                 {1, 40, 1, 512, 512, Gates::kExponential, true}});
}

// Heads whose state is cut into blocks of 256, 384 or 512: in columns alone, in rows alone (or the other way
// round in the other direction), in both.
TEST_F(DeviceMlstmScan, HeadsCutIntoBlocksAreWithinTheRoundingsOfBf16) {
  ExpectCorrect({{2, 45, 2, 512, 256, Gates::kExponential, true, {33, 45 + 32}},
                 {1, 290, 1, 256, 768, Gates::kExponential, true, {257}},  // with an anchor
                 {1, 65, 1, 384, 768, Gates::kSigmoidNotNormalized},
                 {1, 33, 1, 768, 768, Gates::kSigmoid, true},
                 {1, 33, 1, 1024, 1024, Gates::kExponential, true}});
}

TEST_F(DeviceMlstmScan, DocumentsBeginAnywhereInAChunk) {
  ExpectCorrect({{2, 100, 2, 64, 64, Gates::kExponential, true, {0, 3, 4, 32, 63, 64, 99, 100 + 31, 199}},
                 {1, 75, 1, 64, 128, Gates::kExponential, false, {1, 40, 74}},
                 {1, 290, 1, 128, 128, Gates::kExponential, true, {32, 96, 97, 160, 288}},
                 {1, 75, 1, 192, 384, Gates::kExponential, true, {33, 64}},
                 {1, 75, 1, 256, 512, Gates::kExponential, true, {32, 47, 48}}});
}

TEST_F(DeviceMlstmScan, LengthsNeedNotFillAChunk) {
  for (const int64_t T : {2, 31, 32, 33, 63, 64, 65, 95, 200}) {
    const Problem p = ProblemOf({1, T, 1, 64, 64, Gates::kExponential, true});
    SCOPED_TRACE(T);
    const Result expected = Specification(p);
    ExpectWithinBf16(p, RunOn<bfloat16>(*device_, p), expected);
    ExpectWithinBf16(p, RunOn<bfloat16>(*portable_, p), expected);
  }
  // the end of one sequence is not the start of the next one, whatever copies bring along
  ExpectCorrect({{3, 33, 1, 64, 128, Gates::kExponential, true},
                 {2, 97, 1, 128, 256, Gates::kExponential, true, {96, 97 + 64}}});
}

TEST_F(DeviceMlstmScan, SigmoidGatesWithAndWithoutNormalizer) {
  ExpectCorrect({{1, 100, 2, 64, 64, Gates::kSigmoid, true, {16, 47, 48}},
                 {1, 65, 1, 128, 128, Gates::kSigmoid},
                 {1, 100, 2, 64, 64, Gates::kSigmoidNotNormalized, true, {64}},
                 {1, 65, 1, 64, 128, Gates::kSigmoidNotNormalized},
                 {1, 34, 1, 192, 384, Gates::kSigmoidNotNormalized}});
}

TEST_F(DeviceMlstmScan, LargeAndSmallGatesAreWithinTheRoundingsOfBf16) {
  ExpectCorrect(
      {{1, 130, 1, 64, 64, Gates::kExponential, true, {}, -10, 4.5},  // every denominator at the floor
       {1, 130, 1, 64, 64, Gates::kExponential, true, {}, 3, -1},     // fast forgetting, large input gates
       {1, 70, 1, 64, 64, Gates::kExponential, true, {40}, -30, 12}});
}

// A token sees little but itself: h is +-v, the gradients of q and f are differences of equal numbers.
TEST_F(DeviceMlstmScan, GatesThatForgetEverythingGiveNoNaN) {
  const Problem p = ProblemOf({1, 70, 1, 64, 64, Gates::kExponential, true, {}, 15, -30});
  const Result r = RunOn<bfloat16>(*device_, p), expected = Specification(p);
  EXPECT_LE(RelativeError(r.h, expected.h), 4e-3);
  EXPECT_LE(RelativeError(r.dv, expected.dv), 1e-2);
  EXPECT_LE(RelativeError(r.last_C, expected.last_C), 5e-3);
  for (const auto& [name, values] : AllOf(r)) {
    for (const double x : *values) ASSERT_TRUE(std::isfinite(x)) << name;
  }
  EXPECT_LE(LargestError(r.df_pre, expected.df_pre),
            1e-2 * LargestError(r.di_pre, Values(r.di_pre.size(), 0.0)));
}

TEST_F(DeviceMlstmScan, FrozenNormalizerGradientEqualsTheSpecification) {
  ExpectCorrect({{1, 100, 2, 64, 64, Gates::kExponential, true, {70}}, {1, 65, 1, 128, 256}},
                NormalizerGradient::kFrozen);
}

// Few pairs and many tokens: the sequence is split, and states go from segment to segment.
TEST_F(DeviceMlstmScan, SegmentsOfASequenceJoin) {
  ExpectCorrect({{1, 530, 1, 64, 64, Gates::kExponential, true},
                 {1, 1030, 1, 64, 64, Gates::kExponential, false, {5, 700}},
                 {1, 530, 2, 64, 128, Gates::kExponential, true, {257}},
                 {1, 520, 1, 128, 128, Gates::kExponential, true},
                 {1, 530, 1, 128, 256, Gates::kExponential, true, {300}},
                 {1, 530, 1, 192, 384, Gates::kExponential, true, {270}}});
}

// The gradient of a forget gate is a sum over all later tokens, whose roundings must not pile up. Summed from
// the end of the sequence, df_pre would be wrong by 1e-2 to 2.4e-2 here; bf16 costs up to 6e-3 at any length.
TEST_F(DeviceMlstmScan, ErrorsOfForgetGatesDoNotGrowWithTheLength) {
  for (const auto& [i_mean, f_mean] : {std::pair{0.0, 3.0}, {-10.0, 4.5}}) {
    const Case c = {1, 1024, 1, 64, 64, Gates::kExponential, false, {}, i_mean, f_mean};
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c);
    EXPECT_LE(RelativeError(RunOn<bfloat16>(*device_, p).df_pre, Specification(p).df_pre), 8e-3);
  }
  // anchors at the border of documents, of segments and of a last chunk that is not full
  ExpectCorrect({{2, 577, 2, 64, 64, Gates::kExponential, true, {255, 256, 512, 577 + 256}},
                 {1, 545, 1, 192, 384, Gates::kExponential, true},
                 {1, 290, 1, 256, 512, Gates::kSigmoid, true},
                 {1, 257, 1, 64, 128, Gates::kSigmoidNotNormalized, true},
                 {1, 259, 1, 128, 128, Gates::kExponential, true}});
}

// A last gradient that is large beside those of the tokens, and gates some of which forget much: sums from
// the end of the sequence alone are wrong by 0.6e-2 to 2.1e-2 here.
TEST_F(DeviceMlstmScan, ErrorsOfForgetGatesDoNotGrowWithTheLastGradient) {
  for (const uint64_t seed : {100, 110, 120}) {
    const Case c = {1, 65, 1, 256, 512, Gates::kSigmoidNotNormalized, true};
    SCOPED_TRACE(::testing::Message() << c << " seed " << seed);
    const Problem p = ProblemOf(c, seed);
    const Result expected = Specification(p);
    EXPECT_LE(RelativeError(RunOn<bfloat16>(*device_, p).df_pre, expected.df_pre), 5e-3);
    EXPECT_LE(RelativeError(RunOn<bfloat16>(*portable_, p).df_pre, expected.df_pre), 5e-3);
  }
}

// Weights rounded to bf16 are what this scan does and the generic one does not: so this is not the generic
// one.
TEST_F(DeviceMlstmScan, OnlyTensorsReadSixteenBytesAtATimeTakeIt) {
  const Problem p = ProblemOf({1, 65, 1, 64, 64, Gates::kExponential, true});
  const Result expected = Specification(p), here = RunOn<bfloat16>(*device_, p),
               elsewhere = RunOn<bfloat16>(*device_, p, {.aligned = false});
  EXPECT_GE(RelativeError(here.last_C, expected.last_C), 1e-4);
  EXPECT_LE(RelativeError(elsewhere.last_C, expected.last_C), 1e-5);
}

// A device that gives dk, dv and maybe dq by one kernel gives them one by one where TMA cannot write the rows
// of dv: dk, k.dk and the initial state's gradient have the same bits, dv and dq the same roundings
// elsewhere.
TEST_F(DeviceMlstmScan, DKDoesNotDependOnTheStrideOfDV) {
  for (const Case& c : {Case{1, 130, 2, 64, 64, Gates::kExponential, true, {70}},
                        Case{1, 530, 1, 64, 128, Gates::kExponential, true},
                        Case{2, 97, 1, 128, 128, Gates::kExponential, true, {40}}}) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c);
    const Result a = RunOn<bfloat16>(*device_, p), b = RunOn<bfloat16>(*device_, p, {.dv_aligned = false});
    EXPECT_EQ(a.dk, b.dk);
    EXPECT_EQ(a.di_pre, b.di_pre);
    EXPECT_EQ(a.dC, b.dC);
    EXPECT_EQ(a.dn, b.dn);
    ExpectWithinBf16(p, b, Specification(p));
  }
}

TEST_F(DeviceMlstmScan, OutputsMayHaveAnyStride) {
  const Problem p = ProblemOf({2, 45, 2, 64, 64});
  const MlstmShape& s = p.shape;
  const int64_t N = p.N(), width = s.NH * 64;
  const DeviceArray<bfloat16> q(*device_, p.q, N, width, 0), k(*device_, p.k, N, width, 0),
      v(*device_, p.v, N, width, 0), h(*device_, {}, N, width, 3);
  const DeviceArray<float> i_pre(*device_, p.i_pre, N, s.NH, 0), f_pre(*device_, p.f_pre, N, s.NH, 0),
      denominator(*device_, {}, N, s.NH, 0), m(*device_, {}, N, s.NH, 0);
  Ops& ops = device_->ops();
  const int64_t workspace_bytes = ops.MlstmWorkspaceBytes(s, DType::kBF16);
  void* const workspace = device_->Allocate(workspace_bytes);
  ops.MlstmForward({.h = h.tensor(),
                    .denominator = denominator.tensor(),
                    .m = m.tensor(),
                    .q = q.tensor(),
                    .k = k.tensor(),
                    .v = v.tensor(),
                    .i_pre = i_pre.tensor(),
                    .f_pre = f_pre.tensor(),
                    .workspace = Tensor(workspace, DType::kU8, {workspace_bytes}),
                    .shape = s});
  // TMA cannot write these rows: a device that would copy h with it takes the portable scan here.
  EXPECT_EQ(h.values(), RunOn<bfloat16>(*portable_, p).h);
  device_->Free(workspace);
}

// NaN of a token reaches the tokens of its sequence that see it, and no other sequence.
TEST_F(DeviceMlstmScan, NaNStaysInItsSequence) {
  Problem p = ProblemOf({2, 45, 1, 64, 128});
  const Result clean = RunOn<bfloat16>(*device_, p);
  const int64_t width = 128, first = 45 * width;  // of the second sequence's v
  for (int64_t c = 0; c < width; ++c) p.v[first + c] = std::nan("");
  const Result r = RunOn<bfloat16>(*device_, p);
  for (int64_t e = 0; e < first; ++e) ASSERT_EQ(r.h[e], clean.h[e]) << e;
  EXPECT_TRUE(std::isnan(r.h[first]));
}

TEST_F(DeviceMlstmScan, TwoRunsGiveTheSameBits) {
  const Problem p = ProblemOf({1, 530, 1, 64, 64, Gates::kExponential, true, {17}});
  const Result a = RunOn<bfloat16>(*device_, p), b = RunOn<bfloat16>(*device_, p, {.last_in_place = true});
  const auto x = AllOf(a), y = AllOf(b);
  for (size_t e = 0; e < x.size(); ++e) EXPECT_EQ(*x[e].values, *y[e].values) << x[e].name;
}
}  // namespace
}  // namespace carousel::mlstm_test
