// The norms, dropout and the element-wise ops of a device made of the sources in kernels/cuda, where the op
// cases do not reach: every layout of threads over rows, aligned views with gaps, every pair of dtypes,
// numbers at the ends of their range, and the bits of the CPU backend where bits are promised.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/device_op_testing.h"
#include "tests/op_cases_elementwise.h"
#include "tests/op_cases_norm.h"

namespace carousel::testing {
namespace {
constexpr DType kAllDTypes[] = {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8};

// ---- norms

// One row per group of lanes, per warp, per block, and rows that are walked through again; aligned and not.
constexpr int64_t kWidths[] = {8, 24, 100, 264, 520, 1000, 1024, 2056, 4100, 8192, 8200, 9001, 16384};

TEST(DeviceNorm, RowsOfEveryWidthAreNormalised) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const int64_t D : kWidths) {
    const int64_t N = D < 1024 ? 9 : 2;
    ExpectRight(*device,
                RmsNormForwardCase(std::to_string(D),
                                   {.N = N, .D = D, .delta = true, .bias = true, .residual = false}),
                {DType::kF32, DType::kBF16});
    ExpectRight(
        *device,
        LayerNormForwardCase(std::to_string(D), {.N = N, .D = D, .delta = true, .residual_weight = true}),
        {DType::kF32, DType::kBF16});
  }
}

TEST(DeviceNorm, RowsOfEveryWidthHaveTheirGradients) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const int64_t D : kWidths) {
    const int64_t N = D < 1024 ? 67 : 3;
    ExpectRight(*device,
                RmsNormBackwardCase(std::to_string(D), {.N = N,
                                                        .D = D,
                                                        .delta = false,
                                                        .bias = true,
                                                        .residual = true,
                                                        .dx_in_place = true,
                                                        .large = true}),
                {DType::kF32, DType::kBF16});
    ExpectRight(
        *device,
        LayerNormBackwardCase(
            std::to_string(D),
            {.N = N, .D = D, .bias = true, .residual_weight = true, .dresidual = true, .large = true}),
        {DType::kF32, DType::kBF16});
  }
}

TEST(DeviceNorm, OneTallMatrixUsesEveryBlockOfTheBackwardPass) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  // more rows than persistent blocks take in one turn
  ExpectRight(
      *device,
      RmsNormBackwardCase(
          "tall", {.N = 20000, .D = 8, .delta = false, .bias = true, .residual = false, .large = true}),
      {DType::kBF16});
}

TEST(DeviceNorm, HeadsOfEveryWidthAreNormalisedAndGated) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  struct Heads {
    int64_t N, NH, DHV;
  };
  for (const Heads& heads : {Heads{17, 31, 8},
                             {5, 64, 8},
                             {9, 3, 16},
                             {11, 2, 64},
                             {3, 4, 100},
                             {5, 2, 256},
                             {3, 2, 512},
                             {2, 2, 1024},
                             {2, 1, 4096},
                             {2, 1, 8192},
                             {1, 1, 9001},
                             {1, 2, 12288}}) {
    HeadNormSize size = {.N = heads.N,
                         .NH = heads.NH,
                         .DHV = heads.DHV,
                         .bias = true,
                         .gap = 16,
                         .gate = HeadNormSize::Gate::kSilu,
                         .skip = true,
                         .weight = HeadNormSize::Weight::kResidual,
                         .large = true};
    const std::string name = std::to_string(heads.NH) + "x" + std::to_string(heads.DHV);
    ExpectRight(*device, WithAlignedGaps(HeadNormGateForwardCase(name, size)), {DType::kF32, DType::kBF16});
    ExpectRight(*device, WithAlignedGaps(HeadNormGateBackwardCase(name, size)), {DType::kF32, DType::kBF16});
  }
}

TEST(DeviceNorm, RowsThatDifferLittleFromALargeMeanKeepTheirVariance) {
  // A difference of sums of squares would lose all digits here.
  const std::unique_ptr<Device> device = MakeTestDevice();
  Matrix x(DType::kF32, 2, 512), y(DType::kF32, 2, 512), weight(DType::kF32, 1, 512), mean(DType::kF32, 1, 2),
      rstd(DType::kF32, 1, 2);
  weight.Fill(1);
  for (int64_t c = 0; c < 512; ++c) {
    x.Set(0, c, 4096 + (c % 2 == 0 ? 0.5 : -0.5));
    x.Set(1, c, -4096 + (c % 2 == 0 ? 0.25 : -0.25));
  }
  const OnDevice dx(*device, x), dy(*device, y), dw(*device, weight), dm(*device, mean), dr(*device, rstd);
  device->ops().LayerNormForward(
      {.y = dy.t(), .mean = dm.As({2}), .rstd = dr.As({2}), .x = dx.t(), .weight = dw.As({512}), .eps = 0});
  dr.CopyTo(rstd);
  dy.CopyTo(y);
  EXPECT_EQ(rstd.Get(0, 0), 2);
  EXPECT_EQ(rstd.Get(0, 1), 4);
  for (int64_t c = 0; c < 512; ++c) EXPECT_EQ(y.Get(0, c), c % 2 == 0 ? 1 : -1);
}

