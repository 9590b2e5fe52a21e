// The vector and tile code of the sLSTM cell against the specification in f64, on every instruction set of
// this machine.
#include <gtest/gtest.h>

#include "kernels/cpu/tile_permission.h"
#include "tests/slstm_test_util.h"

namespace carousel::slstm_test {
namespace {

struct Implementation {
  const char* name;
  cpu::CpuOptions options;
};
// The fast implementations that this machine can run.
std::vector<Implementation> FastImplementations(DType compute) {
  using cpu::SimdLevel;
  const SimdLevel highest = cpu::DetectSimdLevel();
  const auto with = [](SimdLevel level, bool use_tiles) {
    return cpu::CpuOptions{.num_threads = 2, .simd_level = level, .use_tiles = use_tiles};
  };
  std::vector<Implementation> all = {{"base", with(SimdLevel::kBase, false)}};
  if (highest >= SimdLevel::kV3) all.push_back({"v3", with(SimdLevel::kV3, false)});
  if (highest >= SimdLevel::kV4) all.push_back({"v4", with(SimdLevel::kV4, false)});
  if (compute == DType::kBF16 && highest == SimdLevel::kV4 && cpu::RequestTilePermission())
    all.push_back({"tiles", with(highest, true)});
  return all;
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
  RoundInputs(p, compute);
  return p;
}
const std::vector<Case>& Cases() {
  static const std::vector<Case>& cases = *new std::vector<Case>{
      {8, 20, 2, 64},
      {9, 13, 3, 64, true, {0, 5, 13, 40, 116}},
      {1, 9, 1, 1, true},
      {2, 1, 2, 3, true},
      {5, 7, 5, 3, true, {0, 3, 4, 34}},
      {3, 12, 2, 17, true, {12, 30}, 0.05},
      {17, 6, 1, 17, true, {}, 0, true},
      {4, 10, 4, 33, false, {7}},
      {2, 11, 1, 129, true, {5, 6, 7, 8}},
      {7, 1, 3, 129, true, {2, 3}},
      {33, 2, 1, 48, true},
      {1, 40, 1, 192, true},
  };
  return cases;
}

TEST(SlstmFast, F32EqualsTheSpecificationToRounding) {
  for (const Case& c : Cases()) {
    const Problem p = ProblemOf(c, DType::kF32);
    const Result expected = Specification(p, {.accumulated = 0.5});
    for (const Implementation& implementation : FastImplementations(DType::kF32)) {
      SCOPED_TRACE(testing::Message() << implementation.name << " " << c);
      // sums of up to 4 D terms in f32, carried over up to 40 tokens
      ExpectClose(RunAs<float>(p, implementation.options, {.accumulated = 0.5}), expected, 4e-6);
    }
  }
}

TEST(SlstmFast, Bf16StaysWithinTheErrorOfItsRoundings) {
  for (const Case& c : Cases()) {
    const Problem p = ProblemOf(c, DType::kBF16);
    const Result expected = Specification(p);
    std::vector<Implementation> implementations = FastImplementations(DType::kBF16);
    implementations.push_back({"reference", Reference()});
    for (const Implementation& implementation : implementations) {
      SCOPED_TRACE(testing::Message() << implementation.name << " " << c);
      // y and draw are rounded to bf16 (at most 2^-9 relative) on every way through the recurrence
      ExpectClose(RunAs<bfloat16>(p, implementation.options), expected, 8e-3);
    }
  }
}

TEST(SlstmFast, NumberOfThreadsChangesNoBit) {
  for (const Case& c : {Case{9, 13, 3, 40, true, {0, 5, 40}, 0.1}, Case{17, 1, 2, 33, true, {3}}}) {
    const Problem f32 = ProblemOf(c, DType::kF32), bf16 = ProblemOf(c, DType::kBF16);
    for (Implementation implementation : FastImplementations(DType::kBF16)) {
      SCOPED_TRACE(testing::Message() << implementation.name << " " << c);
      implementation.options.num_threads = 1;
      const Result f32_alone = RunAs<float>(f32, implementation.options),
                   bf16_alone = RunAs<bfloat16>(bf16, implementation.options);
      for (const int threads : {2, 3, 7, 40}) {
        implementation.options.num_threads = threads;
        ExpectEqualBits(AllOf(RunAs<float>(f32, implementation.options)), AllOf(f32_alone));
        ExpectEqualBits(AllOf(RunAs<bfloat16>(bf16, implementation.options)), AllOf(bf16_alone));
      }
    }
  }
}

TEST(SlstmFast, ASequenceDoesNotDependOnTheOthersOfItsBatch) {
  const Case c = {11, 6, 2, 20, true, {3, 7}};
  const int64_t b = 9;
  const auto expect = [&]<class T>(const Implementation& implementation) {
    const Problem batch = ProblemOf(c, DTypeOf<T>::value);
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
    const Result all = RunAs<T>(batch, implementation.options), one = RunAs<T>(alone, implementation.options);
    const auto x = AllOf(all), y = AllOf(one);
    for (size_t e = 0; e < x.size(); ++e) {
      const std::string name = x[e].name;
      if (name == "drecurrent" || name == "dbias") continue;  // sums over the batch
      EXPECT_EQ(sequence(*x[e].values), *y[e].values) << name;
    }
  };
  for (const Implementation& implementation : FastImplementations(DType::kBF16)) {
    SCOPED_TRACE(implementation.name);
    expect.operator()<float>(implementation);
    expect.operator()<bfloat16>(implementation);
  }
}

TEST(SlstmFast, GenerationStepsEqualTheSequenceBitForBit) {
  const auto expect = [&]<class T>(const Implementation& implementation) {
    Problem whole = ProblemOf({18, 7, 2, 37, true, {8, 20}}, DTypeOf<T>::value);
    whole.dy.clear();
    const Result expected = RunAs<T>(whole, implementation.options);
    State state = whole.initial;
    for (int64_t t = 0; t < whole.shape.T; ++t) {
      Problem token = Segment(whole, t, t + 1, state);
      const Result r = RunAs<T>(token, implementation.options, {.in_place = true});
      EXPECT_EQ(r.y, Tokens(expected.y, whole.shape, t, t + 1)) << t;
      EXPECT_EQ(r.m, Tokens(expected.m, whole.shape, t, t + 1)) << t;
      state = r.last;
    }
    EXPECT_EQ(state.y, expected.last.y);
    EXPECT_EQ(state.c, expected.last.c);
    EXPECT_EQ(state.n, expected.last.n);
    EXPECT_EQ(state.m, expected.last.m);
  };
  for (const Implementation& implementation : FastImplementations(DType::kBF16)) {
    SCOPED_TRACE(implementation.name);
    expect.operator()<float>(implementation);
    expect.operator()<bfloat16>(implementation);
  }
}

TEST(SlstmFast, PackedDocumentsEqualSeparateSequencesBitForBit) {
  Problem packed = ProblemOf({1, 12, 2, 21, true, {0, 1, 6, 7}, 0.2}, DType::kF32);
  const std::vector<int64_t> bounds = {0, 1, 6, 7, 12};
  for (const Implementation& implementation : FastImplementations(DType::kF32)) {
    SCOPED_TRACE(implementation.name);
    const Result whole = RunAs<float>(packed, implementation.options);
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
      Problem document = Segment(packed, bounds[i], bounds[i + 1], {});
      document.reset.clear();
      const Result r = RunAs<float>(document, implementation.options);
      EXPECT_EQ(r.y, Tokens(whole.y, packed.shape, bounds[i], bounds[i + 1])) << i;
      EXPECT_EQ(r.m, Tokens(whole.m, packed.shape, bounds[i], bounds[i + 1])) << i;
      EXPECT_EQ(r.dwx, Tokens(whole.dwx, packed.shape, bounds[i], bounds[i + 1])) << i;
    }
  }
}

TEST(SlstmFast, InPlaceAndWithoutStatesGiveTheSameBits) {
  const Problem p = ProblemOf({5, 6, 2, 19, true, {7}}, DType::kF32);
  for (const Implementation& implementation : FastImplementations(DType::kF32)) {
    SCOPED_TRACE(implementation.name);
    const Result r = RunAs<float>(p, implementation.options);
    ExpectEqualBits(AllOf(RunAs<float>(p, implementation.options, {.in_place = true})), AllOf(r));
    const Result without = RunAs<float>(p, implementation.options, {.without_last = true});
    EXPECT_EQ(without.y, r.y);
    EXPECT_EQ(without.dwx, r.dwx);
    EXPECT_EQ(without.dR, r.dR);
  }
}

TEST(SlstmFast, ExtremeGatesEqualTheSpecification) {
  for (const double size : {100.0, 700.0}) {
    Problem p = RandomProblem({.B = 9, .T = 24, .NH = 1, .D = 20}, 81);
    AddLastGradient(p, 82);
    for (size_t e = 0; e < p.wx.size(); ++e)
      p.wx[e] += size * static_cast<double>(static_cast<int64_t>(RandomUint64(83, 0, e) % 3) - 1);
    RoundInputs(p, DType::kF32);
    const Result expected = Specification(p);
    for (const Implementation& implementation : FastImplementations(DType::kF32)) {
      SCOPED_TRACE(testing::Message() << implementation.name << " " << size);
      const Result r = RunAs<float>(p, implementation.options);
      for (const NamedValues& x : AllOf(r)) {
        for (const double value : *x.values) ASSERT_TRUE(std::isfinite(value)) << x.name;
      }
      // m of 700 has 6e-5 of resolution in f32, and the gates are exponentials of differences of such m
      ExpectClose(r, expected, 1e-3);
    }
  }
}

TEST(SlstmFast, NotANumberReachesTheOutputOfItsSequenceOnly) {
  for (const Implementation& implementation : FastImplementations(DType::kBF16)) {
    for (int64_t gate = 0; gate < 4; ++gate) {
      for (const int64_t token : {0, 2}) {  // fresh, or with a state
        Problem p = ProblemOf({2, 4, 1, 20}, DType::kBF16);
        p.dy.clear();
        p.wx[token * 80 + gate * 20 + 3] = std::nan("");
        for (const Values& y :
             {RunAs<float>(p, implementation.options).y, RunAs<bfloat16>(p, implementation.options).y}) {
          EXPECT_TRUE(std::isnan(y[3 * 20 + 3])) << implementation.name << " gate " << gate << " " << token;
          for (int64_t e = 0; e < 80; ++e) EXPECT_TRUE(std::isfinite(y[80 + e]));
        }
      }
    }
  }
}
}  // namespace
}  // namespace carousel::slstm_test
