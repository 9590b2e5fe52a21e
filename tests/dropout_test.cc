// Dropout on every path of the CPU backend: which elements stay, what becomes of them, and what that depends
// on.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "tests/op_testing.h"

namespace carousel::testing {
namespace {
using cpu::CpuDevice;
using cpu::CpuOptions;

// Which elements of an (N, W) matrix are kept, row by row.
std::vector<bool> Mask(Ops& ops, DType dtype, int64_t N, int64_t W, double rate, uint64_t key,
                       int64_t gap = 0) {
  Matrix x(dtype, N, W, gap);
  x.Fill(1);
  ops.Dropout({.y = x.t(), .x = x.t(), .rate = rate, .key = key});
  std::vector<bool> keep;
  for (int64_t r = 0; r < N; ++r) {
    for (int64_t c = 0; c < W; ++c) keep.push_back(x.Get(r, c) != 0);
  }
  return keep;
}

TEST(Dropout, KeepsTheShareOfElementsThatTheRateLeaves) {
  constexpr int64_t kN = 500, kW = 1000;
  for (const double rate : {0.01, 0.1, 0.5, 0.93}) {
    CpuDevice device({.num_threads = 2});
    const std::vector<bool> keep = Mask(device.ops(), DType::kF32, kN, kW, rate, 17);
    // each count is binomial: 5 standard deviations, exceeded by chance once in 1.7 million
    const auto expect_share = [&](double kept, double count, const char* of) {
      EXPECT_NEAR(kept, count * (1 - rate), 5 * std::sqrt(count * rate * (1 - rate)))
          << of << ", rate " << rate;
    };
    double total = 0, both = 0, by_word[4] = {};
    for (size_t i = 0; i < keep.size(); ++i) {
      total += keep[i];
      by_word[i % 4] += keep[i];
    }
    expect_share(total, kN * kW, "all");
    for (const double kept : by_word) expect_share(kept, kN * kW / 4, "one word of a draw");
    // Neighbours are independent: pairs of columns (2i, 2i + 1) both stay with probability (1 - rate)^2.
    for (size_t i = 0; i < keep.size(); i += 2) both += keep[i] && keep[i + 1];
    const double p = (1 - rate) * (1 - rate), pairs = kN * kW / 2;
    EXPECT_NEAR(both, pairs * p, 5 * std::sqrt(pairs * p * (1 - p))) << "rate " << rate;
  }
}

TEST(Dropout, ScalesWhatItKeepsAndZeroesTheRest) {
  constexpr double kRate = 0.3;
  for (const OpPath& path : AllOpPaths()) {
    SCOPED_TRACE(path.name);
    CpuDevice device(path.options);
    Matrix x(path.compute, 37, 53), y(path.compute, 37, 53);
    x.FillRandom(1);
    device.ops().Dropout({.y = y.t(), .x = x.t(), .rate = kRate, .key = 5});
    const std::vector<bool> keep = Mask(device.ops(), path.compute, 37, 53, kRate, 5);
    // one rounding of the scale, one of the product
    const double epsilon = path.compute == DType::kF64   ? 0x1p-51
                           : path.compute == DType::kF32 ? 0x1p-22
                                                         : 0x1.01p-8;
    for (int64_t i = 0; i < 37 * 53; ++i) {
      const double want = keep[i] ? x.Get(i / 53, i % 53) / (1 - kRate) : 0;
      ASSERT_NEAR(y.Get(i / 53, i % 53), want, std::abs(want) * epsilon) << i;
    }
  }
}

TEST(Dropout, DropsTheSameElementsInEveryDtypeOnEveryPath) {
  // Word e % 4 of Philox4x32-10 with counter e / 4: this is what checkpoints of a run rely on.
  constexpr uint64_t kKey = 0x9abcdef012345678;
  constexpr double kRate = 0.4;
  std::vector<bool> want;
  for (uint64_t e = 0; e < 41 * 29; ++e) {
    want.push_back(static_cast<double>(RandomBits(kKey, 0, e / 4)[e % 4]) >= std::floor(kRate * 0x1p32));
  }
  for (const OpPath& path : AllOpPaths()) {
    CpuDevice device(path.options);
    EXPECT_EQ(Mask(device.ops(), path.compute, 41, 29, kRate, kKey), want) << path.name;
    EXPECT_EQ(Mask(device.ops(), path.compute, 41, 29, kRate, kKey, /*gap=*/3), want)
        << path.name << ", strided";
  }
}

TEST(Dropout, MaskDependsOnTheKeyAndTheElementsPlaceAlone) {
  for (const OpPath& path : AllOpPaths()) {
    SCOPED_TRACE(path.name);
    CpuDevice device(path.options);
    const std::vector<bool> mask = Mask(device.ops(), path.compute, 60, 40, 0.5, 1);
    EXPECT_EQ(mask, Mask(device.ops(), path.compute, 60, 40, 0.5, 1)) << "second call";
    // element row * W + column, whatever the shape
    EXPECT_EQ(mask, Mask(device.ops(), path.compute, 300, 8, 0.5, 1));
    EXPECT_EQ(mask, Mask(device.ops(), path.compute, 1, 2400, 0.5, 1));
    std::vector<bool> longer = Mask(device.ops(), path.compute, 77, 40, 0.5, 1);
    longer.resize(mask.size());
    EXPECT_EQ(mask, longer);
    // A higher rate drops more, and never keeps what a lower rate drops.
    const std::vector<bool> fewer = Mask(device.ops(), path.compute, 60, 40, 0.7, 1);
    for (size_t i = 0; i < mask.size(); ++i) EXPECT_LE(fewer[i], mask[i]) << i;
  }
}

TEST(Dropout, DifferentKeysDropDifferentElements) {
  CpuDevice device({.num_threads = 1});
  const std::vector<bool> mask = Mask(device.ops(), DType::kF32, 100, 100, 0.5, 0);
  // keys that differ in one bit, low or high
  for (const uint64_t key : {uint64_t{1}, uint64_t{1} << 31, uint64_t{1} << 32, uint64_t{1} << 63}) {
    const std::vector<bool> other = Mask(device.ops(), DType::kF32, 100, 100, 0.5, key);
    double equal = 0;
    for (size_t i = 0; i < mask.size(); ++i) equal += mask[i] == other[i];
    EXPECT_NEAR(equal, 5000, 5 * 50) << key;  // 5 standard deviations of 10,000 coins
  }
}

// A rank's part of an activation: the elements that `places` says of the whole.
void ExpectPartOfTheMask(int64_t rows, int64_t columns, int64_t N, int64_t W, const ElementPlaces& places,
                         const std::function<int64_t(int64_t)>& whole_row) {
  constexpr uint64_t kKey = 4711;
  for (const OpPath& path : AllOpPaths()) {
    SCOPED_TRACE(path.name);
    CpuDevice device(path.options);
    Matrix x(path.compute, rows, columns), y(path.compute, rows, columns);
    x.FillRandom(1);
    device.ops().Dropout({.y = y.t(), .x = x.t(), .rate = 0.3, .key = kKey});
    for (const int64_t gap : {0, 5}) {
      Matrix part(path.compute, N, W, gap);
      for (int64_t i = 0; i < N * W; ++i) {
        part.Set(i / W, i % W, x.Get(whole_row(i / W), places.first_column + i % W));
      }
      device.ops().Dropout({.y = part.t(), .x = part.t(), .rate = 0.3, .key = kKey, .places = places});
      for (int64_t i = 0; i < N * W; ++i) {
        ASSERT_EQ(part.Get(i / W, i % W), y.Get(whole_row(i / W), places.first_column + i % W))
            << "gap " << gap << " row " << i / W << " column " << i % W;
      }
    }
  }
}

TEST(Dropout, OfRowsOrColumnsIsTheWholeMasksPart) {
  for (const int64_t W : {16, 23}) {
    // rows of a rank of the tensor axis
    for (const int64_t first : {0, 8, 24}) {
      ExpectPartOfTheMask(32, W, 8, W, {.first_row = first}, [&](int64_t n) { return first + n; });
    }
    // every rank of a sequence axis of 4: 5 of the 20 tokens of each of 3 sequences
    for (int64_t s = 0; s < 4; ++s) {
      ExpectPartOfTheMask(60, W, 15, W, {.segment = 5, .segment_stride = 20, .segment_begin = 5 * s},
                          [&](int64_t n) { return n / 5 * 20 + 5 * s + n % 5; });
      // and of those rows the later ones, from the middle of a sequence on
      ExpectPartOfTheMask(60, W, 8, W,
                          {.first_row = 7, .segment = 5, .segment_stride = 20, .segment_begin = 5 * s},
                          [&](int64_t n) { return (7 + n) / 5 * 20 + 5 * s + (7 + n) % 5; });
    }
    // columns of a rank of the tensor axis
    for (const int64_t first : {0, 16, 48, 3}) {
      ExpectPartOfTheMask(9, 64, 9, W < 17 ? 16 : 13, {.first_column = first, .num_columns = 64},
                          [](int64_t n) { return n; });
    }
  }
  // columns and tokens at once
  ExpectPartOfTheMask(
      24, 30, 8, 10,
      {.segment = 4, .segment_stride = 12, .segment_begin = 8, .first_column = 20, .num_columns = 30},
      [](int64_t n) { return n / 4 * 12 + 8 + n % 4; });
}

TEST(Dropout, BackwardOnGradientsUsesTheMaskOfTheForwardPass) {
  for (const OpPath& path : AllOpPaths()) {
    SCOPED_TRACE(path.name);
    CpuDevice device(path.options);
    Matrix x(path.compute, 19, 23), dy(path.compute, 19, 23, 6), y(path.compute, 19, 23, 2),
        dx(path.compute, 19, 23);
    x.FillRandom(1);
    dy.FillRandom(2);
    device.ops().Dropout({.y = y.t(), .x = x.t(), .rate = 0.25, .key = 99});
    device.ops().Dropout({.y = dx.t(), .x = dy.t(), .rate = 0.25, .key = 99});
    for (int64_t i = 0; i < 19 * 23; ++i) {
      EXPECT_EQ(y.Get(i / 23, i % 23) == 0, dx.Get(i / 23, i % 23) == 0) << i;
    }
  }
}

TEST(Dropout, InPlaceAndStridedEqualSeparateAndDense) {
  for (const OpPath& path : AllOpPaths()) {
    SCOPED_TRACE(path.name);
    CpuDevice device(path.options);
    for (const int64_t W : {1, 7, 16, 70}) {
      Matrix x(path.compute, 43, W), y(path.compute, 43, W), strided(path.compute, 43, W, 5);
      x.FillRandom(1);
      strided.FillRandom(1);
      device.ops().Dropout({.y = y.t(), .x = x.t(), .rate = 0.6, .key = 3});
      device.ops().Dropout({.y = strided.t(), .x = strided.t(), .rate = 0.6, .key = 3});
      device.ops().Dropout({.y = x.t(), .x = x.t(), .rate = 0.6, .key = 3});
      EXPECT_EQ(x, y) << "in place, width " << W;
      for (int64_t r = 0; r < 43; ++r) {
        for (int64_t c = 0; c < W; ++c) ASSERT_EQ(strided.Get(r, c), y.Get(r, c)) << r << " " << c;
        for (int64_t c = W; c < W + 5; ++c)
          ASSERT_EQ(strided.Get(r, c), Matrix::kUntouched) << "wrote between the rows";
      }
    }
  }
}

TEST(Dropout, RateZeroCopiesEveryBit) {
  for (const OpPath& path : AllOpPaths()) {
    CpuDevice device(path.options);
    Matrix x(path.compute, 31, 9), y(path.compute, 31, 9);
    x.FillRandom(4);
    x.Set(3, 3, std::numeric_limits<double>::infinity());
    x.Set(4, 4, -0.0);
    const Matrix before = x;
    device.ops().Dropout({.y = y.t(), .x = x.t(), .rate = 0, .key = 3});
    EXPECT_EQ(y, before) << path.name;
    device.ops().Dropout({.y = x.t(), .x = x.t(), .rate = 0, .key = 3});
    EXPECT_EQ(x, before) << path.name << ", in place";
  }
}

TEST(Dropout, WhatIsDroppedIsZeroEvenIfItIsNotFinite) {
  for (const OpPath& path : AllOpPaths()) {
    CpuDevice device(path.options);
    Matrix x(path.compute, 8, 100);
    x.Fill(std::numeric_limits<double>::quiet_NaN());
    device.ops().Dropout({.y = x.t(), .x = x.t(), .rate = 0.5, .key = 8});
    const std::vector<bool> keep = Mask(device.ops(), path.compute, 8, 100, 0.5, 8);
    for (int64_t i = 0; i < 800; ++i) {
      const double y = x.Get(i / 100, i % 100);
      EXPECT_TRUE(keep[i] ? std::isnan(y) : y == 0) << path.name << " " << i;
    }
  }
}

TEST(Dropout, GivesTheSameBitsForEveryNumberOfThreads) {
  for (const OpPath& path : AllOpPaths()) {
    for (const int64_t gap : {0, 1}) {
      std::vector<Matrix> results;
      for (const int threads : {1, 2, 3}) {
        CpuOptions options = path.options;
        options.num_threads = threads;
        CpuDevice device(options);
        Matrix x(path.compute, 211, 203, gap);
        x.FillRandom(6);
        device.ops().Dropout({.y = x.t(), .x = x.t(), .rate = 0.1, .key = 77});
        results.push_back(x);
      }
      EXPECT_EQ(results[0], results[1]) << path.name;
      EXPECT_EQ(results[0], results[2]) << path.name;
    }
  }
}
}  // namespace
}  // namespace carousel::testing
