// The mLSTM cell on a device against the specification in f64 on equal inputs.
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
  double eps = 1e-6;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.B << " T" << c.T << " NH" << c.NH << " DHQK" << c.DHQK << " DHV" << c.DHV
             << " gates " << static_cast<int>(c.gates) << " states " << c.with_states << " resets "
             << c.resets.size() << " i " << c.i_mean << " f " << c.f_mean;
}
Problem ProblemOf(const Case& c, DType compute) {
  MlstmShape s = {.B = c.B, .T = c.T, .NH = c.NH, .DHQK = c.DHQK, .DHV = c.DHV, .L = 64, .eps = c.eps};
  if (c.gates != Gates::kExponential) s.input_gate = InputGate::kSigmoid;
  s.normalize = c.gates != Gates::kSigmoidNotNormalized;
  Problem p = RandomProblem(s, 11, {.i_mean = c.i_mean, .f_mean = c.f_mean});
  if (c.with_states) {
    AddInitialState(p, 12);
    AddLastGradient(p, 13);
  }
  if (!c.resets.empty()) p.reset.assign(p.N(), 0);
  for (const int64_t t : c.resets) p.reset[t] = 1;
  RoundInputs(p, compute);
  return p;
}
const std::vector<Case>& Cases() {
  static const std::vector<Case>& cases = *new std::vector<Case>{
      {1, 1, 2, 3, 5, Gates::kExponential, true},
      {2, 1, 2, 20, 70},
      {1, 3, 2, 3, 5, Gates::kExponential, true, {1}},
      {1, 31, 2, 9, 66},
      {1, 33, 1, 70, 3, Gates::kExponential, true},
      {1, 63, 1, 8, 16, Gates::kSigmoid, true, {16, 47, 48}},
      {1, 64, 3, 16, 8, Gates::kExponential, true, {0, 32}},
      {1, 65, 1, 8, 12, Gates::kSigmoidNotNormalized, true, {64}},
      {2, 75, 2, 20, 24, Gates::kExponential, true, {0, 3, 4, 20, 74, 75 + 31, 149}},
      {1, 130, 1, 24, 40, Gates::kExponential, true, {}, -10, 4.5},    // every denominator at the floor
      {1, 100, 1, 24, 16, Gates::kExponential, true, {}, 3, -1, 0.1},  // fast forgetting, large input gates
  };
  return cases;
}
void ExpectSameValues(const Values& a, const Values& b, const char* name) {
  ASSERT_EQ(a.size(), b.size()) << name;
  for (size_t e = 0; e < a.size(); ++e) ASSERT_EQ(a[e], b[e]) << name << " " << e << " of " << a.size();
}
void ExpectSameBits(const Result& a, const Result& b) {
  const auto x = AllOf(a), y = AllOf(b);
  for (size_t e = 0; e < x.size(); ++e) ExpectSameValues(*x[e].values, *y[e].values, x[e].name);
}
// Tokens [begin, end) of every sequence of a tensor (B * T, width).
Values Tokens(const Values& x, const MlstmShape& s, int64_t begin, int64_t end) {
  const int64_t width = static_cast<int64_t>(x.size()) / (s.B * s.T);
  Values y;
  for (int64_t b = 0; b < s.B; ++b)
    y.insert(y.end(), x.begin() + (b * s.T + begin) * width, x.begin() + (b * s.T + end) * width);
  return y;
}
// The same of a whole problem, without states.
Problem Cut(const Problem& p, int64_t begin, int64_t end) {
  const MlstmShape& s = p.shape;
  Problem part;
  part.shape = s;
  part.shape.T = end - begin;
  part.normalizer_gradient = p.normalizer_gradient;
  const auto cut = [&](const Values& x) { return x.empty() ? Values() : Tokens(x, s, begin, end); };
  part.q = cut(p.q), part.k = cut(p.k), part.v = cut(p.v), part.dh = cut(p.dh);
  part.i_pre = cut(p.i_pre), part.f_pre = cut(p.f_pre);
  if (!p.reset.empty()) {
    for (int64_t b = 0; b < s.B; ++b)
      part.reset.insert(part.reset.end(), p.reset.begin() + b * s.T + begin, p.reset.begin() + b * s.T + end);
  }
  return part;
}

