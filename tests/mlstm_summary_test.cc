// MlstmSummary, MlstmFold and their backward on the CPU: a sequence in segments is the sequence in one piece.
#include <gtest/gtest.h>

#include "kernels/cpu/cpu_device.h"
#include "tests/mlstm_summary_cases.h"

namespace carousel::mlstm_test {
namespace {
using cpu::CpuDevice;
using cpu::CpuOptions;
using cpu::SimdLevel;

struct Path {
  std::string name;
  CpuOptions options;
};
std::vector<Path> FastPaths(DType compute) {
  std::vector<Path> paths;
  for (const SimdLevel level : {SimdLevel::kBase, SimdLevel::kV3, SimdLevel::kV4}) {
    if (level > cpu::DetectSimdLevel()) continue;
    paths.push_back({NameOf(level), {.num_threads = 2, .simd_level = level, .use_tiles = false}});
  }
  if (compute == DType::kBF16) paths.push_back({"tiles", {.num_threads = 2}});
  return paths;
}

TEST(MlstmSummary, SegmentsInF64EqualTheWholeSequence) {
  CpuDevice device({.num_threads = 2});
  for (const SegmentCase& c : SegmentCases()) {
    const Problem p = ProblemOf(c, DType::kF64);
    const Result whole = RunOn<double>(device, p, {.aligned = false});
    for (const std::vector<int64_t>& ends : Splits60()) {
      SCOPED_TRACE(::testing::Message() << c << " segments " << ::testing::PrintToString(ends));
      const SegmentRun run = RunSegments<double>(device, p, ends);
      ExpectSegmentsClose(run.result, whole, 1e-13);
      ExpectStatesOfPrefixes<double>(device, p, ends, run, 1e-13);
      ExpectGradientsOfInitialStates<double>(device, p, ends, run, 1e-13);
      ExpectLogForgets(p, ends, run, 1e-14);
      ExpectFinite(run);
    }
  }
}

TEST(MlstmSummary, SegmentsInF32EqualTheWholeSequenceToRounding) {
  for (const SegmentCase& c : SegmentCases()) {
    const Problem p = ProblemOf(c, DType::kF32);
    const Result expected = Specification(p);
    std::vector<Path> paths = FastPaths(DType::kF32);
    paths.push_back({"plain loops", {.num_threads = 2, .reference = true}});
    for (const Path& path : paths) {
      CpuDevice device(path.options);
      for (const std::vector<int64_t>& ends : FewSplits60()) {
        SCOPED_TRACE(::testing::Message() << c << " " << path.name << ::testing::PrintToString(ends));
        const SegmentRun run = RunSegments<float>(device, p, ends);
        ExpectSegmentsClose(run.result, expected, 1e-5);
        ExpectLogForgets(p, ends, run, 1e-6);
      }
    }
  }
}

// Bounds of bf16, relative in the norm of each tensor. Gates, stabilisers and n never are bf16.
TEST(MlstmSummary, SegmentsInBf16HaveTheErrorOfTheCell) {
  for (const SegmentCase& c : SegmentCases()) {
    const Problem p = ProblemOf(c, DType::kBF16);
    const Result expected = Specification(p);
    for (const Path& path : FastPaths(DType::kBF16)) {
      SCOPED_TRACE(::testing::Message() << c << " " << path.name);
      CpuDevice device(path.options);
      const SegmentRun run = RunSegments<bfloat16>(device, p, EqualSegments(60, 4));
      ExpectBf16Close(run.result, expected);
      ExpectFinite(run);
    }
  }
}

TEST(MlstmSummary, AFinerSplitGivesTheSameStates) {
  CpuDevice device({.num_threads = 2});
  for (const SegmentCase& c : SegmentCases()) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kF64);
    const SegmentRun coarse = RunSegments<double>(device, p, {20, 40, 60});
    ExpectSameBorders(coarse, RunSegments<double>(device, p, EqualSegments(60, 12)), {0, 4, 8}, 1e-13);
    ExpectSameBorders(coarse, RunSegments<double>(device, p, {7, 20, 21, 40, 60}), {0, 2, 4}, 1e-13);
  }
}

// Long segments of many chunks: 3000 tokens that forget so slowly that the first still counts at the end.
// Where n.q is a small difference, f32 is 1e-5 to 1e-4 from f64 in one piece, too.
TEST(MlstmSummary, LongSequencesAreAsExactAsInOnePiece) {
  CpuDevice device({.num_threads = 2});
  const SegmentCase c = {1, 3000, 1, 16, 20, 64, SegmentGates::kExponential, {}, 0, 8};
  const Problem p = ProblemOf(c, DType::kF32);
  const Result exact = RunOn<double>(device, p, {.aligned = false});
  ExpectSegmentsClose(RunSegments<double>(device, p, EqualSegments(3000, 5)).result, exact, 1e-12);
  const Result whole = RunOn<float>(device, p, {.aligned = false});
  const Result segments = RunSegments<float>(device, p, EqualSegments(3000, 5)).result;
  for (size_t e = 0; e < AllOf(whole).size(); ++e) {
    const NamedValues expected = AllOf(exact)[e];
    EXPECT_LE(RelativeError(*AllOf(segments)[e].values, *expected.values),
              1e-6 + 1.5 * RelativeError(*AllOf(whole)[e].values, *expected.values))
        << expected.name;
  }
}