// ---- dropout

TEST(DeviceDropout, KeepsAndScalesTheElementsOfTheCpuBitForBit) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  cpu::CpuDevice host({.num_threads = 1, .reference = true});
  struct Shape {
    int64_t N, W, gap;
  };
  for (const DType compute : kComputes) {
    for (const Shape& shape : {Shape{3, 64, 0}, {41, 29, 0}, {13, 24, 8}, {7, 30, 3}, {1, 1, 0}, {5, 8, 1}}) {
      for (const uint64_t key : {uint64_t{1}, uint64_t{0x9abcdef012345678}}) {
        Matrix x(compute, shape.N, shape.W, shape.gap), want(compute, shape.N, shape.W, shape.gap);
        x.FillRandom(1);
        host.ops().Dropout({.y = want.t(), .x = x.t(), .rate = 0.3, .key = key});
        Matrix got(compute, shape.N, shape.W, shape.gap);
        const OnDevice from(*device, x), to(*device, got);
        device->ops().Dropout({.y = to.t(), .x = from.t(), .rate = 0.3, .key = key});
        to.CopyTo(got);
        EXPECT_EQ(got, want) << NameOf(compute) << " " << shape.N << " x " << shape.W << " + " << shape.gap;
        device->ops().Dropout({.y = from.t(), .x = from.t(), .rate = 0.3, .key = key});
        from.CopyTo(x);
        EXPECT_EQ(x, want) << NameOf(compute) << ", in place";
      }
    }
  }
}

TEST(DeviceDropout, WhatIsDroppedIsZeroEvenIfItIsNotFiniteAndRateZeroCopiesEveryBit) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const DType compute : kComputes) {
    Matrix x(compute, 8, 96), y(compute, 8, 96);
    x.Fill(std::numeric_limits<double>::infinity());
    const OnDevice from(*device, x), to(*device, y);
    device->ops().Dropout({.y = to.t(), .x = from.t(), .rate = 0.5, .key = 8});
    to.CopyTo(y);
    int64_t zeros = 0;
    for (int64_t i = 0; i < 8 * 96; ++i) {
      const double value = y.Get(i / 96, i % 96);
      zeros += value == 0 ? 1 : 0;
      EXPECT_TRUE(value == 0 || std::isinf(value));
    }
    EXPECT_NEAR(static_cast<double>(zeros), 384, 5 * 14);  // 5 standard deviations of 768 coins
    device->ops().Dropout({.y = to.t(), .x = from.t(), .rate = 0, .key = 8});
    to.CopyTo(y);
    EXPECT_EQ(y, x);
  }
}

// ---- casts and fills

// Values at which conversions round: ties of bf16 and of f32, both ways, and integers.
std::vector<double> RoundingValues(DType from, DType to) {
  const bool integer = SizeOf(from) == 1 || from == DType::kI32 || from == DType::kI64 || to == DType::kI32 ||
                       to == DType::kI64 || to == DType::kU8;
  if (integer) return {0, 1, 2, 3, 17, 100, 127, 128, 200, 255};
  return {0.0,       -0.0,           1.0,
          0x1.01p0,  0x1.03p0,       -0x1.01p0,
          0x1.8p-3,  0x1.010001p0,   0x1.00ffffp0,
          0x1p120,   -0x1p-120,      0x1.0100000000001p0,
          0x1.03p10, 0x1.02ffffffp0, 0x1.00000100000001p0,
          1e-41,     3.25,           -7.75};
}
void SetElement(const Tensor& t, int64_t i, double value) {
  switch (t.dtype) {
    case DType::kI64:
      t.as<int64_t>()[i] = static_cast<int64_t>(value);
      break;
    default:
      Write(t, i, value);
  }
}

