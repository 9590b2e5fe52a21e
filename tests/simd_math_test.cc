// Accuracy of exp, log, log1p, tanh, sigmoid and the normal distribution over the floats, and agreement of
// one value with a vector of values.
#define CAROUSEL_SIMD_NS simd_test
#include "kernels/cpu/simd/simd_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/base/bfloat16.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

// Every 1,009th float (a prime, so that all low bits occur) in [low, high], both signs as the range says.
template <class Fn>
void ForFloats(float low, float high, Fn&& fn) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 1009) {
    const uint32_t u = static_cast<uint32_t>(bits);
    float x;
    std::memcpy(&x, &u, 4);
    if (x >= low && x <= high) fn(x);
  }
}
// Largest error of got(x) in units of the last place of the true value; below the smallest normal float the
// unit stays that of the smallest normal float's neighbours.
template <class Got, class True>
double LargestUlps(float low, float high, Got&& got, True&& truth) {
  double largest = 0;
  ForFloats(low, high, [&](float x) {
    const double want = truth(static_cast<double>(x));
    int exponent;
    std::frexp(want, &exponent);
    const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
    const double error = std::abs(static_cast<double>(got(x)) - want) / ulp;
    if (error > largest || std::isnan(error)) largest = error;
    ASSERT_FALSE(std::isnan(error)) << x;
  });
  return largest;
}

TEST(SimdMath, ExpIsWithinTwoUlps) {
  EXPECT_LE(LargestUlps(
                -103, 88.7f, [](float x) { return Exp(x); }, [](double x) { return std::exp(x); }),
            2.0);
}
TEST(SimdMath, LogIsWithinTwoUlps) {
  EXPECT_LE(LargestUlps(
                1e-45f, 3e38f, [](float x) { return Log(x); }, [](double x) { return std::log(x); }),
            2.0);
}
TEST(SimdMath, Log1pIsWithinThreeUlps) {
  EXPECT_LE(LargestUlps(
                0, 3e38f, [](float x) { return Log1p(x); }, [](double x) { return std::log1p(x); }),
            3.0);
}
TEST(SimdMath, TanhIsWithinThreeUlps) {
  EXPECT_LE(LargestUlps(
                -100, 100, [](float x) { return Tanh(x); }, [](double x) { return std::tanh(x); }),
            3.0);
}
TEST(SimdMath, SigmoidIsWithinThreeUlps) {
  EXPECT_LE(
      LargestUlps(
          -80, 100, [](float x) { return Sigmoid(x); }, [](double x) { return 1 / (1 + std::exp(-x)); }),
      3.0);
}
TEST(SimdMath, LogSigmoidIsWithinThreeUlps) {
  EXPECT_LE(LargestUlps(
                -1000, 87, [](float x) { return LogSigmoid(x); },
                [](double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }),
            3.0);
}

TEST(SimdMath, NormalDistributionIsWithinFiveUlps) {
  EXPECT_LE(LargestUlps(
                -12.9f, 30, [](float x) { return StandardNormal(x).distribution; },
                [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }),
            5.0);
  // the same in terms of erf, where that loses nothing
  EXPECT_LE(LargestUlps(
                -0.5f, 30, [](float x) { return StandardNormal(x).distribution; },
                [](double x) { return (1 + std::erf(x / std::sqrt(2.0))) / 2; }),
            5.0);
}
TEST(SimdMath, NormalDensityIsWithinThreeUlps) {
  EXPECT_LE(LargestUlps(
                -12.9f, 12.9f, [](float x) { return StandardNormal(x).density; },
                [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * M_PI); }),
            3.0);
}
TEST(SimdMath, NormalDistributionIsNearlyZeroWhereItUnderflows) {
  ForFloats(-3e38f, -12.9f, [](float x) {
    const double want = std::erfc(-static_cast<double>(x) / std::sqrt(2.0)) / 2;
    ASSERT_LE(std::abs(static_cast<double>(StandardNormal(x).distribution) - want), 0x1p-144) << x;
  });
}

