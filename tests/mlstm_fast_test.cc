// The vector and tile code of the mLSTM cell against the specification in f64, on every instruction set of
// this machine.
#include <gtest/gtest.h>

#include "tests/mlstm_test_util.h"

namespace carousel::mlstm_test {
namespace {

enum class Gates { kExponential, kSigmoid, kSigmoidNotNormalized };
struct Case {
  int64_t B, T, NH, DHQK, DHV, L;
  Gates gates = Gates::kExponential;
  bool with_states = false;
  std::vector<int64_t> resets = {};
  double i_mean = 0, f_mean = 3;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.B << " T" << c.T << " NH" << c.NH << " DHQK" << c.DHQK << " DHV" << c.DHV << " L"
             << c.L << " gates " << static_cast<int>(c.gates) << " states " << c.with_states << " resets "
             << c.resets.size() << " i " << c.i_mean << " f " << c.f_mean;
}
Problem ProblemOf(const Case& c, DType compute) {
  MlstmShape s = {.B = c.B, .T = c.T, .NH = c.NH, .DHQK = c.DHQK, .DHV = c.DHV, .L = c.L};
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
      {2, 128, 2, 32, 64, 64},
      {1, 256, 2, 64, 64, 64, Gates::kExponential, true},
      {2, 75, 2, 20, 24, 16, Gates::kExponential, true, {0, 3, 4, 20, 74, 75 + 31, 149}},
      {1, 75, 3, 20, 24, 16, Gates::kSigmoid, true, {16, 47, 48}},
      {1, 150, 1, 40, 72, 100, Gates::kSigmoidNotNormalized, true, {101}},
      {1, 33, 2, 8, 9, 5, Gates::kExponential, true},
      {1, 7, 2, 3, 5, 64, Gates::kExponential, true, {2}},
      {1, 2, 1, 1, 1, 1, Gates::kExponential, true},
      {1, 130, 1, 128, 96, 64, Gates::kExponential, true, {}, -10, 4.5},  // every denominator at the floor
      {1, 130, 1, 32, 64, 64, Gates::kExponential, true, {}, 3, -1},  // fast forgetting, large input gates
  };
  return cases;
}

TEST(MlstmFast, F32EqualsTheSpecificationToRounding) {
  for (const Case& c : Cases()) {
    const Problem p = ProblemOf(c, DType::kF32);
    const Result expected = Specification(p);
    for (const Implementation& implementation : FastImplementations(DType::kF32)) {
      SCOPED_TRACE(testing::Message() << implementation.name << " " << c);
      // sums of up to L + DHQK terms in f32; 1e-5 = about 80 units in the last place. The gate gradients are
      // differences of such sums.
      ExpectClose(RunAs<float>(p, implementation), expected, 1e-5);
    }
  }
}

TEST(MlstmFast, Bf16StaysWithinTheErrorOfItsRoundings) {
  for (const Case& c : Cases()) {
    if (c.T < 64) continue;  // the bounds are for the norm of many values
    const Problem p = ProblemOf(c, DType::kBF16);
    const Result expected = Specification(p);
    std::vector<Implementation> implementations = FastImplementations(DType::kBF16);
    implementations.push_back({"reference"});
    for (const Implementation& implementation : implementations) {
      SCOPED_TRACE(testing::Message() << implementation.name << " " << c);
      const Result r = RunAs<bfloat16>(p, implementation);
      EXPECT_LE(RelativeError(r.h, expected.h), 4e-3);
      ExpectGradientsWithinBf16(r, expected);
      EXPECT_LE(RelativeError(r.dC, expected.dC), 8e-3);
      EXPECT_LE(RelativeError(r.dn, expected.dn), 8e-3);
      EXPECT_LE(RelativeError(r.last_C, expected.last_C), 4e-3);
      // gates, stabilisers and n never are bf16
      EXPECT_LE(RelativeError(r.m, expected.m), 1e-6);
      EXPECT_LE(RelativeError(r.last_n, expected.last_n), 1e-6);
      EXPECT_LE(RelativeError(r.denominator, expected.denominator), 4e-3);
    }
  }
}

TEST(MlstmFast, FrozenNormalizerGradientEqualsTheSpecification) {
  Problem p = ProblemOf(Cases()[1], DType::kF32);
  p.normalizer_gradient = NormalizerGradient::kFrozen;
  const Result expected = Specification(p);
  for (const Implementation& implementation : FastImplementations(DType::kF32)) {
    SCOPED_TRACE(implementation.name);
    ExpectClose(RunAs<float>(p, implementation), expected, 1e-5);
  }
}

TEST(MlstmFast, NumberOfThreadsChangesNoBit) {
  const auto expect_equal = [](const Result& a, const Result& b) {
    const auto x = AllOf(a), y = AllOf(b);
    for (size_t e = 0; e < x.size(); ++e) EXPECT_EQ(*x[e].values, *y[e].values) << x[e].name;
  };
  const Case c = {5, 70, 3, 32, 64, 32, Gates::kExponential, true, {9, 100}};
  const Problem f32 = ProblemOf(c, DType::kF32), bf16 = ProblemOf(c, DType::kBF16);
  for (Implementation implementation : FastImplementations(DType::kBF16)) {
    SCOPED_TRACE(implementation.name);
    implementation.threads = 1;
    const Result f32_alone = RunAs<float>(f32, implementation),
                 bf16_alone = RunAs<bfloat16>(bf16, implementation);
    for (const int threads : {2, 3, 7}) {
      implementation.threads = threads;
      expect_equal(RunAs<float>(f32, implementation), f32_alone);
      expect_equal(RunAs<bfloat16>(bf16, implementation), bf16_alone);
    }
  }
}

TEST(MlstmFast, MoreHeadsThanScratchSlotsAreAllComputed) {
  const Case c = {50, 3, 3, 4, 4, 2, Gates::kExponential, true};  // 150 pairs
  const Problem p = ProblemOf(c, DType::kF32);
  ExpectClose(RunAs<float>(p, FastImplementations(DType::kF32).back()), Specification(p), 1e-5);
}

TEST(MlstmFast, GenerationStepsEqualTheSequence) {
  for (const bool sigmoid : {false, true}) {
    Problem whole = ProblemOf(
        {2, 12, 2, 20, 75, 5, sigmoid ? Gates::kSigmoid : Gates::kExponential, true, {17}}, DType::kF32);
    whole.dh.clear();
    const MlstmShape s = whole.shape;
    const Result expected = Specification(whole);
    for (const Implementation& implementation : FastImplementations(DType::kF32)) {
      SCOPED_TRACE(testing::Message() << implementation.name << " sigmoid " << sigmoid);
      Result last;
      Problem step = whole;
      step.shape.T = 1;
      for (int64_t t = 0; t < s.T; ++t) {
        const auto token = [&](const Values& x) {
          const int64_t width = static_cast<int64_t>(x.size()) / whole.N();
          Values y;
          for (int64_t b = 0; b < s.B; ++b) {
            y.insert(y.end(), x.begin() + (b * s.T + t) * width, x.begin() + (b * s.T + t + 1) * width);
          }
          return y;
        };
        step.q = token(whole.q), step.k = token(whole.k), step.v = token(whole.v);
        step.i_pre = token(whole.i_pre), step.f_pre = token(whole.f_pre);
        step.reset = {whole.reset[t], whole.reset[s.T + t]};
        last = RunAs<float>(step, implementation, /*last_in_place=*/true);
        EXPECT_LE(RelativeError(last.h, token(expected.h)), 1e-5) << t;
        EXPECT_LE(LargestError(last.m, token(expected.m)), 1e-5) << t;
        EXPECT_LE(RelativeError(last.denominator, token(expected.denominator)), 1e-5) << t;
        step.initial_C = last.last_C, step.initial_n = last.last_n, step.initial_m = last.last_m;
      }
      EXPECT_LE(RelativeError(last.last_C, expected.last_C), 1e-5);
      EXPECT_LE(RelativeError(last.last_n, expected.last_n), 1e-5);
      EXPECT_LE(LargestError(last.last_m, expected.last_m), 1e-5);
    }
  }
}

TEST(MlstmFast, OneTokenWithoutAnyStateHasOutputsAndGradients) {
  const Problem p = ProblemOf({2, 1, 2, 20, 75, 1}, DType::kF32);
  const Result expected = Specification(p);
  for (const Implementation& implementation : FastImplementations(DType::kF32)) {
    SCOPED_TRACE(implementation.name);
    ExpectClose(RunAs<float>(p, implementation), expected, 1e-5);
  }
}

TEST(MlstmFast, EmptySequencePassesTheStateOn) {
  for (const bool with_states : {false, true}) {
    const Problem p = ProblemOf({2, 0, 2, 4, 5, 8, Gates::kExponential, with_states}, DType::kF32);
    const Result expected = Specification(p);
    for (const Implementation& implementation : FastImplementations(DType::kF32)) {
      SCOPED_TRACE(implementation.name);
      ExpectClose(RunAs<float>(p, implementation), expected, 1e-6);
    }
  }
}

TEST(MlstmFast, ExtremeGatesStayFinite) {
  for (const Gates gates : {Gates::kExponential, Gates::kSigmoid, Gates::kSigmoidNotNormalized}) {
    for (const double i : {-100.0, -15.0, 15.0, 80.0}) {
      for (const double f : {-100.0, -15.0, 15.0, 80.0}) {
        Problem p = ProblemOf({1, 40, 1, 8, 8, 16, gates, true}, DType::kBF16);
        for (int64_t t = 0; t < 40; ++t) p.i_pre[t] = t % 3 == 2 ? -i : i, p.f_pre[t] = t % 7 == 3 ? -f : f;
        const auto expect_finite = [&](const Result& r, const char* name) {
          for (const NamedValues& x : AllOf(r)) {
            for (const double e : *x.values) {
              ASSERT_TRUE(std::isfinite(e)) << name << " " << x.name << " i=" << i << " f=" << f;
            }
          }
        };
        for (const Implementation& implementation : FastImplementations(DType::kBF16)) {
          expect_finite(RunAs<float>(p, implementation), implementation.name);
          expect_finite(RunAs<bfloat16>(p, implementation), implementation.name);
        }
        // n.q may cancel almost completely here; f32 in plain loops says how much that costs
        const Result expected = Specification(p), plain = RunAs<float>(p, {"reference"});
        const Result fast = RunAs<float>(p, FastImplementations(DType::kF32).back());
        EXPECT_LE(RelativeError(fast.h, expected.h), 1e-5 + 4 * RelativeError(plain.h, expected.h))
            << " i=" << i << " f=" << f;
      }
    }
  }
}
}  // namespace
}  // namespace carousel::mlstm_test