TEST(DeviceCast, EveryPairOfTypesHasTheBitsOfTheCpu) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  cpu::CpuDevice host({.num_threads = 1, .reference = true});
  for (const DType from : kAllDTypes) {
    for (const DType to : kAllDTypes) {
      for (const int64_t gap : {0, 5, 8}) {
        const std::vector<double> values = RoundingValues(from, to);
        const int64_t N = 3, W = 24, stride = W + gap;
        std::vector<std::byte> x(static_cast<size_t>(N * stride * SizeOf(from)));
        std::vector<std::byte> want(static_cast<size_t>(N * stride * SizeOf(to)), std::byte{0x77});
        std::vector<std::byte> got = want;
        Tensor x_t(x.data(), from, {N, W}), y_t(want.data(), to, {N, W});
        x_t.row_stride = y_t.row_stride = stride;
        for (int64_t i = 0; i < N * stride; ++i) {
          SetElement(x_t, i, values[static_cast<size_t>(i) % values.size()]);
        }
        host.ops().Cast({.y = y_t, .x = x_t});
        void* const from_memory = device->Allocate(static_cast<int64_t>(x.size()));
        void* const to_memory = device->Allocate(static_cast<int64_t>(got.size()));
        device->CopyToDevice(from_memory, x.data(), static_cast<int64_t>(x.size()));
        device->CopyToDevice(to_memory, got.data(), static_cast<int64_t>(got.size()));
        x_t.data = from_memory;
        y_t.data = to_memory;
        device->ops().Cast({.y = y_t, .x = x_t});
        device->CopyToHost(got.data(), to_memory, static_cast<int64_t>(got.size()));
        EXPECT_EQ(got, want) << NameOf(from) << " to " << NameOf(to) << ", gap " << gap;
        device->Free(from_memory);
        device->Free(to_memory);
      }
    }
  }
}

TEST(DeviceFill, SetsEveryElementOfAnyShapeAndTypeAndNothingElse) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  cpu::CpuDevice host({.num_threads = 1, .reference = true});
  for (const DType dtype : kAllDTypes) {
    const auto check = [&](Tensor t, int64_t elems) {
      std::vector<std::byte> want(static_cast<size_t>((elems + 1) * SizeOf(dtype)), std::byte{0x5a});
      std::vector<std::byte> got = want;
      void* const memory = device->Allocate(static_cast<int64_t>(got.size()));
      device->CopyToDevice(memory, got.data(), static_cast<int64_t>(got.size()));
      t.dtype = dtype;
      t.data = want.data();
      host.ops().Fill({.y = t, .value = 3});
      t.data = memory;
      device->ops().Fill({.y = t, .value = 3});
      device->CopyToHost(got.data(), memory, static_cast<int64_t>(got.size()));
      device->Free(memory);
      EXPECT_EQ(got, want) << NameOf(dtype) << ", " << elems << " elements";
    };
    check(Tensor(nullptr, dtype, {1}), 1);
    check(Tensor(nullptr, dtype, {4099}), 4099);
    check(Tensor(nullptr, dtype, {3, 5, 7}), 105);
    Tensor strided(nullptr, dtype, {4, 16});
    strided.row_stride = 32;
    check(strided, 4 * 32);
    strided.row_stride = 19;
    check(strided, 4 * 19);
  }
}

TEST(DeviceAdd, EveryCombinationOfTypesAgreesWithTheCpu) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  cpu::CpuDevice host({.num_threads = 1, .reference = true});
  for (const DType y : kComputes) {
    for (const DType a : kComputes) {
      for (const DType b : kComputes) {
        Matrix first(a, 1, 77), second(b, 1, 77), want(y, 1, 77), got(y, 1, 77);
        first.FillRandom(1);
        second.FillRandom(2);
        host.ops().Add({.y = want.t(), .a = first.t(), .b = second.t()});
        const OnDevice da(*device, first), db(*device, second), dy(*device, got);
        device->ops().Add({.y = dy.t(), .a = da.t(), .b = db.t()});
        dy.CopyTo(got);
        EXPECT_EQ(got, want) << NameOf(y) << " = " << NameOf(a) << " + " << NameOf(b);
      }
    }
  }
}

// ---- activations

TEST(DeviceActivation, AlignedHalvesOfOneMatrixAreViews) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const GluActivation activation : {GluActivation::kSilu, GluActivation::kGelu}) {
    ExpectRight(*device, WithAlignedGaps(GluForwardCase("views", activation, 33, 48, 16, 30)));
    ExpectRight(*device, WithAlignedGaps(GluBackwardCase("views", activation, 33, 48, 16, true, true)));
  }
}

