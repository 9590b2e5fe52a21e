// Exact sums against arithmetic of far more digits, written here as integers of 2,200 bits.
#include "core/base/exact_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "core/base/random.h"

namespace carousel {
namespace {
using Limits = std::numeric_limits<double>;

double SumOf(const std::vector<double>& values) {
  ExactSum sum;
  for (const double value : values) sum.Add(value);
  return sum.ToDouble();
}

// Doubles of every exponent: random bits, without NaN and infinity.
std::vector<double> AllSizes(int count, uint64_t seed) {
  std::vector<double> values;
  for (uint64_t i = 0; values.size() < static_cast<size_t>(count); ++i) {
    const uint64_t bits = RandomUint64(seed, 0, i);
    double value;
    std::memcpy(&value, &bits, 8);
    // below 2^1013, so that no sum of a few thousand overflows
    if (std::isfinite(value) && std::abs(value) < 0x1p1013) values.push_back(value);
  }
  return values;
}

// A signed integer multiple of 2^-1074 in two's complement, the plainest exact arithmetic on doubles.
class LongInteger {
 public:
  void Add(double value) {
    int exponent;
    const double fraction = std::frexp(std::abs(value), &exponent);
    if (value == 0) return;
    uint64_t mantissa = static_cast<uint64_t>(std::ldexp(fraction, 53));
    int shift = exponent - 53 + 1074;
    if (shift < 0) {
      mantissa >>= -shift;  // subnormal: the low bits are zero
      shift = 0;
    }
    for (int bit = 0; bit < 53; ++bit) {
      if ((mantissa >> bit) & 1) AddBit(shift + bit, value < 0);
    }
  }
  // Nearest double, ties to even, by looking at bits.
  double ToDouble() const {
    std::vector<bool> bits = bits_;
    const bool negative = bits.back();
    if (negative) {  // two's complement magnitude
      bool carry = true;
      for (size_t i = 0; i < bits.size(); ++i) {
        const bool flipped = !bits[i];
        bits[i] = flipped != carry;
        carry = flipped && carry;
      }
    }
    int top = static_cast<int>(bits.size()) - 1;
    while (top >= 0 && !bits[top]) --top;
    if (top < 0) return 0;
    const int last = std::max(top - 52, 0);
    double mantissa = 0;
    for (int i = top; i >= last; --i) mantissa = 2 * mantissa + (bits[i] ? 1 : 0);
    bool sticky = false;
    for (int i = 0; i + 1 < last; ++i) sticky = sticky || bits[i];
    if (last > 0 && bits[last - 1] && (sticky || bits[last])) mantissa += 1;
    return (negative ? -1 : 1) * std::ldexp(mantissa, last - 1074);
  }

 private:
  void AddBit(int position, bool negative) {
    // subtracting 2^p adds ones from p upwards
    bool carry = false;
    for (size_t i = position; i < bits_.size(); ++i) {
      const bool addend = negative || static_cast<int>(i) == position;
      const bool bit = bits_[i];
      bits_[i] = (bit != addend) != carry;
      carry = (bit && addend) || (carry && (bit || addend));
      if (!negative && !carry) break;
    }
  }
  std::vector<bool> bits_ = std::vector<bool>(2200);
};

double UlpOf(double x) { return std::nextafter(std::abs(x), INFINITY) - std::abs(x); }

TEST(ExactSum, OfOneValueIsTheValue) {
  for (const double value : AllSizes(5000, 1)) ASSERT_EQ(SumOf({value}), value);
  for (const double value : {0.0, Limits::denorm_min(), -Limits::denorm_min(), Limits::min(), Limits::max(),
                             -Limits::max(), 1.0, -1.0, 0x1.fffffffffffffp-1022, -0x0.fffffffffffffp-1022}) {
    ASSERT_EQ(SumOf({value}), value);
  }
  EXPECT_EQ(SumOf({}), 0.0);
}

TEST(ExactSum, OfValuesOfEverySizeIsWithinOneUlpOfTheTrueSum) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    // mostly of neighbouring exponents, so that terms interact
    std::vector<double> values = AllSizes(4, seed);
    for (int i = 0; i < 40; ++i) {
      values.push_back((RandomUniform(seed, 1, i) - 0.5) *
                       std::ldexp(1.0, static_cast<int>(seed * 20) - 1060 + i));
    }
    LongInteger truth;
    for (const double value : values) truth.Add(value);
    ASSERT_NEAR(SumOf(values), truth.ToDouble(), UlpOf(truth.ToDouble())) << "seed " << seed;
  }
}

