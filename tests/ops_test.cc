// Every case of tests/op_cases.h through every path of the CPU backend.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "core/base/random.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/op_cases.h"
#include "tests/op_cases_block_linear.h"
#include "tests/op_cases_conv.h"
#include "tests/op_cases_elementwise.h"
#include "tests/op_cases_loss.h"
#include "tests/op_cases_matmul.h"
#include "tests/op_cases_norm.h"

namespace carousel::testing {
namespace {
using cpu::CpuDevice;
using cpu::CpuOptions;
using cpu::SimdLevel;

DType DTypeFor(Role role, DType compute) {
  switch (role) {
    case Role::kI32:
      return DType::kI32;
    case Role::kU8:
      return DType::kU8;
    case Role::kWide:
      return WideOf(compute);
    default:
      return compute;
  }
}

double Read(const Tensor& t, int64_t offset) {
  switch (t.dtype) {
    case DType::kI32:
      return t.as<int32_t>()[offset];
    case DType::kU8:
      return t.as<uint8_t>()[offset];
    case DType::kF32:
      return static_cast<double>(t.as<float>()[offset]);
    case DType::kBF16:
      return static_cast<double>(static_cast<float>(t.as<bfloat16>()[offset]));
    default:
      return t.as<double>()[offset];
  }
}
void Write(const Tensor& t, int64_t offset, double value) {
  switch (t.dtype) {
    case DType::kI32:
      t.as<int32_t>()[offset] = static_cast<int32_t>(value);
      break;
    case DType::kU8:
      t.as<uint8_t>()[offset] = static_cast<uint8_t>(value);
      break;
    case DType::kF32:
      t.as<float>()[offset] = static_cast<float>(value);
      break;
    case DType::kBF16:
      t.as<bfloat16>()[offset] = bfloat16(static_cast<float>(value));
      break;
    default:
      t.as<double>()[offset] = value;
  }
}

// The tensors of one call, each in memory of its own that ends where the tensor ends, so that sanitizers see
// a step outside. All bits of outputs and of gaps are set before the call: NaN in every floating type.
class Call {
 public:
  // Values are drawn per tensor, and rounded to bf16 for every dtype, so that all dtypes see equal inputs.
  Call(const OpCase& op_case, DType compute) : op_case_(op_case) {
    for (size_t i = 0; i < op_case.tensors.size(); ++i) {
      const TensorSpec& spec = op_case.tensors[i];
      if (!spec.same_memory_as.empty()) continue;
      Tensor t;
      t.dtype = DTypeFor(spec.role, compute);
      t.rank = static_cast<int8_t>(spec.dims.size());
      for (int d = 0; d < t.rank; ++d) t.dim[d] = spec.dims[d];
      t.row_stride = spec.dims.back() + spec.gap;
      int64_t rows = 1;
      for (int d = 0; d + 1 < t.rank; ++d) rows *= t.dim[d];
      const int64_t elems = rows == 0 ? 0 : (rows - 1) * t.row_stride + spec.dims.back();
      memory_.emplace_back(static_cast<size_t>(elems * SizeOf(t.dtype)), std::byte{0xff});
      t.data = memory_.back().data();
      tensors_[spec.name] = t;
      if (spec.use == Use::kOut) continue;
      for (int64_t e = 0; e < t.num_elems(); ++e) {
        const double u = RandomUniform(7, i, static_cast<uint64_t>(e));
        const bool integer = spec.role == Role::kI32 || spec.role == Role::kU8;
        const double value = integer ? std::floor(spec.low + u * (spec.high - spec.low + 1))
                                     : spec.low + u * (spec.high - spec.low);
        Write(t, Offset(t, e),
              integer ? value : static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(value)))));
      }
    }
    for (const TensorSpec& spec : op_case.tensors) {
      if (!spec.same_memory_as.empty()) tensors_[spec.name] = tensors_[spec.same_memory_as];
    }
  }

  // Element e of the dense tensor, as an offset into its memory.
  static int64_t Offset(const Tensor& t, int64_t e) {
    const int64_t width = t.dim[t.rank - 1];
    return e / width * t.row_stride + e % width;
  }
  // Dense values of every tensor.
  Values Get() const {
    Values values;
    for (const auto& [name, t] : tensors_) {
      std::vector<double>& v = values[name];
      for (int64_t e = 0; e < t.num_elems(); ++e) v.push_back(Read(t, Offset(t, e)));
    }
    return values;
  }
  void Run(Ops& ops) { op_case_.run(ops, tensors_); }
  const std::vector<std::vector<std::byte>>& memory() const { return memory_; }

  // Bytes of gaps keep their value; inputs that no output shares keep theirs (compared with `before`).
  void ExpectNothingElseTouched(const Values& before) const {
    const Values after = Get();
    for (const TensorSpec& spec : op_case_.tensors) {
      const Tensor& t = tensors_.at(spec.name);
      for (int64_t r = 0; spec.gap > 0 && r + 1 < t.dim[0]; ++r) {
        const std::byte* gap =
            static_cast<const std::byte*>(t.data) + (r * t.row_stride + t.dim[1]) * SizeOf(t.dtype);
        for (int64_t b = 0; b < spec.gap * SizeOf(t.dtype); ++b) {
          ASSERT_EQ(gap[b], std::byte{0xff}) << spec.name << " row " << r << ": wrote between the rows";
        }
      }
      bool shared = false;
      for (const TensorSpec& other : op_case_.tensors) shared |= other.same_memory_as == spec.name;
      if (spec.use == Use::kIn && !shared) {
        EXPECT_EQ(before.at(spec.name), after.at(spec.name)) << "changed its input " << spec.name;
      }
    }
  }

 private:
  const OpCase& op_case_;
  std::vector<std::vector<std::byte>> memory_;
  Tensors tensors_;
};

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

