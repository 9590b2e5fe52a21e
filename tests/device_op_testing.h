// What tests of single ops on a device share: a matrix's copy there, and the running of op cases.
#pragma once
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

#include "tests/device_testing.h"
#include "tests/op_call.h"
#include "tests/op_testing.h"

namespace carousel::testing {

inline constexpr DType kComputes[] = {DType::kF64, DType::kF32, DType::kBF16};

// A copy of a matrix on the device. The bits between its rows are copied, too.
class OnDevice {
 public:
  OnDevice(Device& device, const Matrix& m) : device_(device), t_(m.t()) {
    bytes_ = (t_.dim[0] * t_.row_stride) * SizeOf(t_.dtype);
    t_.data = device.Allocate(bytes_);
    device.CopyToDevice(t_.data, m.t().data, bytes_);
  }
  ~OnDevice() { device_.Free(t_.data); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const Tensor& t() const { return t_; }
  Tensor As(std::initializer_list<int64_t> dims) const { return t_.Reshape(dims); }
  void CopyTo(Matrix& m) const { device_.CopyToHost(m.t().data, t_.data, bytes_); }

 private:
  Device& device_;
  Tensor t_;
  int64_t bytes_;
};

// Runs a case in every dtype on the device and compares it with its formula, or with the specification run in
// double.
inline void ExpectRight(Device& device, const OpCase& op_case,
                        std::initializer_list<DType> computes = {DType::kF64, DType::kF32, DType::kBF16}) {
  SCOPED_TRACE(op_case.name);
  cpu::CpuDevice plain({.num_threads = 1, .reference = true});
  const Values want = ExpectedValues(op_case, plain.ops());
  for (const DType compute : computes) {
    SCOPED_TRACE(NameOf(compute));
    OpCall call(op_case, compute);
    const Values before = call.Get();
    call.RunOn(device);
    call.ExpectNothingElseTouched(before);
    ExpectOutputs(op_case, compute, call.Get(), want);
  }
}
// All gaps become 16 elements, so that rows of multiples of 8 are aligned.
inline OpCase WithAlignedGaps(OpCase op_case) {
  op_case.name += "_aligned_gaps";
  for (TensorSpec& spec : op_case.tensors) {
    if (spec.gap > 0) spec.gap = 16;
  }
  return op_case;
}
}  // namespace carousel::testing
