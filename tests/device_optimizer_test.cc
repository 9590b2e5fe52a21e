// The optimizer's update and the exact sums on a device: the same bits as on the CPU.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/base/exact_sum.h"
#include "core/base/random.h"
#include "core/base/value_stats.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/device_copy.h"
#include "tests/device_testing.h"

namespace carousel::testing {
namespace {

// Bits of a range of numbers, so that -0 differs from 0. All NaN are one number: processors give them
// different bits.
template <class T>
std::vector<uint64_t> Bits(const std::vector<T>& values) {
  std::vector<uint64_t> bits;
  for (const T value : values) {
    const auto number = static_cast<Wide<T>>(value);
    if (std::isnan(number)) {
      bits.push_back(~uint64_t{0});
    } else if constexpr (sizeof(number) == 4) {
      bits.push_back(std::bit_cast<uint32_t>(number));
    } else {
      bits.push_back(std::bit_cast<uint64_t>(number));
    }
  }
  return bits;
}

// Numbers of every order of magnitude between 2^-range and 2^range, of both signs.
template <class W>
std::vector<W> Wild(uint64_t stream, int64_t count, int range) {
  std::vector<W> values;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<uint64_t>(i);
    const double u = RandomUniform(17, stream, 2 * at);
    const int exponent = static_cast<int>(RandomUint64(17, stream, 2 * at + 1) % (2 * range + 1)) - range;
    values.push_back(static_cast<W>(std::ldexp(2 * u - 1, exponent)));
  }
  return values;
}

template <class W, class T>
struct State {
  std::vector<W> master, m, v, grad;
  std::vector<T> weight;
};
template <class W, class T>
State<W, T> StartingState(int64_t n, int range) {
  State<W, T> s = {.master = Wild<W>(1, n, 4),
                   .m = Wild<W>(2, n, range),
                   .v = Wild<W>(3, n, range),
                   .grad = Wild<W>(4, n, range),
                   .weight = std::vector<T>(n)};
  for (W& value : s.v) value = std::abs(value);
  return s;
}
// Some steps on `device`, in pieces that begin anywhere; arrays begin `offset` elements behind an aligned
// address.
template <class W, class T>
void Step(Device& device, State<W, T>& s, int64_t piece, int64_t offset, bool with_weight) {
  const DeviceCopy<W> master(device, s.master, offset), m(device, s.m, offset), v(device, s.v, offset),
      grad(device, s.grad, offset);
  const DeviceCopy<T> weight(device, s.weight, offset);
  const int64_t n = static_cast<int64_t>(s.master.size());
  for (int64_t step = 1; step <= 3; ++step) {
    for (int64_t begin = 0; begin < n; begin += piece) {
      const int64_t count = std::min(piece, n - begin);
      device.ops().AdamW({.master = master.t().Rows(begin, count),
                          .m = m.t().Rows(begin, count),
                          .v = v.t().Rows(begin, count),
                          .weight = with_weight ? weight.t().Rows(begin, count) : Tensor(),
                          .grad = grad.t().Rows(begin, count),
                          .lr = 1e-3 / static_cast<double>(step),
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .grad_scale = 0.37,
                          .step = step});
    }
  }
  s = {.master = master.Get(), .m = m.Get(), .v = v.Get(), .grad = grad.Get(), .weight = weight.Get()};
}
template <class W, class T>
void ExpectBitsOfTheCpu(Device& device, int64_t n, int range, bool with_weight) {
  cpu::CpuDevice host({.num_threads = 2});
  const State<W, T> start = StartingState<W, T>(n, range);
  State<W, T> want = start;
  Step(host, want, n, 0, with_weight);
  const struct { int64_t piece, offset; } ways[] = {{n, 0}, {n, 1}, {n, 4}, {(n + 2) / 3, 0}, {7, 0}};
  for (const auto& way : ways) {
    if (way.piece == 7 && n > 100) continue;
    SCOPED_TRACE(std::string(NameOf(DTypeOf<W>::value)) + " weight " +
                 (with_weight ? NameOf(DTypeOf<T>::value) : "none") + ", n " + std::to_string(n) +
                 ", range " + std::to_string(range) + ", pieces of " + std::to_string(way.piece) +
                 ", offset " + std::to_string(way.offset));
    State<W, T> got = start;
    Step(device, got, way.piece, way.offset, with_weight);
    EXPECT_EQ(Bits(got.master), Bits(want.master));
    EXPECT_EQ(Bits(got.m), Bits(want.m));
    EXPECT_EQ(Bits(got.v), Bits(want.v));
    EXPECT_EQ(Bits(got.grad), Bits(start.grad));
    EXPECT_EQ(Bits(got.weight), Bits(want.weight));
  }
}

TEST(DeviceAdamW, HasTheBitsOfTheCpuForEveryTypeAndPlace) {
  const auto device = MakeTestDevice();
  for (const int64_t n : {1, 5, 37, 2050}) {
    ExpectBitsOfTheCpu<float, bfloat16>(*device, n, 8, true);
    ExpectBitsOfTheCpu<float, float>(*device, n, 8, true);
    ExpectBitsOfTheCpu<float, bfloat16>(*device, n, 8, false);
    ExpectBitsOfTheCpu<double, double>(*device, n, 8, true);
    ExpectBitsOfTheCpu<double, bfloat16>(*device, n, 8, true);
    ExpectBitsOfTheCpu<float, double>(*device, n, 8, true);
  }
}

// Denormal results, squares that overflow, quotients that vanish.
TEST(DeviceAdamW, HasTheBitsOfTheCpuAtTheEndsOfTheRange) {
  const auto device = MakeTestDevice();
  ExpectBitsOfTheCpu<float, bfloat16>(*device, 3000, 126, true);
  ExpectBitsOfTheCpu<float, float>(*device, 3000, 140, true);
  ExpectBitsOfTheCpu<double, double>(*device, 3000, 1000, true);
}

// ---- exact sums

ExactSum ToExactSum(const std::vector<int64_t>& limbs) {
  ExactSum sum;
  std::memcpy(static_cast<void*>(&sum), limbs.data(), sizeof(sum));
  return sum;
}
// Both sums of x in calls of `piece` elements, one after the other into the same result.
template <class W>
std::vector<std::vector<int64_t>> Sums(Device& device, const std::vector<W>& x, int64_t piece) {
  const int64_t n = static_cast<int64_t>(x.size());
  const DeviceCopy<W> x_device(device, x);
  const DeviceCopy<int64_t> squares(device, std::vector<int64_t>(kExactSumElems)),
      sum(device, std::vector<int64_t>(kExactSumElems));
  for (int64_t begin = 0; begin == 0 || begin < n; begin += piece) {
    const Tensor part = x_device.t().Rows(begin, std::min(piece, n - begin));
    device.ops().SquaredNorm({.sum = squares.t(), .x = part});
    device.ops().SumExactly({.sum = sum.t(), .x = part});
  }
  return {squares.Get(), sum.Get()};
}
template <class W>
void ExpectSumsOfTheCpu(Device& device, const std::vector<W>& x, const std::string& what) {
  cpu::CpuDevice host({.num_threads = 2});
  const int64_t n = static_cast<int64_t>(x.size());
  const auto want = Sums(host, x, std::max<int64_t>(n, 1));
  for (const int64_t piece : {std::max<int64_t>(n, 1), kSquaredNormBlock, 3 * kSquaredNormBlock}) {
    SCOPED_TRACE(what + ", " + NameOf(DTypeOf<W>::value) + ", n " + std::to_string(n) + ", calls of " +
                 std::to_string(piece));
    const auto got = Sums(device, x, piece);
    EXPECT_EQ(got[0], want[0]) << "squares: " << ToExactSum(got[0]).ToDouble() << ", should be "
                               << ToExactSum(want[0]).ToDouble();
    EXPECT_EQ(got[1], want[1]) << "sum: " << ToExactSum(got[1]).ToDouble() << ", should be "
                               << ToExactSum(want[1]).ToDouble();
  }
}

TEST(DeviceExactSums, HaveTheBitsOfTheCpuForEveryLength) {
  const auto device = MakeTestDevice();
  for (const int64_t n : {0, 1, 15, 16, 17, 255, 1023, 1024, 1025, 2048, 5000, 40000}) {
    ExpectSumsOfTheCpu(*device, Wild<float>(n, n, 8), "ordinary numbers");
    ExpectSumsOfTheCpu(*device, Wild<double>(n, n, 8), "ordinary numbers");
  }
}

TEST(DeviceExactSums, HaveTheBitsOfTheCpuForNumbersOfEverySize) {
  const auto device = MakeTestDevice();
  ExpectSumsOfTheCpu(*device, Wild<float>(1, 4000, 140), "numbers of every size");
  ExpectSumsOfTheCpu(*device, Wild<double>(2, 4000, 1020), "numbers of every size");
  std::vector<float> ends(2000, std::numeric_limits<float>::denorm_min());
  for (size_t i = 0; i < ends.size(); i += 3) ends[i] = std::numeric_limits<float>::max();
  for (size_t i = 1; i < ends.size(); i += 3) ends[i] = -std::numeric_limits<float>::max();
  ExpectSumsOfTheCpu(*device, ends, "largest and smallest");
  ExpectSumsOfTheCpu(*device, std::vector<float>(3000, -0.0f), "negative zeros");
  // the sum cancels but for one tiny term
  std::vector<double> cancelling = Wild<double>(3, 1500, 300);
  for (int64_t i = 0; i < 1500; ++i) cancelling.push_back(-cancelling[i]);
  cancelling.push_back(1e-300);
  ExpectSumsOfTheCpu(*device, cancelling, "cancelling numbers");
}

TEST(DeviceExactSums, CountWhatIsNoFiniteNumberAsTheCpuDoes) {
  const auto device = MakeTestDevice();
  for (const double special :
       {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
        std::numeric_limits<double>::quiet_NaN()}) {
    std::vector<double> x = Wild<double>(4, 3000, 8);
    for (const int64_t at : {0, 1, 1500, 2999}) x[at] = special;
    ExpectSumsOfTheCpu(*device, x, std::to_string(special));
    ExpectSumsOfTheCpu(*device, std::vector<float>(x.begin(), x.end()), std::to_string(special));
    const DeviceCopy<double> x_device(*device, x);
    const DeviceCopy<int64_t> sum(*device, std::vector<int64_t>(kExactSumElems));
    device->ops().SumExactly({.sum = sum.t(), .x = x_device.t()});
    EXPECT_EQ(ToExactSum(sum.Get()).num_non_finite, 4);
    EXPECT_TRUE(std::isnan(ToExactSum(sum.Get()).ToDouble()));
  }
}

// ---- Digest
template <class W>
uint64_t DigestOn(Device& device, const std::vector<W>& x, uint64_t salt = 0) {
  const DeviceCopy<W> x_device(device, x);
  const DeviceCopy<int64_t> digest(device, std::vector<int64_t>(1, 5));
  device.ops().Digest({.digest = digest.t(), .x = x_device.t(), .salt = salt});
  return static_cast<uint64_t>(digest.Get()[0]) - 5;
}

TEST(DeviceDigest, TellsApartWhatDiffersInOneBitAndIsTheCpus) {
  const auto device = MakeTestDevice();
  cpu::CpuDevice host({.num_threads = 2});
  for (const int64_t n : {1, 31, 257, 40000}) {
    std::vector<float> x = Wild<float>(1, n, 8);
    x[0] = std::numeric_limits<float>::quiet_NaN();
    uint64_t want = 0;
    for (int64_t e = 0; e < n; ++e) {
      want += DigestTerm(static_cast<uint64_t>(e), std::bit_cast<uint32_t>(x[static_cast<size_t>(e)]));
    }
    EXPECT_EQ(DigestOn(*device, x), want);
    EXPECT_EQ(DigestOn(host, x), want);
    EXPECT_NE(DigestOn(host, x, 1), want);
    for (const int64_t e : {int64_t{0}, n / 2, n - 1}) {
      for (const uint32_t bit : {0u, 22u, 31u}) {
        std::vector<float> other = x;
        float& value = other[static_cast<size_t>(e)];
        value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) ^ 1u << bit);
        EXPECT_NE(DigestOn(host, other), want) << "bit " << bit << " of element " << e;
      }
    }
    const std::vector<double> y = Wild<double>(2, n, 8);
    EXPECT_EQ(DigestOn(*device, y), DigestOn(host, y));
  }
  EXPECT_NE(DigestOn(host, std::vector<float>{1, 2}), DigestOn(host, std::vector<float>{2, 1}));
}

