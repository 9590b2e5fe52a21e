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
// What each split has that the others have not: many segments, short and empty ones, a border in a chunk.
const std::vector<std::vector<int64_t>>& FewSplits() {
  static const std::vector<std::vector<int64_t>>& splits =
      *new std::vector<std::vector<int64_t>>{EqualSegments(60, 4), {1, 2, 59, 60}, {33, 33, 47, 60}};
  return splits;
}

TEST_F(DeviceMlstmSummary, SegmentsInF64EqualTheWholeSequence) {
  for (const SegmentCase& c : SegmentCases()) {
    const Problem p = ProblemOf(c, DType::kF64);
    const Result whole = Specification(p);
    for (const std::vector<int64_t>& ends : FewSplits()) {
      SCOPED_TRACE(::testing::Message() << c << " segments " << ::testing::PrintToString(ends));
      const SegmentRun run = RunSegments<double>(*device_, p, ends);
      ExpectSegmentsClose(run.result, whole, 1e-13);
      ExpectLogForgets(p, ends, run, 1e-14);
      ExpectFinite(run);
    }
  }
}

TEST_F(DeviceMlstmSummary, SegmentsInF32EqualTheWholeSequenceToRounding) {
  for (const SegmentCase& c : SegmentCases()) {
    const Problem p = ProblemOf(c, DType::kF32);
    const Result whole = Specification(p);
    for (const std::vector<int64_t>& ends : FewSplits()) {
      SCOPED_TRACE(::testing::Message() << c << " segments " << ::testing::PrintToString(ends));
      const SegmentRun run = RunSegments<float>(*device_, p, ends);
      ExpectSegmentsClose(run.result, whole, 1e-5);
      ExpectLogForgets(p, ends, run, 1e-6);
    }
  }
}

TEST_F(DeviceMlstmSummary, GradientsOfInitialStatesAreThoseOfTheBackward) {
  const std::vector<int64_t> ends = {17, 50, 70};
  for (const NormalizerGradient gradient : {NormalizerGradient::kExact, NormalizerGradient::kFrozen}) {
    SegmentCase c = {2, 70, 2, 20, 70, 64, SegmentGates::kExponential, {60}};
    c.normalizer_gradient = gradient;
    const Problem p = ProblemOf(c, DType::kF64);
    const SegmentRun run = RunSegments<double>(*device_, p, ends);
    ExpectStatesOfPrefixes<double>(*device_, p, ends, run, 1e-13);
    ExpectGradientsOfInitialStates<double>(*device_, p, ends, run, 1e-13);
  }
}
}  // namespace
}  // namespace carousel::mlstm_test
