// Accuracy of GELU and of its derivative element by element, far into both tails, on every path of the CPU
// backend.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_device.h"

namespace carousel {
namespace {
using cpu::CpuDevice;
using cpu::CpuOptions;
using cpu::SimdLevel;

struct Path {
  std::string name;
  CpuOptions options;
};
std::vector<Path> AllPaths() {
  std::vector<Path> paths = {{"plain", {.num_threads = 1, .reference = true}}};
  for (const SimdLevel level : {SimdLevel::kBase, SimdLevel::kV3, SimdLevel::kV4}) {
    if (level > cpu::DetectSimdLevel()) continue;
    paths.push_back({cpu::NameOf(level), {.num_threads = 2, .simd_level = level}});
  }
  return paths;
}

double Distribution(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }
double Density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * M_PI); }
// The distance of floats next to x.
double Ulp(double x) {
  int exponent;
  std::frexp(x, &exponent);
  return std::ldexp(1.0, std::max(exponent - 24, -149));
}

// x, GELU of x and its derivative as the ops give them. The floats go from 2^-40 to `largest`, both signs.
struct Sweep {
  explicit Sweep(const Path& path, float largest) {
    for (const float sign : {1.0f, -1.0f}) {
      for (uint32_t bits = 0x2b800000; bits < 0x7f800000; bits += 2003) {
        float value;
        std::memcpy(&value, &bits, 4);
        if (value > largest) break;
        x.push_back(sign * value);
      }
    }
    const int64_t F = static_cast<int64_t>(x.size());
    value.resize(x.size());
    slope.resize(x.size());
    std::vector<float> ones(x.size(), 1.0f), dup(x.size());
    const auto row = [F](std::vector<float>& v) { return Tensor(v.data(), DType::kF32, {1, F}); };
    CpuDevice device(path.options);
    device.ops().GluForward(
        {.y = row(value), .gate = row(x), .up = row(ones), .activation = GluActivation::kGelu});
    device.ops().GluBackward({.dgate = row(slope),
                              .dup = row(dup),
                              .dy = row(ones),
                              .gate = row(x),
                              .up = row(ones),
                              .activation = GluActivation::kGelu});
    EXPECT_EQ(dup, value) << "the gradient of up is GELU of the gate";
  }
  std::vector<float> x, value, slope;
};

// P(x) underflows below -12.9: there GELU is less than 2^-119.
TEST(Gelu, IsWithinSixUlpsAsLongAsTheDistributionIsANormalFloat) {
  for (const Path& path : AllPaths()) {
    const Sweep sweep(path, 30);
    double largest = 0;
    for (size_t i = 0; i < sweep.x.size(); ++i) {
      const double x = sweep.x[i], want = x * Distribution(x);
      const double error = std::abs(sweep.value[i] - want);
      if (x < -12.9) {
        ASSERT_LE(error, 0x1p-140) << path.name << ": " << x;
      } else {
        ASSERT_LE(error, 6 * Ulp(want)) << path.name << ": " << x;
        largest = std::max(largest, error / Ulp(want));
      }
    }
    RecordProperty("ulps_" + path.name, std::to_string(largest));
  }
}

// P(x) + x p(x) passes zero near -0.75, so its error is stated in units of one.
TEST(Gelu, DerivativeIsWithinTwoToTheMinus22) {
  for (const Path& path : AllPaths()) {
    const Sweep sweep(path, 30);
    for (size_t i = 0; i < sweep.x.size(); ++i) {
      const double x = sweep.x[i], want = Distribution(x) + x * Density(x);
      ASSERT_LE(std::abs(sweep.slope[i] - want), 0x1p-22) << path.name << ": " << x;
    }
  }
}

TEST(Gelu, DerivativeKeepsItsRelativePrecisionInTheLowerTail) {
  for (const Path& path : AllPaths()) {
    const Sweep sweep(path, 30);
    for (size_t i = 0; i < sweep.x.size(); ++i) {
      const double x = sweep.x[i], want = Distribution(x) + x * Density(x);
      if (x > -2 || x < -12.9) continue;
      ASSERT_LE(std::abs(sweep.slope[i] - want), 0x1p-20 * std::abs(want)) << path.name << ": " << x;
    }
  }
}

TEST(Gelu, OfLargeValuesIsTheValueOrZero) {
  for (const Path& path : AllPaths()) {
    const Sweep sweep(path, 3e38f);
    for (size_t i = 0; i < sweep.x.size(); ++i) {
      if (std::abs(sweep.x[i]) < 30) continue;
      ASSERT_EQ(sweep.value[i], sweep.x[i] > 0 ? sweep.x[i] : 0.0f) << path.name;
      ASSERT_EQ(sweep.slope[i], sweep.x[i] > 0 ? 1.0f : 0.0f) << path.name << ": " << sweep.x[i];
    }
  }
}

TEST(Gelu, OfNanIsNan) {
  for (const Path& path : AllPaths()) {
    std::vector<float> x(21, NAN), ones(21, 1.0f), y(21);
    const auto row = [](std::vector<float>& v) { return Tensor(v.data(), DType::kF32, {1, 21}); };
    CpuDevice device(path.options);
    device.ops().GluForward(
        {.y = row(y), .gate = row(x), .up = row(ones), .activation = GluActivation::kGelu});
    for (const float value : y) EXPECT_TRUE(std::isnan(value)) << path.name;
  }
}
}  // namespace
}  // namespace carousel
