// Runs the mLSTM cell, forward and backward, on a device from numbers in the layout of reference dumps:
// (B, NH, T, width), gates (B, NH, T), states C (B, NH, DHQK, DHV), n (B, NH, DHQK), m (B, NH).
#pragma once
#include <vector>

#include "absl/status/statusor.h"
#include "core/device.h"

namespace carousel {

struct MlstmCellInputs {
  MlstmShape shape;
  std::vector<double> q, k, v, i, f;
  std::vector<double> c0, n0, m0;  // all given, or all empty: the zero state
  std::vector<double> dh;
  std::vector<double> dc_true, dn_true;  // gradients of exp(m_last) c_last and exp(m_last) n_last; or empty
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
};

struct MlstmCellResults {
  std::vector<double> h, c_last, n_last, m_last;
  std::vector<double> denominator;  // (B, NH, T): max(|a|, exp(-m)), without eps
  std::vector<double> dq, dk, dv, di, df;
  std::vector<double> dc0, dn0, dm0;  // empty without an initial state
};

// q, k, v and dh are rounded to `compute`, everything else to its wide type. ResourceExhausted if the device
// has not enough memory.
absl::StatusOr<MlstmCellResults> RunMlstmCell(const MlstmCellInputs& inputs, DType compute, Device& device);
}  // namespace carousel
