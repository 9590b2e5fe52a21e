// The table of op cases. A case names the tensors of one call, makes the call, and computes the same result
// in double by formulas written here, independently of the ops. ops_test.cc runs every case through every
// path of the CPU backend. A new op gets a case in one of op_cases_*.h, with odd sizes, one row, and strides
// where they are allowed.
#pragma once
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/ops.h"

namespace carousel::testing {

// A tensor's dtype, given the compute dtype of the run.
enum class Role { kCompute, kWide, kI32, kU8 };
enum class Use {
  kIn,
  kOut,         // starts as NaN
  kAccumulate,  // starts with values that the op adds to
};
struct TensorSpec {
  std::string name;
  std::vector<int64_t> dims;
  Role role = Role::kCompute;
  Use use = Use::kIn;
  int64_t gap = 0;                  // unused columns between rows
  double low = -1, high = 1;        // range of random values; kI32 and kU8 draw integers from [low, high]
  std::string same_memory_as = {};  // an input whose place this output takes
};
using Values = std::map<std::string, std::vector<double>>;
using Tensors = std::map<std::string, Tensor>;

struct OpCase {
  std::string name;
  std::vector<TensorSpec> tensors;
  std::function<void(Ops&, const Tensors&)> run;
  // Replaces the values of every output, from those of the inputs. Null for large cases: they are compared
  // with the specification run in double.
  std::function<void(Values&)> expected = {};
  // Error allowed to arithmetic in the wide type, in units of its epsilon times the largest value of the
  // tensor: grows with the length of sums and with cancellation. Rounding of the result to bf16 comes on top.
  double wide_error = 32;
  // The largest value of a tensor counts as at least this: the size of what a small result is a difference
  // of.
  double magnitude = 0;
  // Error of `expected` itself, relative to the largest value: finite differences are not exact.
  double expected_error = 1e-13;
};

// Gradient of loss() with respect to values[name] by central differences in double.
inline std::vector<double> NumericGradient(Values& values, const std::string& name,
                                           const std::function<double(Values&)>& loss) {
  constexpr double kStep = 1e-5;
  std::vector<double> gradient(values[name].size());
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double x = values[name][i];
    values[name][i] = x + kStep;
    const double above = loss(values);
    values[name][i] = x - kStep;
    const double below = loss(values);
    values[name][i] = x;
    gradient[i] = (above - below) / (2 * kStep);
  }
  return gradient;
}
inline double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
inline void AddTo(std::vector<double>& to, const std::vector<double>& x) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += x[i];
}
inline double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
// Optional tensors that a case does not have are default-constructed.
inline Tensor Optional(const Tensors& t, const std::string& name) {
  const auto it = t.find(name);
  return it == t.end() ? Tensor() : it->second;
}

// Relative error of central differences in double with the step above: truncation 1e-10 times a third
// derivative, and rounding 1e-16 / 1e-5.
constexpr double kFiniteDifferenceError = 1e-7;

void AppendElementwiseCases(std::vector<OpCase>& cases);  // op_cases_elementwise.h
void AppendNormCases(std::vector<OpCase>& cases);         // op_cases_norm.h
void AppendLossCases(std::vector<OpCase>& cases);         // op_cases_loss.h
void AppendMatmulCases(std::vector<OpCase>& cases);       // op_cases_matmul.h
void AppendConvCases(std::vector<OpCase>& cases);         // op_cases_conv.h
void AppendBlockLinearCases(std::vector<OpCase>& cases);  // op_cases_block_linear.h
void AppendMlstmCases(std::vector<OpCase>& cases);        // op_cases_mlstm.h
void AppendPartsCases(std::vector<OpCase>& cases);        // op_cases_parts.h

inline std::vector<OpCase> AllOpCases() {
  std::vector<OpCase> cases;
  AppendElementwiseCases(cases);
  AppendNormCases(cases);
  AppendLossCases(cases);
  AppendMatmulCases(cases);
  AppendConvCases(cases);
  AppendBlockLinearCases(cases);
  AppendMlstmCases(cases);
  AppendPartsCases(cases);
  return cases;
}
}  // namespace carousel::testing
