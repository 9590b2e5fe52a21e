// Segments of a sequence against the sequence in one piece, on any device: the cases and what must hold.
#pragma once
#include <string>
#include <vector>

#include "tests/mlstm_summary_testing.h"

namespace carousel::mlstm_test {

enum class SegmentGates { kExponential, kSigmoid, kSigmoidNotNormalized };
struct SegmentCase {
  int64_t B, T, NH, DHQK, DHV, L;
  SegmentGates gates = SegmentGates::kExponential;
  std::vector<int64_t> resets = {};  // rows b * T + t
  double i_mean = 0, f_mean = 3;
  double eps = 1e-6;
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
};
inline std::ostream& operator<<(std::ostream& out, const SegmentCase& c) {
  out << "B" << c.B << " T" << c.T << " NH" << c.NH << " DHQK" << c.DHQK << " DHV" << c.DHV << " L" << c.L
      << " gates " << static_cast<int>(c.gates) << " i " << c.i_mean << " f " << c.f_mean << " resets";
  for (const int64_t t : c.resets) out << " " << t;
  return out;
}
inline Problem ProblemOf(const SegmentCase& c, DType compute) {
  MlstmShape s = {.B = c.B, .T = c.T, .NH = c.NH, .DHQK = c.DHQK, .DHV = c.DHV, .L = c.L, .eps = c.eps};
  if (c.gates != SegmentGates::kExponential) s.input_gate = InputGate::kSigmoid;
  s.normalize = c.gates != SegmentGates::kSigmoidNotNormalized;
  Problem p = RandomProblem(s, 31, {.i_mean = c.i_mean, .f_mean = c.f_mean});
  p.normalizer_gradient = c.normalizer_gradient;
  if (!c.resets.empty()) p.reset.assign(p.N(), 0);
  for (const int64_t t : c.resets) p.reset[t] = 1;
  RoundInputs(p, compute);
  return p;
}
inline std::vector<int64_t> AllTokens(int64_t N) {
  std::vector<int64_t> t(N);
  for (int64_t i = 0; i < N; ++i) t[i] = i;
  return t;
}
// Every kind of gate, resets at both ends of segments and inside of them, everywhere, in one sequence only;
// chunks that segments cut; a state that nothing but its start keeps up; fast and slow forgetting.
inline const std::vector<SegmentCase>& SegmentCases() {
  using enum SegmentGates;
  static const std::vector<SegmentCase>& cases = *new std::vector<SegmentCase>{
      {2, 60, 2, 12, 20, 64},
      {1, 60, 1, 3, 5, 7, kExponential, {0}},
      {1, 60, 3, 16, 8, 8, kExponential, {20, 39, 59}},
      {2, 60, 1, 9, 33, 16, kExponential, {14, 15, 16, 29, 60, 90}},
      {1, 60, 2, 8, 8, 32, kExponential, AllTokens(60)},
      {1, 60, 2, 20, 24, 20, kSigmoid},
      {2, 60, 1, 20, 24, 13, kSigmoid, {30, 75}},
      {1, 60, 2, 24, 20, 64, kSigmoidNotNormalized, {31}},
      {1, 60, 2, 16, 16, 16, kExponential, {}, -10, 4.5},       // the start m = 0 holds the stabiliser
      {1, 60, 2, 16, 16, 16, kExponential, {}, -10, 4.5, 0.5},  // and a large eps shows where it is
      {1, 60, 1, 16, 16, 16, kExponential, {22}, 4, -1, 0.1},   // fast forgetting, large input gates
      {1, 60, 2, 16, 24, 16, kExponential, {41}, 0, 3, 1e-6, NormalizerGradient::kFrozen},
      {1, 60, 2, 16, 24, 16, kSigmoid, {}, 0, 3, 1e-6, NormalizerGradient::kFrozen},
  };
  return cases;
}
// Segments of one to sixty tokens, of equal length and not, one without tokens.
inline const std::vector<std::vector<int64_t>>& Splits60() {
  static const std::vector<std::vector<int64_t>>& splits = *new std::vector<std::vector<int64_t>>{
      {60},           EqualSegments(60, 2), EqualSegments(60, 3), EqualSegments(60, 4), EqualSegments(60, 5),
      {1, 2, 59, 60}, {33, 33, 47, 60}};
  return splits;
}

// Of these what each has that the others have not: many segments, short and empty ones, a border in a chunk.
inline const std::vector<std::vector<int64_t>>& FewSplits60() {
  static const std::vector<std::vector<int64_t>>& splits =
      *new std::vector<std::vector<int64_t>>{EqualSegments(60, 4), {1, 2, 59, 60}, {33, 33, 47, 60}};
  return splits;
}

// Tokens [begin, end) of a problem, without states.
inline Problem Cut(const Problem& p, int64_t begin, int64_t end) {
  Problem part;
  part.shape = p.shape;
  part.shape.T = end - begin;
  part.normalizer_gradient = p.normalizer_gradient;
  for (const auto& [to, from] : {std::pair(&part.q, &p.q),
                                 {&part.k, &p.k},
                                 {&part.v, &p.v},
                                 {&part.i_pre, &p.i_pre},
                                 {&part.f_pre, &p.f_pre},
                                 {&part.dh, &p.dh}}) {
    *to = TokensOf(*from, p.shape, begin, end);
  }
  for (int64_t b = 0; b < p.shape.B && !p.reset.empty(); ++b) {
    part.reset.insert(part.reset.end(), p.reset.begin() + b * p.shape.T + begin,
                      p.reset.begin() + b * p.shape.T + end);
  }
  return part;
}

// Gates at the ends of their range.
struct Extreme {
  std::string name;
  double (*i)(int64_t t);
  double (*f)(int64_t t);
};
inline const std::vector<Extreme>& Extremes() {
  static const std::vector<Extreme>& all = *new std::vector<Extreme>{
      {"input gates of 40 and -40", [](int64_t t) { return t % 3 == 2 ? -40.0 : 40.0; },
       [](int64_t) { return 3.0; }},
      {"one large input gate long ago", [](int64_t t) { return t == 2 ? 40.0 : -40.0; },
       [](int64_t) { return 8.0; }},
      {"every token forgets everything", [](int64_t) { return 0.0; }, [](int64_t) { return -1e30; }},
      {"nothing is ever forgotten", [](int64_t t) { return t % 2 == 0 ? -1.0 : 1.0; },
       [](int64_t) { return 1e30; }},
      {"decays underflow", [](int64_t t) { return 0.1 * static_cast<double>(t % 5); },
       [](int64_t) { return -50.0; }},
      {"forget gates of 0 and 1", [](int64_t) { return 1.0; },
       [](int64_t t) { return t % 7 == 3 ? -1e30 : 1e30; }},
      {"forget gates of -infinity", [](int64_t) { return 1.0; },
       [](int64_t t) { return t % 20 == 17 ? -std::numeric_limits<double>::infinity() : 2.0; }},
      {"a segment of masked tokens",
       [](int64_t t) { return t >= 14 && t < 31 ? -std::numeric_limits<double>::infinity() : 0.5; },
       [](int64_t) { return 2.0; }},
      {"masked tokens only", [](int64_t) { return -std::numeric_limits<double>::infinity(); },
       [](int64_t) { return 2.0; }},
  };
  return all;
}
inline Problem ProblemOf(const Extreme& extreme) {
  Problem p = ProblemOf(SegmentCase{1, 60, 2, 12, 16, 16}, DType::kBF16);
  for (int64_t t = 0; t < 60; ++t) {
    for (int64_t head = 0; head < 2; ++head)
      p.i_pre[t * 2 + head] = extreme.i(t), p.f_pre[t * 2 + head] = extreme.f(t);
  }
  return p;
}

// Of extreme gates many gradients are 0 but for rounding: errors are counted in units of the terms of their
// sums, which are of the size of q, k, v and dh, about 1.
inline void ExpectExtremesClose(const Result& a, const Result& b, double tolerance) {
  const auto x = AllOf(a), y = AllOf(b);
  for (size_t e = 0; e < x.size(); ++e) {
    double largest = 1;
    for (const double value : *y[e].values) largest = std::max(largest, std::abs(value));
    EXPECT_LE(LargestError(*x[e].values, *y[e].values), tolerance * largest) << x[e].name;
  }
}

// Bounds of bf16, relative in the norm of each tensor. Gates, stabilisers and n never are bf16.
inline void ExpectBf16Close(const Result& r, const Result& expected) {
  EXPECT_LE(RelativeError(r.h, expected.h), 4e-3);
  ExpectGradientsWithinBf16(r, expected);
  EXPECT_LE(RelativeError(r.last_C, expected.last_C), 5e-3);
  EXPECT_LE(RelativeError(r.last_n, expected.last_n), 1e-5);
  EXPECT_LE(RelativeError(r.m, expected.m), 1e-6);
  EXPECT_LE(RelativeError(r.denominator, expected.denominator), 4e-3);
}

// All results of the segments and of the whole agree, `tolerance` relative in the norm of each tensor; of m
// absolutely, so that eps keeps its place.
inline void ExpectSegmentsClose(const Result& segments, const Result& whole, double tolerance) {
  ExpectClose(segments, whole, tolerance);
  EXPECT_LE(LargestError(segments.m, whole.m), tolerance * 32);
  EXPECT_LE(LargestError(segments.last_m, whole.last_m), tolerance * 32);
}
// The state before segment j is the last state of the tokens before it.
template <class T>
void ExpectStatesOfPrefixes(Device& device, const Problem& p, const std::vector<int64_t>& ends,
                            const SegmentRun& run, double tolerance) {
  for (size_t j = 0; j < ends.size(); ++j) {
    SCOPED_TRACE(::testing::Message() << "segment " << j);
    if (j == 0 || ends[j - 1] == 0) {
      for (const Values* x : {&run.C[j], &run.n[j], &run.m[j]}) {
        for (const double e : *x) EXPECT_EQ(e, 0);
      }
      continue;
    }
    Problem prefix = Cut(p, 0, ends[j - 1]);
    prefix.dh.clear();
    const Result r = RunOn<T>(device, prefix, {.aligned = false});
    EXPECT_LE(RelativeError(run.C[j], r.last_C), tolerance);
    EXPECT_LE(RelativeError(run.n[j], r.last_n), tolerance);
    EXPECT_LE(LargestError(run.m[j], r.last_m), tolerance * 32);
  }
}
// The states and gradients at the borders that two splits share: of the finer one at indices `at`.
inline void ExpectSameBorders(const SegmentRun& coarse, const SegmentRun& fine, const std::vector<size_t>& at,
                              double tolerance) {
  for (size_t j = 0; j < at.size(); ++j) {
    SCOPED_TRACE(::testing::Message() << "segment " << j);
    EXPECT_LE(RelativeError(coarse.C[j], fine.C[at[j]]), tolerance);
    EXPECT_LE(RelativeError(coarse.n[j], fine.n[at[j]]), tolerance);
    EXPECT_LE(LargestError(coarse.m[j], fine.m[at[j]]), tolerance * 32);
    if (j == 0) continue;
    EXPECT_LE(RelativeError(coarse.dC_last[j - 1], fine.dC_last[at[j] - 1]), tolerance);
    EXPECT_LE(RelativeError(coarse.dn_last[j - 1], fine.dn_last[at[j] - 1]), tolerance);
  }
}
// dstate of every segment is the gradient of its initial state that MlstmBackward gives without dlast.
template <class T>
void ExpectGradientsOfInitialStates(Device& device, const Problem& p, const std::vector<int64_t>& ends,
                                    const SegmentRun& run, double tolerance) {
  for (size_t j = 0; j < ends.size(); ++j) {
    SCOPED_TRACE(::testing::Message() << "segment " << j);
    const int64_t begin = j == 0 ? 0 : ends[j - 1], end = ends[j];
    Problem part = Cut(p, begin, end);
    part.initial_C = run.C[j], part.initial_n = run.n[j], part.initial_m = run.m[j];
    Values expected(run.dstates[j].size(), 0.0);
    if (begin < end) {
      const Result r = RunOn<T>(device, part, {.aligned = false});
      expected = r.dC;
      expected.insert(expected.end(), r.dn.begin(), r.dn.end());
    }
    EXPECT_LE(RelativeError(run.dstates[j], expected), tolerance);
  }
}
// G of a segment in which a document begins is -infinity, of any other the sum of its log forget gates.
inline void ExpectLogForgets(const Problem& p, const std::vector<int64_t>& ends, const SegmentRun& run,
                             double tolerance) {
  const MlstmShape& s = p.shape;
  for (size_t j = 0; j < ends.size(); ++j) {
    for (int64_t pair = 0; pair < s.B * s.NH; ++pair) {
      double G = 0;
      for (int64_t t = j == 0 ? 0 : ends[j - 1]; t < ends[j]; ++t) {
        const int64_t row = pair / s.NH * s.T + t;
        G -= std::log1p(std::exp(-p.f_pre[row * s.NH + pair % s.NH]));
        if (!p.reset.empty() && p.reset[row] != 0) G = -std::numeric_limits<double>::infinity();
      }
      const double got = run.summaries[j][run.summaries[j].size() - s.B * s.NH + pair];
      if (std::isinf(G)) {
        EXPECT_EQ(got, G);
      } else {
        EXPECT_NEAR(got, G, tolerance * (1 - G)) << "segment " << j << " pair " << pair;
      }
    }
  }
}
inline void ExpectFinite(const SegmentRun& run) {
  for (const NamedValues& x : AllOf(run.result)) {
    for (const double e : *x.values) ASSERT_TRUE(std::isfinite(e)) << x.name;
  }
  for (const std::vector<Values>* parts :
       {&run.C, &run.n, &run.m, &run.dstates, &run.dC_last, &run.dn_last}) {
    for (const Values& x : *parts) {
      for (const double e : x) ASSERT_TRUE(std::isfinite(e));
    }
  }
  for (const double e : run.factors) ASSERT_TRUE(e >= 0 && e <= 1) << e;
}
}  // namespace carousel::mlstm_test
