// Every case of tests/op_cases.h on a device made of the sources in kernels/cuda, in every dtype.
#include <gtest/gtest.h>

#include "kernels/cpu/cpu_device.h"
#include "tests/device_testing.h"
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
constexpr DType kComputes[] = {DType::kF64, DType::kF32, DType::kBF16};

class EveryOpCaseOnTheDevice : public ::testing::TestWithParam<OpCase> {};

TEST_P(EveryOpCaseOnTheDevice, AgreesWithTheIndependentComputation) {
  const OpCase& op_case = GetParam();
  cpu::CpuDevice plain({.num_threads = 1, .reference = true});
  const Values want = ExpectedValues(op_case, plain.ops());
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const DType compute : kComputes) {
    SCOPED_TRACE(NameOf(compute));
    OpCall call(op_case, compute);
    const Values before = call.Get();
    call.RunOn(*device);
    call.ExpectNothingElseTouched(before);
    ExpectOutputs(op_case, compute, call.Get(), want);
    OpCall again(op_case, compute);
    again.RunOn(*device);
    EXPECT_EQ(call.memory(), again.memory()) << "two runs differ";
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, EveryOpCaseOnTheDevice, ::testing::ValuesIn(AllOpCases()),
                         [](const auto& info) { return info.param.name; });
}  // namespace
}  // namespace carousel::testing