TEST(DeviceActivation, LargeArgumentsGiveFiniteResultsAndTheirLimits) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    const std::vector<double> gates = {-3e38, -1e30, -1000, -104, -90, -20, -16,  -0.0,
                                       0.0,   16,    20,    90,   104, 1e3, 1e30, 3e38};
    const int64_t F = static_cast<int64_t>(gates.size());
    Matrix gate(compute, 1, F), ones(compute, 1, F), y(compute, 1, F), dgate(compute, 1, F),
        dup(compute, 1, F);
    for (int64_t i = 0; i < F; ++i) gate.Set(0, i, gates[static_cast<size_t>(i)]);
    ones.Fill(1);
    const OnDevice g(*device, gate), u(*device, ones), out(*device, y), dg(*device, dgate), du(*device, dup);
    for (const GluActivation activation : {GluActivation::kSilu, GluActivation::kGelu}) {
      device->ops().GluForward({.y = out.t(), .gate = g.t(), .up = u.t(), .activation = activation});
      device->ops().GluBackward({.dgate = dg.t(),
                                 .dup = du.t(),
                                 .dy = u.t(),
                                 .gate = g.t(),
                                 .up = u.t(),
                                 .activation = activation});
      out.CopyTo(y);
      dg.CopyTo(dgate);
      du.CopyTo(dup);
      for (int64_t i = 0; i < F; ++i) {
        const double x = gate.Get(0, i);
        SCOPED_TRACE(NameOf(compute) + std::string(" ") + std::to_string(x));
        EXPECT_EQ(y.Get(0, i), dup.Get(0, i));
        EXPECT_NEAR(y.Get(0, i), std::max(x, 0.0), 1e-6 * std::abs(x));
        const double slope = x > 0 ? 1 : x < 0 ? 0 : 0.5;
        EXPECT_NEAR(dgate.Get(0, i), slope, 3e-6);
      }
    }
  }
}

TEST(DeviceActivation, GeluKeepsItsRelativePrecisionFarBelowZero) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  constexpr int64_t kCount = 120;
  Matrix gate(DType::kF32, 1, kCount), ones(DType::kF32, 1, kCount), y(DType::kF32, 1, kCount),
      dgate(DType::kF32, 1, kCount);
  for (int64_t i = 0; i < kCount; ++i) gate.Set(0, i, -0.1 * static_cast<double>(i) - 0.037);
  ones.Fill(1);
  const OnDevice g(*device, gate), u(*device, ones), out(*device, y), dg(*device, dgate), du(*device, y);
  device->ops().GluForward({.y = out.t(), .gate = g.t(), .up = u.t(), .activation = GluActivation::kGelu});
  device->ops().GluBackward({.dgate = dg.t(),
                             .dup = du.t(),
                             .dy = u.t(),
                             .gate = g.t(),
                             .up = u.t(),
                             .activation = GluActivation::kGelu});
  out.CopyTo(y);
  dg.CopyTo(dgate);
  for (int64_t i = 0; i < kCount; ++i) {
    const double x = gate.Get(0, i), p = std::erfc(-x / std::sqrt(2.0)) / 2;
    const double density = std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
    EXPECT_NEAR(y.Get(0, i), x * p, 1e-6 * std::abs(x * p)) << x;
    // the slope is a difference of terms of the size of x density
    EXPECT_NEAR(dgate.Get(0, i), p + x * density, 1e-6 * (p + std::abs(x) * density)) << x;
  }
}

TEST(DeviceActivation, SoftCapIsBoundedByTheCap) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  for (const DType wide : {DType::kF32, DType::kF64}) {
    const std::vector<double> values = {-3e38, -1e20, -500, -15, 0, 1e-30, 15, 500, 1e20, 3e38, 7};
    const int64_t n = static_cast<int64_t>(values.size());
    Matrix x(wide, 1, n), y(wide, 1, n), dx(wide, 1, n);
    for (int64_t i = 0; i < n; ++i) x.Set(0, i, values[static_cast<size_t>(i)]);
    dx.Fill(1);
    const OnDevice from(*device, x), to(*device, y), gradient(*device, dx);
    device->ops().SoftCapForward({.y = to.t(), .x = from.t(), .cap = 15});
    device->ops().SoftCapBackward({.dx = gradient.t(), .dy = gradient.t(), .y = to.t(), .cap = 15});
    to.CopyTo(y);
    gradient.CopyTo(dx);
    for (int64_t i = 0; i < n; ++i) {
      const double t = std::tanh(x.Get(0, i) / 15);
      EXPECT_NEAR(y.Get(0, i), 15 * t, 1e-5 * std::abs(15 * t)) << x.Get(0, i);
      EXPECT_NEAR(dx.Get(0, i), 1 - t * t, 1e-5) << x.Get(0, i);
      EXPECT_GE(dx.Get(0, i), -1e-6);
    }
  }
}
}  // namespace
}  // namespace carousel::testing