TEST(SimdMath, SpecialValuesAreRight) {
  const float infinity = INFINITY;
  EXPECT_EQ(Exp(-infinity), 0.0f);
  EXPECT_EQ(Exp(-104.5f), 0.0f);
  EXPECT_EQ(Exp(infinity), infinity);
  EXPECT_EQ(Exp(89.0f), infinity);
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_TRUE(std::isnan(Exp(NAN)));
  EXPECT_EQ(Log(0.0f), -infinity);
  EXPECT_EQ(Log(infinity), infinity);
  EXPECT_EQ(Log(1.0f), 0.0f);
  EXPECT_TRUE(std::isnan(Log(-1.0f)));
  EXPECT_TRUE(std::isnan(Log(NAN)));
  EXPECT_EQ(Log1p(infinity), infinity);
  EXPECT_EQ(Log1p(1e-30f), 1e-30f);
  EXPECT_EQ(Tanh(infinity), 1.0f);
  EXPECT_EQ(Tanh(-infinity), -1.0f);
  EXPECT_TRUE(std::isnan(Tanh(NAN)));
  EXPECT_EQ(Sigmoid(infinity), 1.0f);
  EXPECT_LE(Sigmoid(-infinity), 2e-35f);
  EXPECT_GE(Sigmoid(-infinity), 0.0f);
  EXPECT_TRUE(std::isnan(Sigmoid(NAN)));
  EXPECT_TRUE(std::isnan(LogSigmoid(NAN)));
  EXPECT_EQ(StandardNormal(0.0f).distribution, 0.5f);
  EXPECT_EQ(StandardNormal(-0.0f).distribution, 0.5f);
  EXPECT_EQ(StandardNormal(infinity).distribution, 1.0f);
  EXPECT_EQ(StandardNormal(-infinity).distribution, 0.0f);
  EXPECT_EQ(StandardNormal(infinity).density, 0.0f);
  EXPECT_TRUE(std::isnan(StandardNormal(NAN).distribution));
  EXPECT_TRUE(std::isnan(StandardNormal(NAN).density));
}

TEST(SimdMath, AVectorIsItsLanes) {
  float x[kLanes], exp[kLanes], tanh[kLanes], log[kLanes], distribution[kLanes], density[kLanes];
  for (float start = -80; start < 80; start += 0.37f) {
    for (int i = 0; i < kLanes; ++i) x[i] = start + 0.01f * static_cast<float>(i);
    Store(exp, Exp(Load(x)));
    Store(tanh, Tanh(Load(x)));
    Store(log, Log(Load(x)));
    const StandardNormal<VecF> normal(Load(x));
    Store(distribution, normal.distribution);
    Store(density, normal.density);
    for (int i = 0; i < kLanes; ++i) {
      ASSERT_EQ(exp[i], Exp(x[i]));
      ASSERT_EQ(tanh[i], Tanh(x[i]));
      ASSERT_EQ(distribution[i], StandardNormal(x[i]).distribution);
      ASSERT_EQ(density[i], StandardNormal(x[i]).density);
      if (x[i] > 0) {
        ASSERT_EQ(log[i], Log(x[i]));
      }
    }
  }
}

TEST(SimdMath, Bf16RoundsLikeTheStorageType) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 77) {
    const uint32_t u = static_cast<uint32_t>(bits);
    float x[kLanes];
    for (float& value : x) std::memcpy(&value, &u, 4);
    uint16_t rounded[kLanes];
    Store(rounded, Load(x));
    const uint16_t want = bfloat16(x[0]).bits;
    ASSERT_EQ(rounded[kLanes - 1], want);
    ASSERT_EQ(ToBf16(x[0]), want);
    if (!std::isnan(x[0])) {
      ASSERT_EQ(ToF32(want), static_cast<float>(bfloat16(x[0])));
    }
  }
}

TEST(SimdMath, ShortVectorsReadAndWriteOnlyTheirLanes) {
  for (int64_t count = 0; count <= kLanes; ++count) {
    float x[kLanes + 1], y[kLanes + 1];
    for (int i = 0; i <= kLanes; ++i) {
      x[i] = static_cast<float>(i + 1);
      y[i] = -1;
    }
    const VecF v = LoadPart(x, count, 0.5f);
    StorePart(y, v, count);
    for (int i = 0; i <= kLanes; ++i) ASSERT_EQ(y[i], i < count ? x[i] : -1);
    for (int i = 0; i < kLanes; ++i) ASSERT_EQ(v[i], i < count ? x[i] : 0.5f);
  }
}

TEST(SimdMath, LanesSumAndCompareAll) {
  float x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<float>(i * i);
  float sum = 0;
  for (const float value : x) sum += value;
  EXPECT_EQ(SumLanes(Load(x)), sum);
  EXPECT_EQ(MaxLanes(Load(x)), x[kLanes - 1]);
  x[1] = 1e9f;
  EXPECT_EQ(MaxLanes(Load(x)), 1e9f);
}
}  // namespace
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