TEST(MlstmSummary, TokensBeforeADocumentLeaveNoTrace) {
  const SegmentCase c = {1, 40, 2, 12, 20, 16, SegmentGates::kExponential, {23}};
  for (const CpuOptions& options : {CpuOptions{.num_threads = 1, .reference = true}, CpuOptions{}}) {
    CpuDevice device(options);
    Problem p = ProblemOf(c, DType::kF32);
    p.dh.clear();
    const SegmentRun run = RunSegments<float>(device, p, {40});
    for (int64_t t = 0; t < 23; ++t) {
      for (int64_t e = 0; e < 24; ++e) p.k[t * 24 + e] = 5.0 - static_cast<double>(e % 7);
      for (int64_t e = 0; e < 40; ++e) p.v[t * 40 + e] = -3.0;
      for (int64_t head = 0; head < 2; ++head) p.i_pre[t * 2 + head] = 30, p.f_pre[t * 2 + head] = -2;
    }
    EXPECT_EQ(RunSegments<float>(device, p, {40}).summaries, run.summaries);
  }
}

TEST(MlstmSummary, GradientsOfInitialStatesAreDerivatives) {
  CpuDevice device({.num_threads = 2});
  for (const SegmentGates gates :
       {SegmentGates::kExponential, SegmentGates::kSigmoid, SegmentGates::kSigmoidNotNormalized}) {
    SegmentCase c = {1, 12, 2, 3, 4, 5, gates, {9}};
    c.eps = 1e-2;
    const Problem p = ProblemOf(c, DType::kF64);
    const std::vector<int64_t> ends = {5, 12};
    const SegmentRun run = RunSegments<double>(device, p, ends);
    // the second segment alone, from its folded state
    Problem second = Cut(p, 5, 12);
    second.initial_C = run.C[1], second.initial_n = run.n[1], second.initial_m = run.m[1];
    const auto loss = [&](const Problem& x) {
      Problem forward = x;
      forward.dh.clear();
      const Values h = RunOn<double>(device, forward).h;
      double sum = 0;
      for (size_t e = 0; e < h.size(); ++e) sum += h[e] * x.dh[e];
      return sum;
    };
    const auto derivative = [&](Values& at, size_t e) {
      constexpr double kStep = 1e-5;
      const double x = at[e];
      at[e] = x + kStep;
      const double above = loss(second);
      at[e] = x - kStep;
      const double below = loss(second);
      at[e] = x;
      return (above - below) / (2 * kStep);
    };
    const Values& got = run.dstates[1];
    const double scale = *std::max_element(got.begin(), got.end());
    ASSERT_GT(scale, 1e-2);
    const size_t size = second.initial_C.size();
    for (size_t e = 0; e < size; ++e)
      EXPECT_NEAR(got[e], derivative(second.initial_C, e), 1e-7 * scale) << "dC " << e;
    for (size_t e = 0; e < second.initial_n.size(); ++e)
      EXPECT_NEAR(got[size + e], derivative(second.initial_n, e), 1e-7 * scale) << "dn " << e;
  }
}

TEST(MlstmSummary, NoValueDependsOnTheNumberOfThreads) {
  const SegmentCase c = {3, 60, 2, 33, 150, 16, SegmentGates::kExponential, {41, 100}};
  const auto expect_same = [&]<class T>(T) {
    const Problem p = ProblemOf(c, DTypeOf<T>::value);
    std::unique_ptr<SegmentRun> one;
    for (const int threads : {1, 2, 5}) {
      CpuDevice device({.num_threads = threads});
      auto run = std::make_unique<SegmentRun>(RunSegments<T>(device, p, EqualSegments(60, 3)));
      if (one == nullptr) one = std::move(run);
      if (run == nullptr) continue;
      EXPECT_EQ(run->summaries, one->summaries);
      EXPECT_EQ(run->dstates, one->dstates);
      EXPECT_EQ(run->C, one->C);
      EXPECT_EQ(run->dC_last, one->dC_last);
      EXPECT_EQ(run->factors, one->factors);
    }
  };
  expect_same(double());
  expect_same(float());
  expect_same(bfloat16());
}

TEST(MlstmSummary, ExtremeGatesGiveTheSameAsTheWholeSequence) {
  for (const Extreme& extreme : Extremes()) {
    SCOPED_TRACE(extreme.name);
    CpuDevice device({.num_threads = 2}), plain({.num_threads = 1, .reference = true});
    const Problem p = ProblemOf(extreme);
    const Result whole = RunOn<double>(device, p, {.aligned = false});
    for (const std::vector<int64_t>& ends : {EqualSegments(60, 4), {1, 2, 59, 60}}) {
      const SegmentRun run = RunSegments<double>(device, p, ends);
      ExpectFinite(run);
      ExpectExtremesClose(run.result, whole, 1e-12);
      ExpectFinite(RunSegments<float>(device, p, ends));
      ExpectFinite(RunSegments<float>(plain, p, ends));
      ExpectFinite(RunSegments<bfloat16>(device, p, ends));
    }
  }
}
}  // namespace
}  // namespace carousel::mlstm_test
