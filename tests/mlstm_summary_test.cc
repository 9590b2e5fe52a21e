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
      for (const std::vector<int64_t>& ends : Splits60()) {
        SCOPED_TRACE(::testing::Message() << c << " " << path.name << ::testing::PrintToString(ends));
        const SegmentRun run = RunSegments<float>(device, p, ends);
        ExpectSegmentsClose(run.result, expected, 1e-5);
        ExpectLogForgets(p, ends, run, 1e-6);
      }
    }
  }
}
}  // namespace
}  // namespace carousel::mlstm_test