// ---- TensorStats
template <class W>
std::vector<int64_t> StatsOn(Device& device, const std::vector<W>& x, const std::vector<W>& add,
                             const std::vector<int32_t>& ids, int64_t width) {
  const DeviceCopy<W> x_device(device, x), add_device(device, add);
  const DeviceCopy<int32_t> ids_device(device, ids);
  const DeviceCopy<int64_t> stats(device, std::vector<int64_t>(kValueSumElems, 0));
  const int64_t rows = static_cast<int64_t>(x.size()) / (width + 3);
  const auto view = [&](const Tensor& t) { return t.Reshape({rows, width + 3}).Columns(1, width); };
  for (int call = 0; call < 2; ++call) {
    device.ops().TensorStats({.stats = stats.t(),
                              .x = view(x_device.t()),
                              .add = call == 1 ? view(add_device.t()) : Tensor(),
                              .ids = call == 1 ? ids_device.t() : Tensor(),
                              .first_id = 2,
                              .end_id = 7,
                              .below = -0.5,
                              .above = 0.25,
                              .beyond = 3});
  }
  return stats.Get();
}

TEST(DeviceTensorStats, HasTheBitsOfTheCpuAndOfPlainLoops) {
  const auto device = MakeTestDevice();
  cpu::CpuDevice host({.num_threads = 2});
  const auto compare = [&]<class W>(W) {
    for (const auto& [rows, width] : {std::pair{1, 1}, {3, 5}, {64, 1}, {65, 2}, {300, 64}, {7, 5000}}) {
      std::vector<W> x = Wild<W>(1, int64_t{rows} * (width + 3), 3), add = Wild<W>(2, x.size(), 3);
      x[x.size() / 2] = std::numeric_limits<W>::quiet_NaN();
      x[x.size() / 3] = -std::numeric_limits<W>::infinity();
      std::vector<int32_t> ids;
      for (int r = 0; r < rows; ++r) ids.push_back(r % 9 - 1);
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(width) + " " + NameOf(DTypeOf<W>::value));
      const std::vector<int64_t> want = StatsOn(host, x, add, ids, width);
      EXPECT_EQ(StatsOn(*device, x, add, ids, width), want);

      ValueSums sums;
      std::memcpy(static_cast<void*>(&sums), want.data(), sizeof(sums));
      const ValueStats got = StatsOf(sums);
      int64_t count = 0, bad = 0, below = 0, above = 0, beyond = 0;
      double least = INFINITY, most = -INFINITY, sum = 0, squares = 0;
      for (int call = 0; call < 2; ++call) {
        for (int r = 0; r < rows; ++r) {
          if (call == 1 && (ids[r] < 2 || ids[r] >= 7)) continue;
          for (int c = 0; c < width; ++c) {
            const size_t at = static_cast<size_t>(r * (width + 3) + 1 + c);
            const double value = static_cast<double>(x[at]) + (call == 1 ? static_cast<double>(add[at]) : 0);
            if (!std::isfinite(value)) {
              ++bad;
              continue;
            }
            ++count;
            below += value < -0.5;
            above += value > 0.25;
            beyond += std::abs(value) > 3;
            least = std::min(least, value);
            most = std::max(most, value);
            sum += value;
            squares += value * value;
          }
        }
      }
      EXPECT_EQ(got.count, count);
      EXPECT_EQ(got.num_non_finite, bad);
      if (count == 0) {
        EXPECT_TRUE(std::isnan(got.min) && std::isnan(got.mean) && std::isnan(got.max));
        continue;
      }
      const double n = static_cast<double>(count);
      EXPECT_EQ(got.min, least);
      EXPECT_EQ(got.max, most);
      EXPECT_NEAR(got.mean, sum / n, 1e-12);
      EXPECT_NEAR(got.rms, std::sqrt(squares / n), 1e-12);
      EXPECT_NEAR(got.below * n, static_cast<double>(below), 1e-6);
      EXPECT_NEAR(got.above * n, static_cast<double>(above), 1e-6);
      EXPECT_NEAR(got.beyond * n, static_cast<double>(beyond), 1e-6);
    }
  };
  compare(float{});
  compare(double{});
}

// What a result held before stays in it, normalised, also after a call with nothing to add.
TEST(DeviceExactSums, AddToWhatIsThere) {
  const auto device = MakeTestDevice();
  ExactSum start;
  for (int i = 0; i < 1000; ++i) start.Add(-3.25e10 * i);
  std::vector<int64_t> limbs(kExactSumElems);
  std::memcpy(limbs.data(), &start, sizeof(start));
  const DeviceCopy<int64_t> sum(*device, limbs);
  const DeviceCopy<float> x(*device, {1.5f, -2.0f}), nothing(*device, {});
  device->ops().SumExactly({.sum = sum.t(), .x = nothing.t()});
  ExactSum want = start;
  want.Normalize();
  EXPECT_EQ(std::memcmp(sum.Get().data(), &want, sizeof(want)), 0);
  device->ops().SumExactly({.sum = sum.t(), .x = x.t()});
  device->ops().SquaredNorm({.sum = sum.t(), .x = x.t()});
  want.Add(1.5);
  want.Add(-2.0);
  want.Add(6.25);
  want.Normalize();
  EXPECT_EQ(std::memcmp(sum.Get().data(), &want, sizeof(want)), 0);
}
}  // namespace
}  // namespace carousel::testing
