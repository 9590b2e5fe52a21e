// Runs the sLSTM cell, forward and backward, on a device from numbers in the layout of reference dumps:
// tokens first, (T, B, ...), gates in the order i, f, z, o, heads side by side.
#pragma once
#include <vector>

#include "absl/status/statusor.h"
#include "core/device.h"

namespace carousel {

struct SlstmCellInputs {
  SlstmShape shape;
  std::vector<double> wx;  // (T, B, 4*NH*D): [gate][head][D]
  std::vector<double> r;   // (NH, 4*D, D): [head][gate][out][in]
  std::vector<double> b;   // (4*NH*D): [gate][head][D]
  std::vector<double> s0;  // (4, B, NH*D): y, c, n, m; empty: the zero state
  std::vector<double> dy;  // (T, B, NH*D)
};

struct SlstmCellResults {
  std::vector<double> y;     // (T, B, NH*D)
  std::vector<double> last;  // (4, B, NH*D)
  std::vector<double> dwx, dr, db;
  std::vector<double> ds0;  // (4, B, NH*D); empty without s0
};

// Of the loss sum(y * dy). r, dy and the outputs y are rounded to `compute`, everything else to its wide
// type. ResourceExhausted if the device has not enough memory.
absl::StatusOr<SlstmCellResults> RunSlstmCell(const SlstmCellInputs& inputs, DType compute, Device& device);
}  // namespace carousel
