// Every case of tests/op_cases.h through every path of the CPU backend.
#include <gtest/gtest.h>

#include <memory>

#include "kernels/cpu/cpu_device.h"
#include "tests/op_call.h"
#include "tests/op_cases.h"
#include "tests/op_cases_block_linear.h"
#include "tests/op_cases_conv.h"
#include "tests/op_cases_elementwise.h"
#include "tests/op_cases_loss.h"
#include "tests/op_cases_matmul.h"
#include "tests/op_cases_mlstm.h"
#include "tests/op_cases_norm.h"
#include "tests/op_cases_parts.h"

namespace carousel::testing {
namespace {
using cpu::CpuDevice;
using cpu::CpuOptions;
using cpu::SimdLevel;

struct Path {
  std::string name;
  DType compute;
  CpuOptions options;
};
// Every dtype in plain loops, and the fast loops at every level that this machine has; bf16 with and without
// matrix tiles.
std::vector<Path> AllPaths() {
  std::vector<Path> paths;
  for (const DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    const std::string dtype = NameOf(compute);
    paths.push_back({dtype + " plain", compute, {.num_threads = 1, .reference = true}});
    for (const SimdLevel level : {SimdLevel::kBase, SimdLevel::kV3, SimdLevel::kV4}) {
      if (level > cpu::DetectSimdLevel()) continue;
      paths.push_back({dtype + " " + NameOf(level), compute, {.num_threads = 2, .simd_level = level}});
    }
    if (compute == DType::kBF16) {
      paths.push_back({dtype + " without tiles", compute, {.num_threads = 2, .use_tiles = false}});
    }
  }
  return paths;
}

class EveryOpCase : public ::testing::TestWithParam<OpCase> {};

TEST_P(EveryOpCase, AgreesWithTheIndependentComputationOnEveryPath) {
  const OpCase& op_case = GetParam();
  CpuDevice plain({.num_threads = 1, .reference = true});
  const Values want = ExpectedValues(op_case, plain.ops());
  for (const Path& path : AllPaths()) {
    SCOPED_TRACE(path.name);
    CpuDevice device(path.options);
    OpCall call(op_case, path.compute);
    const Values before = call.Get();
    call.Run(device.ops());
    call.ExpectNothingElseTouched(before);
    ExpectOutputs(op_case, path.compute, call.Get(), want);
  }
}

TEST_P(EveryOpCase, GivesTheSameBitsForEveryNumberOfThreads) {
  const OpCase& op_case = GetParam();
  for (const Path& path : AllPaths()) {
    std::unique_ptr<OpCall> one_thread;
    for (const int threads : {1, 2, 3}) {
      CpuOptions options = path.options;
      options.num_threads = threads;
      CpuDevice device(options);
      auto call = std::make_unique<OpCall>(op_case, path.compute);
      call->Run(device.ops());
      if (threads == 1) {
        one_thread = std::move(call);
      } else {
        EXPECT_EQ(one_thread->memory(), call->memory()) << path.name << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(EveryOpCase, GivesTheSameBitsWhenItIsRepeated) {
  const OpCase& op_case = GetParam();
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    CpuDevice device({.num_threads = 2});
    OpCall first(op_case, compute), second(op_case, compute);
    first.Run(device.ops());
    second.Run(device.ops());
    EXPECT_EQ(first.memory(), second.memory()) << NameOf(compute);
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, EveryOpCase, ::testing::ValuesIn(AllOpCases()),
                         [](const auto& info) { return info.param.name; });
}  // namespace
}  // namespace carousel::testing