class DeviceMlstm : public ::testing::Test {
 protected:
  const std::unique_ptr<Device> device_ = testing::MakeTestDevice();
};

TEST_F(DeviceMlstm, F64EqualsTheSpecification) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kF64);
    ExpectClose(RunOn<double>(*device_, p, {.aligned = false}), Specification(p), 1e-12);
  }
}

TEST_F(DeviceMlstm, F32EqualsTheSpecificationToRounding) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kF32);
    ExpectClose(RunOn<float>(*device_, p, {.aligned = false}), Specification(p), 1e-5);
  }
}

// Rounded operands of any kind: the bounds of h and of the gradients for bf16 (relative, in the norm of each
// tensor). Gates, stabilisers and n never are bf16.
void ExpectBf16Close(const Result& r, const Result& expected) {
  EXPECT_LE(RelativeError(r.h, expected.h), 4e-3);
  ExpectGradientsWithinBf16(r, expected);
  EXPECT_LE(RelativeError(r.dC, expected.dC), 8e-3);
  EXPECT_LE(RelativeError(r.dn, expected.dn), 8e-3);
  EXPECT_LE(RelativeError(r.last_C, expected.last_C), 5e-3);
  EXPECT_LE(RelativeError(r.m, expected.m), 1e-6);
  EXPECT_LE(RelativeError(r.last_n, expected.last_n), 1e-5);
  EXPECT_LE(RelativeError(r.denominator, expected.denominator), 4e-3);
}

TEST_F(DeviceMlstm, Bf16OfOddHeadSizesHasTheErrorOfItsRoundedOutputs) {
  for (const Case& c : Cases()) {
    if (c.T < 60) continue;  // the bounds are for the norm of many values
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kBF16);
    ExpectBf16Close(RunOn<bfloat16>(*device_, p, {.aligned = false}), Specification(p));
  }
}

// Head sizes that have a scan on tensor cores, where a row stride of a multiple of 16 bytes lets it run.
TEST_F(DeviceMlstm, Bf16OnTensorCoresHasTheErrorOfItsRoundings) {
  const std::vector<Case> cases = {
      {1, 130, 2, 64, 64, Gates::kExponential, true, {70}},
      {2, 65, 1, 64, 128, Gates::kSigmoid, true, {9, 65 + 32}},
      {1, 64, 1, 128, 128, Gates::kSigmoidNotNormalized, true},
      {1, 97, 1, 128, 256, Gates::kExponential, true, {}, -10, 4.5},
      {1, 64, 1, 256, 256},
      {1, 64, 1, 256, 512, Gates::kExponential, true, {33}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << c);
    Problem p = ProblemOf(c, DType::kBF16);
    const Result expected = Specification(p);
    ExpectBf16Close(RunOn<bfloat16>(*device_, p), expected);
    // other strides take the other scan
    if (c.DHV <= 64) ExpectBf16Close(RunOn<bfloat16>(*device_, p, {.aligned = false}), expected);
  }
}

TEST_F(DeviceMlstm, TensorCoresTakeFewTokensToo) {
  for (const int64_t T : {1, 3, 31, 32, 33}) {
    Problem p = ProblemOf({1, T, 2, 64, 64, Gates::kExponential, true, {T / 2}}, DType::kBF16);
    SCOPED_TRACE(T);
    const Result expected = Specification(p), r = RunOn<bfloat16>(*device_, p);
    EXPECT_LE(RelativeError(r.h, expected.h), 5e-3);
    for (size_t e = 0; e < GradientsOf(r).size(); ++e) {
      const NamedValues mine = GradientsOf(r)[e], spec = GradientsOf(expected)[e];
      // h of one token alone does not depend on q but through eps: dq is 1e-6 of the terms that cancel
      if (T == 1 && mine.values == &r.dq) {
        EXPECT_LE(LargestError(*mine.values, *spec.values), 1e-5);
        continue;
      }
      EXPECT_LE(RelativeError(*mine.values, *spec.values), 2e-2) << mine.name;
    }
  }
}