TEST(ExactSum, DoesNotLoseSmallTermsBesideLargeOnes) {
  EXPECT_EQ(SumOf({1e300, 1.0, -1e300}), 1.0);
  EXPECT_EQ(SumOf({1e300, Limits::denorm_min(), -1e300}), Limits::denorm_min());
  EXPECT_EQ(SumOf({1.0, 0x1p-60, -1.0, 0x1p-60}), 0x1p-59);
  EXPECT_EQ(SumOf({0.1, 0.2, -0.1, -0.2}), 0.0);
  EXPECT_EQ(SumOf({-1.0, 0x1p-80}), -1.0);
  // each is below half an ulp of the first, together they are 2^-2
  std::vector<double> values = {0x1p52};
  values.resize(1 + (1 << 10), 0x1p-12);
  EXPECT_EQ(SumOf(values), 0x1p52 + 0.0);
  values.push_back(-0x1p52);
  EXPECT_EQ(SumOf(values), 0.25);
}

TEST(ExactSum, OfSubnormalsIsExact) {
  std::vector<double> values(1000, Limits::denorm_min());
  EXPECT_EQ(SumOf(values), 1000 * Limits::denorm_min());
  values.push_back(-999 * Limits::denorm_min());
  EXPECT_EQ(SumOf(values), Limits::denorm_min());
}

TEST(ExactSum, BeyondTheLargestDoubleIsInfiniteUntilItComesBack) {
  EXPECT_EQ(SumOf({Limits::max(), Limits::max()}), INFINITY);
  EXPECT_EQ(SumOf({-Limits::max(), -Limits::max()}), -INFINITY);
  EXPECT_EQ(SumOf({Limits::max(), Limits::max(), -Limits::max()}), Limits::max());
}

TEST(ExactSum, HasTheSameBitsInEveryOrder) {
  std::vector<double> values = AllSizes(300, 3);
  for (int i = 0; i < 300; ++i) values.push_back(RandomUniform(4, 0, i) - 0.5);
  ExactSum forward;
  for (const double value : values) forward.Add(value);
  forward.Normalize();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<std::pair<uint64_t, double>> shuffled;
    for (size_t i = 0; i < values.size(); ++i) shuffled.emplace_back(RandomUint64(seed, 9, i), values[i]);
    std::sort(shuffled.begin(), shuffled.end());
    ExactSum sum;
    for (const auto& [key, value] : shuffled) {
      sum.Add(value);
      if (key % 7 == 0) sum.Normalize();
    }
    sum.Normalize();
    ASSERT_EQ(std::memcmp(&sum, &forward, sizeof(sum)), 0);
  }
}

TEST(ExactSum, OfSeveralRanksIsTheSumOfTheirLimbs) {
  const std::vector<double> values = AllSizes(1000, 5);
  const double want = SumOf(values);
  for (const size_t num_ranks : {1u, 2u, 3u, 7u}) {
    for (const bool normalized : {false, true}) {
      std::vector<ExactSum> ranks(num_ranks);
      for (size_t i = 0; i < values.size(); ++i) ranks[i * i % num_ranks].Add(values[i]);
      // what AllReduceSum of kI64 does: add up element by element, in whatever order
      ExactSum total;
      int64_t* limbs = reinterpret_cast<int64_t*>(&total);
      for (ExactSum& rank : ranks) {
        if (normalized) rank.Normalize();
        for (int64_t j = 0; j < kExactSumElems; ++j) limbs[j] += reinterpret_cast<int64_t*>(&rank)[j];
      }
      ASSERT_EQ(total.ToDouble(), want) << num_ranks << " ranks";
      ExactSum joined;
      for (const ExactSum& rank : ranks) joined.Add(rank);
      ASSERT_EQ(joined.ToDouble(), want);
    }
  }
}

TEST(ExactSum, StaysRightOverManyAdditions) {
  // 2^22 additions of the largest value a limb can take, then the same again after a Normalize
  ExactSum sum;
  const double value = std::ldexp(0x1.fffffffffffffp0, 10);
  constexpr int kTimes = 1 << 22;
  for (int i = 0; i < kTimes; ++i) sum.Add(value);
  sum.Normalize();
  EXPECT_EQ(sum.ToDouble(), value * kTimes);
  for (int i = 0; i < kTimes; ++i) sum.Add(-value);
  sum.Normalize();
  EXPECT_EQ(sum.ToDouble(), 0.0);
}

TEST(ExactSum, NormalizeKeepsTheValueAndBoundsTheLimbs) {
  ExactSum sum;
  for (const double value : AllSizes(500, 8)) sum.Add(value);
  const double before = sum.ToDouble();
  sum.Normalize();
  EXPECT_EQ(sum.ToDouble(), before);
  for (int j = 0; j + 1 < ExactSum::kNumLimbs; ++j) {
    EXPECT_GE(sum.limbs[j], 0);
    EXPECT_LT(sum.limbs[j], int64_t{1} << 32);
  }
}

TEST(ExactSum, CountsNanAndInfinitiesAndGivesNan) {
  ExactSum sum;
  sum.Add(1.0);
  sum.Add(NAN);
  sum.Add(INFINITY);
  sum.Add(-INFINITY);
  EXPECT_EQ(sum.num_non_finite, 3);
  EXPECT_TRUE(std::isnan(sum.ToDouble()));
  ExactSum other;
  other.Add(sum);
  EXPECT_TRUE(std::isnan(other.ToDouble()));
}
}  // namespace
}  // namespace carousel
