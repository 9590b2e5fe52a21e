// The norms, the convolution, dropout and the element-wise ops of a device made of the sources in
// kernels/cuda, where the op cases do not reach: every layout of threads over rows, aligned views with gaps,
// every pair of dtypes, numbers at the ends of their range, and the bits of the CPU backend where bits are
// promised.
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "tests/device_testing.h"
#include "tests/op_call.h"
#include "tests/op_cases_conv.h"
#include "tests/op_cases_elementwise.h"
#include "tests/op_cases_norm.h"
#include "tests/op_testing.h"

namespace carousel::testing {
namespace {
constexpr DType kComputes[] = {DType::kF64, DType::kF32, DType::kBF16};
constexpr DType kAllDTypes[] = {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8};

// A copy of a matrix on the device. The bits between its rows are copied, too.
class OnDevice {
 public:
  OnDevice(Device& device, const Matrix& m) : device_(device), t_(m.t()) {
    bytes_ = (t_.dim[0] * t_.row_stride) * SizeOf(t_.dtype);
    t_.data = device.Allocate(bytes_);
    device.CopyToDevice(t_.data, m.t().data, bytes_);
  }
  ~OnDevice() { device_.Free(t_.data); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const Tensor& t() const { return t_; }
  Tensor As(std::initializer_list<int64_t> dims) const { return t_.Reshape(dims); }
  void CopyTo(Matrix& m) const { device_.CopyToHost(m.t().data, t_.data, bytes_); }

 private:
  Device& device_;
  Tensor t_;
  int64_t bytes_;
};

// Runs a case in every dtype on the device and compares it with its formula, or with the specification run in
// double.
void ExpectRight(Device& device, const OpCase& op_case,
                 std::initializer_list<DType> computes = {DType::kF64, DType::kF32, DType::kBF16}) {
  SCOPED_TRACE(op_case.name);
  cpu::CpuDevice plain({.num_threads = 1, .reference = true});
  const Values want = ExpectedValues(op_case, plain.ops());
  for (const DType compute : computes) {
    SCOPED_TRACE(NameOf(compute));
    OpCall call(op_case, compute);
    const Values before = call.Get();
    call.RunOn(device);
    call.ExpectNothingElseTouched(before);
    ExpectOutputs(op_case, compute, call.Get(), want);
  }
}
// All gaps become 16 elements, so that rows of multiples of 8 are aligned.
OpCase WithAlignedGaps(OpCase op_case) {
  op_case.name += "_aligned_gaps";
  for (TensorSpec& spec : op_case.tensors) {
    if (spec.gap > 0) spec.gap = 16;
  }
  return op_case;
}

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

// ---- the causal convolution

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