TEST_F(DeviceMlstm, FrozenNormalizerGradientEqualsTheSpecification) {
  Problem p = ProblemOf({1, 70, 2, 12, 20, Gates::kExponential, true, {9}}, DType::kF32);
  p.normalizer_gradient = NormalizerGradient::kFrozen;
  ExpectClose(RunOn<float>(*device_, p), Specification(p), 1e-5);
}

TEST_F(DeviceMlstm, GenerationStepsEqualTheSequence) {
  for (const Gates gates : {Gates::kExponential, Gates::kSigmoid, Gates::kSigmoidNotNormalized}) {
    for (const int64_t DHV : {20, 75}) {  // columns by vectors, and one by one
      Problem whole = ProblemOf({2, 6, 2, 20, DHV, gates, true, {9}}, DType::kF32);
      whole.dh.clear();
      const MlstmShape& s = whole.shape;
      const Result expected = Specification(whole);
      SCOPED_TRACE(::testing::Message() << "gates " << static_cast<int>(gates) << " DHV " << DHV);
      Result last = {};
      last.last_C = whole.initial_C, last.last_n = whole.initial_n, last.last_m = whole.initial_m;
      for (int64_t t = 0; t < s.T; ++t) {
        Problem step = Cut(whole, t, t + 1);
        step.initial_C = last.last_C, step.initial_n = last.last_n, step.initial_m = last.last_m;
        last = RunOn<float>(*device_, step, {.last_in_place = true});
        EXPECT_LE(RelativeError(last.h, Tokens(expected.h, s, t, t + 1)), 1e-5) << t;
        EXPECT_LE(LargestError(last.m, Tokens(expected.m, s, t, t + 1)), 1e-5) << t;
        EXPECT_LE(RelativeError(last.denominator, Tokens(expected.denominator, s, t, t + 1)), 1e-5) << t;
      }
      EXPECT_LE(RelativeError(last.last_C, expected.last_C), 1e-5);
      EXPECT_LE(RelativeError(last.last_n, expected.last_n), 1e-5);
      EXPECT_LE(LargestError(last.last_m, expected.last_m), 1e-5);
    }
  }
}

TEST_F(DeviceMlstm, AStepInEveryDtypeEqualsTheSpecification) {
  for (const bool with_states : {false, true}) {
    const Case c = {2, 1, 2, 33, 68, Gates::kExponential, with_states, {1}};
    Problem p = ProblemOf(c, DType::kBF16);
    p.dh.clear();
    const Result expected = Specification(p);
    ExpectClose(RunOn<double>(*device_, p), expected, 1e-12);
    ExpectClose(RunOn<float>(*device_, p), expected, 1e-5);
    EXPECT_LE(RelativeError(RunOn<bfloat16>(*device_, p).h, expected.h), 4e-3);
  }
}

TEST_F(DeviceMlstm, EmptySequencePassesTheStateOn) {
  for (const bool with_states : {false, true}) {
    const Problem p = ProblemOf({2, 0, 2, 4, 70, Gates::kExponential, with_states}, DType::kF32);
    ExpectClose(RunOn<float>(*device_, p), Specification(p), 1e-6);
  }
}

TEST_F(DeviceMlstm, LastStateMayTakeThePlaceOfTheInitialOne) {
  Problem p = ProblemOf({2, 40, 2, 8, 130, Gates::kExponential, true}, DType::kF32);
  p.dh.clear();
  ExpectSameBits(RunOn<float>(*device_, p, {.last_in_place = true}), RunOn<float>(*device_, p));
}

