// One call of an op case: its tensors in host memory, the call, and what must hold afterwards.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/device.h"
#include "tests/op_cases.h"

namespace carousel::testing {

inline DType DTypeFor(Role role, DType compute) {
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

inline double Read(const Tensor& t, int64_t offset) {
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
inline void Write(const Tensor& t, int64_t offset, double value) {
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
class OpCall {
 public:
  // Values are drawn per tensor, and rounded to bf16 for every dtype, so that all dtypes see equal inputs.
  OpCall(const OpCase& op_case, DType compute) : op_case_(op_case) {
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
  // On a device that shares the host's memory.
  void Run(Ops& ops) { op_case_.run(ops, tensors_); }
  // On any device: copies every tensor there, runs, copies everything back.
  void RunOn(Device& device) {
    Tensors on_device;
    std::map<const void*, void*> copy_of;
    for (const std::vector<std::byte>& bytes : memory_) {
      if (bytes.empty()) continue;
      void* copy = device.Allocate(static_cast<int64_t>(bytes.size()));
      ASSERT_NE(copy, nullptr);
      device.CopyToDevice(copy, bytes.data(), static_cast<int64_t>(bytes.size()));
      copy_of[bytes.data()] = copy;
    }
    for (const auto& [name, t] : tensors_) {
      on_device[name] = t;
      on_device[name].data = t.data == nullptr ? nullptr : copy_of.at(t.data);
    }
    op_case_.run(device.ops(), on_device);
    for (std::vector<std::byte>& bytes : memory_) {
      if (bytes.empty()) continue;
      device.CopyToHost(bytes.data(), copy_of.at(bytes.data()), static_cast<int64_t>(bytes.size()));
      device.Free(copy_of.at(bytes.data()));
    }
  }
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

inline double LargestMagnitude(const std::vector<double>& v) {
  double largest = 0;
  for (const double x : v) largest = std::max(largest, std::abs(x));
  return largest;
}

// The outputs agree with `want`, within the error that the case allows to arithmetic in the wide type and one
// rounding of each result.
inline void ExpectOutputs(const OpCase& op_case, DType compute, const Values& got, const Values& want) {
  for (const TensorSpec& spec : op_case.tensors) {
    if (spec.use == Use::kIn) continue;
    const std::vector<double>&g = got.at(spec.name), &w = want.at(spec.name);
    ASSERT_EQ(g.size(), w.size());
    const DType dtype = DTypeFor(spec.role, compute);
    const double epsilon = compute == DType::kF64 ? 0x1p-52 : 0x1p-23;
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

// The values after the call that every dtype should give: inputs are equal, so the values are equal too.
// `specification` runs cases that have no formula of their own, in double.
inline Values ExpectedValues(const OpCase& op_case, Ops& specification) {
  OpCall call(op_case, DType::kF64);
  Values want = call.Get();
  if (op_case.expected != nullptr) {
    op_case.expected(want);
    return want;
  }
  call.Run(specification);
  return call.Get();
}
}  // namespace carousel::testing