double LargestMagnitude(const std::vector<double>& v) {
  double largest = 0;
  for (const double x : v) largest = std::max(largest, std::abs(x));
  return largest;
}

class EveryOpCase : public ::testing::TestWithParam<OpCase> {};

TEST_P(EveryOpCase, AgreesWithTheIndependentComputationOnEveryPath) {
  const OpCase& op_case = GetParam();
  // what each dtype should give: inputs are equal, so the values are equal too
  Values want;
  {
    Call call(op_case, DType::kF64);
    want = call.Get();
    if (op_case.expected != nullptr) {
      op_case.expected(want);
    } else {
      CpuDevice plain({.num_threads = 1, .reference = true});
      call.Run(plain.ops());
      want = call.Get();
    }
  }
  for (const Path& path : AllPaths()) {
    SCOPED_TRACE(path.name);
    CpuDevice device(path.options);
    Call call(op_case, path.compute);
    const Values before = call.Get();
    call.Run(device.ops());
    call.ExpectNothingElseTouched(before);
    const Values got = call.Get();
    for (const TensorSpec& spec : op_case.tensors) {
      if (spec.use == Use::kIn) continue;
      const std::vector<double>&g = got.at(spec.name), &w = want.at(spec.name);
      ASSERT_EQ(g.size(), w.size());
      const DType dtype = DTypeFor(spec.role, path.compute);
      const double epsilon = path.compute == DType::kF64 ? 0x1p-52 : 0x1p-23;
      const double absolute = (op_case.wide_error * epsilon + op_case.expected_error) *
                              std::max(LargestMagnitude(w), op_case.magnitude);
      // one rounding to the 8 bits of bf16
      const double relative = dtype == DType::kBF16 ? 0x1p-8 : 0;
      for (size_t i = 0; i < g.size(); ++i) {
        ASSERT_LE(std::abs(g[i] - w[i]), absolute + relative * std::abs(w[i]))
            << spec.name << "[" << i << "] is " << g[i] << ", should be " << w[i];
        ASSERT_FALSE(std::isnan(g[i])) << spec.name << "[" << i << "] was not written";
      }
    }
  }
}

TEST_P(EveryOpCase, GivesTheSameBitsForEveryNumberOfThreads) {
  const OpCase& op_case = GetParam();
  for (const Path& path : AllPaths()) {
    std::unique_ptr<Call> one_thread;
    for (const int threads : {1, 2, 3}) {
      CpuOptions options = path.options;
      options.num_threads = threads;
      CpuDevice device(options);
      auto call = std::make_unique<Call>(op_case, path.compute);
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
    Call first(op_case, compute), second(op_case, compute);
    first.Run(device.ops());
    second.Run(device.ops());
    EXPECT_EQ(first.memory(), second.memory()) << NameOf(compute);
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, EveryOpCase, ::testing::ValuesIn(AllOpCases()),
                         [](const auto& info) { return info.param.name; });
}  // namespace
}  // namespace carousel::testing