TEST_F(DeviceMlstm, ASecondRunGivesTheSameBits) {
  const Problem p = ProblemOf({2, 70, 2, 20, 70, Gates::kExponential, true, {9, 100}}, DType::kBF16);
  ExpectSameBits(RunOn<float>(*device_, p), RunOn<float>(*device_, p));
  ExpectSameBits(RunOn<bfloat16>(*device_, p), RunOn<bfloat16>(*device_, p));
}

// A sequence in two pieces, the state handed over between them and its gradient back: the same values to
// rounding; the same bits of all outputs where the cut is between chunks, and of dk, whose scan makes the
// gradient that is handed back.
template <class T>
void ExpectPiecesEqualTheWhole(Device& device, const Case& c, int64_t cut, double tolerance, bool same_bits) {
  const Problem whole = ProblemOf(c, DTypeOf<T>::value);
  const MlstmShape& s = whole.shape;
  const Result expected = RunOn<T>(device, whole);
  Problem first = Cut(whole, 0, cut), second = Cut(whole, cut, s.T);
  first.initial_C = whole.initial_C, first.initial_n = whole.initial_n, first.initial_m = whole.initial_m;
  second.dC = whole.dC, second.dn = whole.dn;
  Problem forward = first;
  forward.dh.clear();
  const Result middle = RunOn<T>(device, forward);
  second.initial_C = middle.last_C, second.initial_n = middle.last_n, second.initial_m = middle.last_m;
  const Result b = RunOn<T>(device, second);
  first.dC = b.dC, first.dn = b.dn;
  const Result a = RunOn<T>(device, first);

  const auto join = [&](const Values& x, const Values& y) {
    Values z;
    for (int64_t e = 0; e < s.B; ++e) {
      z.insert(z.end(), x.begin() + e * x.size() / s.B, x.begin() + (e + 1) * x.size() / s.B);
      z.insert(z.end(), y.begin() + e * y.size() / s.B, y.begin() + (e + 1) * y.size() / s.B);
    }
    return z;
  };
  Result joined = b;
  joined.h = join(a.h, b.h), joined.denominator = join(a.denominator, b.denominator),
  joined.m = join(a.m, b.m);
  joined.dq = join(a.dq, b.dq), joined.dk = join(a.dk, b.dk), joined.dv = join(a.dv, b.dv);
  joined.di_pre = join(a.di_pre, b.di_pre), joined.df_pre = join(a.df_pre, b.df_pre);
  joined.dC = a.dC, joined.dn = a.dn, joined.dm = a.dm;
  ExpectClose(joined, expected, tolerance);
  if (!same_bits) return;
  const auto mine = OutputsOf(joined), of_whole = OutputsOf(expected);
  for (size_t e = 0; e < mine.size(); ++e)
    ExpectSameValues(*mine[e].values, *of_whole[e].values, mine[e].name);
  ExpectSameValues(joined.dk, expected.dk, "dk");
}

TEST_F(DeviceMlstm, SplittingASequenceIsPassingTheState) {
  const Case c = {2, 100, 1, 8, 66, Gates::kExponential, true, {70, 103}};
  ExpectPiecesEqualTheWhole<float>(*device_, c, 64, 1e-5, /*same_bits=*/true);
  ExpectPiecesEqualTheWhole<float>(*device_, c, 41, 1e-5, /*same_bits=*/false);
}

// The gradient of the initial state is needed for those of the gates, whoever wants it.
TEST_F(DeviceMlstm, GradientsDoNotDependOnWhetherThatOfTheInitialStateIsWanted) {
  for (const Case& c : Cases()) {
    if (!c.with_states) continue;
    SCOPED_TRACE(::testing::Message() << c);
    for (const bool with_last : {true, false}) {
      Problem p = ProblemOf(c, DType::kF32);
      if (!with_last) p.dC = p.dn = {};
      const Result wanted = RunOn<float>(*device_, p),
                   r = RunOn<float>(*device_, p, {.want_dinitial = false});
      for (Values Result::*x : {&Result::dq, &Result::dk, &Result::dv, &Result::di_pre, &Result::df_pre})
        ExpectSameValues(r.*x, wanted.*x, "");
    }
  }
}

