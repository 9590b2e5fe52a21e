// MlstmSummary, MlstmFold and their backward on a device: a sequence in segments is the sequence in one
// piece.
#include <gtest/gtest.h>

#include "tests/device_testing.h"
#include "tests/mlstm_summary_cases.h"

namespace carousel::mlstm_test {
namespace {

class DeviceMlstmSummary : public ::testing::Test {
 protected:
  const std::unique_ptr<Device> device_ = testing::MakeTestDevice();
};
// Every case with one of the splits, another one in each dtype.
template <class T>
void ExpectSegmentsEqualTheWhole(Device& device, size_t first_split, double tolerance, double G_tolerance) {
  for (size_t i = 0; i < SegmentCases().size(); ++i) {
    const SegmentCase& c = SegmentCases()[i];
    const std::vector<int64_t>& ends = FewSplits60()[(first_split + i) % FewSplits60().size()];
    SCOPED_TRACE(::testing::Message() << c << " segments " << ::testing::PrintToString(ends));
    const Problem p = ProblemOf(c, DTypeOf<T>::value);
    const SegmentRun run = RunSegments<T>(device, p, ends);
    ExpectSegmentsClose(run.result, Specification(p), tolerance);
    ExpectLogForgets(p, ends, run, G_tolerance);
    ExpectFinite(run);
  }
}
TEST_F(DeviceMlstmSummary, SegmentsInF64EqualTheWholeSequence) {
  ExpectSegmentsEqualTheWhole<double>(*device_, 0, 1e-13, 1e-14);
}
TEST_F(DeviceMlstmSummary, SegmentsInF32EqualTheWholeSequenceToRounding) {
  ExpectSegmentsEqualTheWhole<float>(*device_, 1, 1e-5, 1e-6);
}

TEST_F(DeviceMlstmSummary, GradientsOfInitialStatesAreThoseOfTheBackward) {
  const std::vector<int64_t> ends = {17, 50};
  for (const NormalizerGradient gradient : {NormalizerGradient::kExact, NormalizerGradient::kFrozen}) {
    SegmentCase c = {1, 50, 2, 20, 70, 64, SegmentGates::kExponential, {40}};
    c.normalizer_gradient = gradient;
    const Problem p = ProblemOf(c, DType::kF64);
    const SegmentRun run = RunSegments<double>(*device_, p, ends);
    ExpectStatesOfPrefixes<double>(*device_, p, ends, run, 1e-13);
    ExpectGradientsOfInitialStates<double>(*device_, p, ends, run, 1e-13);
  }
}

// Head sizes without a scan on tensor cores.
TEST_F(DeviceMlstmSummary, SegmentsInBf16HaveTheErrorOfTheCell) {
  for (const SegmentCase& c : SegmentCases()) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kBF16);
    const SegmentRun run = RunSegments<bfloat16>(*device_, p, EqualSegments(60, 4));
    ExpectBf16Close(run.result, Specification(p));
    ExpectFinite(run);
  }
}

// Head sizes with one, where a row stride of a multiple of 16 bytes lets it run; other strides take the
// other.
TEST_F(DeviceMlstmSummary, SegmentsOnTensorCoresHaveTheErrorOfTheCell) {
  using enum SegmentGates;
  const std::vector<SegmentCase> cases = {
      {1, 150, 2, 64, 64, 64, kExponential, {70}},     {2, 66, 1, 64, 128, 64, kSigmoid, {9, 66 + 33}},
      {1, 66, 1, 128, 128, 64, kSigmoidNotNormalized}, {1, 99, 1, 128, 256, 64, kExponential, {}, -10, 4.5},
      {1, 66, 1, 256, 512, 64, kExponential, {34}},    {1, 66, 1, 384, 384, 64, kExponential, {34}},
      {1, 66, 1, 512, 768, 64, kExponential, {34}},
  };
  for (const SegmentCase& c : cases) {
    SCOPED_TRACE(::testing::Message() << c);
    const Problem p = ProblemOf(c, DType::kBF16);
    const Result expected = Specification(p);
    const std::vector<int64_t> ends = EqualSegments(c.T, 3);
    const SegmentRun run = RunSegments<bfloat16>(*device_, p, ends, /*aligned=*/true);
    ExpectBf16Close(run.result, expected);
    ExpectLogForgets(p, ends, run, 1e-6);
    ExpectFinite(run);
    if (c.DHV <= 64) ExpectBf16Close(RunSegments<bfloat16>(*device_, p, ends).result, expected);
  }
}

// Segments so long, of so few heads, that each is split over the blocks of the device.
TEST_F(DeviceMlstmSummary, SegmentsThatADeviceSplitsHaveTheErrorOfTheCell) {
  for (const std::vector<int64_t>& resets : {std::vector<int64_t>(), {700}}) {
    const SegmentCase c = {1, 1200, 1, 64, 64, 64, SegmentGates::kExponential, resets, 0, 6};
    const Problem p = ProblemOf(c, DType::kBF16);
    const SegmentRun run = RunSegments<bfloat16>(*device_, p, EqualSegments(1200, 2), /*aligned=*/true);
    ExpectBf16Close(run.result, Specification(p));
  }
}

// A device forms the sums of the log gates of a chunk as differences of prefix sums, which reach 3e5 where
// every token forgets everything: 1e-10 of f64.
TEST_F(DeviceMlstmSummary, ExtremeGatesGiveTheSameAsTheWholeSequence) {
  for (const Extreme& extreme : Extremes()) {
    SCOPED_TRACE(extreme.name);
    const Problem p = ProblemOf(extreme);
    const Result whole = RunOn<double>(*device_, p, {.aligned = false});
    const std::vector<int64_t> ends = {15, 60};
    const SegmentRun run = RunSegments<double>(*device_, p, ends);
    ExpectFinite(run);
    ExpectExtremesClose(run.result, whole, 1e-10);
    ExpectFinite(RunSegments<float>(*device_, p, ends));
    ExpectFinite(RunSegments<bfloat16>(*device_, p, ends));
  }
}

TEST_F(DeviceMlstmSummary, ASecondRunGivesTheSameBits) {
  const Problem p =
      ProblemOf(SegmentCase{2, 66, 1, 64, 64, 64, SegmentGates::kExponential, {40}}, DType::kBF16);
  const auto expect_same = [](const SegmentRun& a, const SegmentRun& b) {
    EXPECT_EQ(a.summaries, b.summaries);
    EXPECT_EQ(a.dstates, b.dstates);
    EXPECT_EQ(a.C, b.C);
    EXPECT_EQ(a.dC_last, b.dC_last);
  };
  const std::vector<int64_t> ends = EqualSegments(66, 3);
  expect_same(RunSegments<bfloat16>(*device_, p, ends, true), RunSegments<bfloat16>(*device_, p, ends, true));
  expect_same(RunSegments<float>(*device_, p, ends), RunSegments<float>(*device_, p, ends));
}
}  // namespace
}  // namespace carousel::mlstm_test
