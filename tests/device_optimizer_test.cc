// The optimizer's update and the exact sums on a device: the same bits as on the CPU.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/base/exact_sum.h"
#include "core/base/random.h"
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