TEST_F(DeviceMlstm, PackedDocumentsHaveTheBitsOfSeparateOnes) {
  const Problem packed = ProblemOf({1, 128, 2, 12, 10, Gates::kExponential, false, {64, 96}}, DType::kF32);
  const Result expected = RunOn<float>(*device_, packed);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 64}, {64, 96}, {96, 128}}) {
    SCOPED_TRACE(begin);
    const Problem alone = Cut(packed, begin, end);
    const Result r = RunOn<float>(*device_, alone);
    const auto same = [&](const Values& mine, const Values& of_packed, const char* name) {
      ExpectSameValues(mine, Tokens(of_packed, packed.shape, begin, end), name);
    };
    same(r.h, expected.h, "h"), same(r.m, expected.m, "m");
    same(r.denominator, expected.denominator, "denominator");
    same(r.dq, expected.dq, "dq"), same(r.dk, expected.dk, "dk"), same(r.dv, expected.dv, "dv");
    same(r.di_pre, expected.di_pre, "di_pre"), same(r.df_pre, expected.df_pre, "df_pre");
  }
}

TEST_F(DeviceMlstm, ExtremeGatesStayFinite) {
  for (const Gates gates : {Gates::kExponential, Gates::kSigmoidNotNormalized}) {
    for (const double i : {-100.0, -15.0, 15.0, 80.0}) {
      const double f = i < 0 ? -i : i == 15 ? -15 : -1e30;
      SCOPED_TRACE(::testing::Message() << "gates " << static_cast<int>(gates) << " i " << i << " f " << f);
      Problem p = ProblemOf({1, 40, 1, 8, 8, gates, true}, DType::kBF16);
      for (int64_t t = 0; t < 40; ++t) p.i_pre[t] = t % 3 == 2 ? -i : i, p.f_pre[t] = t % 7 == 3 ? -f : f;
      for (const Result& r : {RunOn<float>(*device_, p), RunOn<bfloat16>(*device_, p)}) {
        for (const NamedValues& x : AllOf(r)) {
          for (const double e : *x.values) ASSERT_TRUE(std::isfinite(e)) << x.name;
        }
      }
      // n.q may cancel almost completely here; f32 in plain loops says how much that costs
      const Result expected = Specification(p), plain = RunAs<float>(p, {"reference"});
      EXPECT_LE(RelativeError(RunOn<float>(*device_, p).h, expected.h),
                1e-5 + 4 * RelativeError(plain.h, expected.h));
    }
  }
}

TEST_F(DeviceMlstm, WorkspaceForAShapeIsEnoughForSmallerOnes) {
  const Ops& ops = device_->ops();
  for (const DType compute : {DType::kBF16, DType::kF32, DType::kF64}) {
    for (const auto& [DHQK, DHV] : {std::pair<int64_t, int64_t>{64, 64}, {128, 256}, {256, 512}, {20, 40}}) {
      for (const int64_t NH : {1, 4}) {
        const auto bytes = [&](int64_t B, int64_t T) {
          return ops.MlstmWorkspaceBytes({.B = B, .T = T, .NH = NH, .DHQK = DHQK, .DHV = DHV, .L = 64},
                                         compute);
        };
        for (const int64_t B : {1, 2, 3, 8, 40}) {
          for (const int64_t T : {1, 33, 512, 2048, 8192}) {
            EXPECT_LE(bytes(B, T), bytes(B + 1, T)) << B << " " << T;
            EXPECT_LE(bytes(B, T), bytes(B, T + 1)) << B << " " << T;
            EXPECT_LE(bytes(B, T), bytes(B, 2 * T)) << B << " " << T;
            EXPECT_LE(bytes(B, T), bytes(2 * B, T)) << B << " " << T;
          }
        }
      }
    }
  }
}
}  // namespace
}  // namespace carousel::mlstm_test
