// The causal convolution of a device made of the sources in kernels/cuda, where the op cases do not reach:
// runs of tokens and blocks of channels, the state carried over calls, and what must not leak from one
// document into another.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/device_op_testing.h"
#include "tests/op_cases_conv.h"

namespace carousel::testing {
namespace {

TEST(DeviceConv, LongAlignedSequencesOfEveryTapCountAgreeWithTheSpecification) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const int64_t K : {1, 2, 3, 4, 5}) {
    ConvCase s = {.name = std::to_string(K) + "_taps",
                  .B = 3,
                  .T = 77,
                  .C = 40,
                  .K = K,
                  .accumulate_dx = true,
                  .initial = true,
                  .last = true,
                  .resets = 0.1,
                  .gap = 16,
                  .large = true};
    ExpectRight(*device, WithAlignedGaps(ConvForwardCase(s)));
    ExpectRight(*device, WithAlignedGaps(ConvBackwardCase(s)));
  }
  // more channels than a block has lanes, and more runs of tokens than blocks
  ConvCase wide = {.name = "wide", .B = 1, .T = 12, .C = 528, .K = 4, .initial = true, .large = true};
  ExpectRight(*device, ConvForwardCase(wide), {DType::kBF16});
  ExpectRight(*device, ConvBackwardCase(wide), {DType::kBF16});
  ConvCase tall = {.name = "tall", .B = 2, .T = 3000, .C = 8, .K = 4, .resets = 0.01, .large = true};
  ExpectRight(*device, ConvForwardCase(tall), {DType::kBF16});
  ExpectRight(*device, ConvBackwardCase(tall), {DType::kBF16});
}

// One sequence of T tokens: the outputs y and the state after it, from an initial state.
struct ConvResult {
  Matrix y, last;
};
ConvResult RunConv(Device& device, const Matrix& x, int64_t begin, int64_t count, int64_t K,
                   const std::vector<uint8_t>& reset, const Matrix* initial) {
  const DType compute = x.t().dtype;
  const int64_t C = x.t().dim[1];
  Matrix part(compute, count, C), weight(compute, C, K), bias(WideOf(compute), 1, C);
  weight.FillRandom(2);
  bias.FillRandom(3);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t c = 0; c < C; ++c) part.Set(t, c, x.Get(begin + t, c));
  }
  ConvResult result = {Matrix(compute, count, C), Matrix(WideOf(compute), K - 1, C)};
  const OnDevice dx(device, part), dw(device, weight), db(device, bias), dy(device, result.y),
      dlast(device, initial != nullptr ? *initial : result.last);
  void* const dreset = device.Allocate(count);
  device.CopyToDevice(dreset, reset.data() + begin, count);
  device.ops().CausalConvForward({.y = dy.t(),
                                  .last = dlast.As({1, K - 1, C}),
                                  .x = dx.t(),
                                  .weight = dw.t(),
                                  .bias = db.As({C}),
                                  .reset = Tensor(dreset, DType::kU8, {count}),
                                  .initial = initial != nullptr ? dlast.As({1, K - 1, C}) : Tensor(),
                                  .shape = {.B = 1, .T = count, .C = C, .K = K}});
  dy.CopyTo(result.y);
  dlast.CopyTo(result.last);
  device.Free(dreset);
  return result;
}

TEST(DeviceConv, SegmentsThatCarryTheStateEqualOneCallBitForBit) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const DType compute : kComputes) {
    for (const int64_t K : {4, 6}) {
      Matrix x(compute, 29, 24), start(WideOf(compute), K - 1, 24);
      x.FillRandom(1);
      start.FillRandom(4);
      std::vector<uint8_t> reset(29);
      for (const int64_t t : {4, 6, 20}) reset[static_cast<size_t>(t)] = 1;
      const ConvResult whole = RunConv(*device, x, 0, 29, K, reset, &start);
      for (const std::vector<int64_t>& lengths :
           {std::vector<int64_t>{3, 1, 2, 15, 1, 7}, {28, 1}, {2, 27}}) {
        Matrix state = start;
        int64_t begin = 0;
        for (const int64_t length : lengths) {
          const ConvResult part = RunConv(*device, x, begin, length, K, reset, &state);
          for (int64_t t = 0; t < length; ++t) {
            for (int64_t c = 0; c < 24; ++c) ASSERT_EQ(part.y.Get(t, c), whole.y.Get(begin + t, c));
          }
          for (int64_t i = 0; i < K - 1; ++i) {
            for (int64_t c = 0; c < 24; ++c) state.Set(i, c, part.last.Get(i, c));
          }
          begin += length;
        }
        EXPECT_EQ(state, whole.last) << NameOf(compute) << ", " << K << " taps";
      }
    }
  }
}

TEST(DeviceConv, NothingBeforeAResetIsUsed) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const DType compute : kComputes) {
    for (const int64_t K : {4, 6}) {
      for (const int64_t start : {0, 1, 2, 6, 7, 8, 11}) {
        Matrix x(compute, 12, 16), poison(WideOf(compute), K - 1, 16);
        x.FillRandom(1);
        poison.Fill(std::numeric_limits<double>::quiet_NaN());
        std::vector<uint8_t> reset(12);
        reset[static_cast<size_t>(start)] = 1;
        const ConvResult plain = RunConv(*device, x, 0, 12, K, reset, nullptr);
        Matrix poisoned_x = x;
        for (int64_t t = 0; t < start; ++t) {
          for (int64_t c = 0; c < 16; ++c) poisoned_x.Set(t, c, std::numeric_limits<double>::quiet_NaN());
        }
        const ConvResult poisoned = RunConv(*device, poisoned_x, 0, 12, K, reset, &poison);
        for (int64_t t = start; t < 12; ++t) {
          for (int64_t c = 0; c < 16; ++c) ASSERT_EQ(poisoned.y.Get(t, c), plain.y.Get(t, c)) << t;
        }
        EXPECT_EQ(poisoned.last, plain.last);
        if (start > 0) {
          EXPECT_TRUE(std::isnan(poisoned.y.Get(0, 0))) << "the state before it counts";
        }
      }
    }
  }
}
}  // namespace
}  // namespace carousel::testing
