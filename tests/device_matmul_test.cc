// Matrix products on a device. Operands are small integers: sums are exact in every dtype, so results are
// compared for equality.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "tests/device_copy.h"
#include "tests/device_testing.h"

namespace carousel::testing {
namespace {

// Integers in [-3, 3], the same for every type.
template <class T>
std::vector<T> Integers(uint64_t stream, int64_t count) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = RandomUint64(11, stream, static_cast<uint64_t>(i));
    values.push_back(static_cast<T>(static_cast<Wide<T>>(static_cast<int>(bits % 7) - 3)));
  }
  return values;
}
template <class T>
double Number(T value) {
  return static_cast<double>(static_cast<Wide<T>>(value));
}

struct Product {
  int64_t M, N, K;
  bool transpose_a = false, transpose_b = false, accumulate = false, bias = false;
  int64_t a_gap = 0, b_gap = 0, c_gap = 0;
  int64_t offset = 0;  // of every operand from an aligned address, in elements
};

template <class T, class C>
void ExpectExactProduct(Device& device, const Product& p) {
  using W = Wide<T>;
  SCOPED_TRACE(std::string(NameOf(DTypeOf<T>::value)) + " to " + NameOf(DTypeOf<C>::value) + " " +
               std::to_string(p.M) + "x" + std::to_string(p.N) + "x" + std::to_string(p.K) +
               (p.transpose_a ? " ta" : "") + (p.transpose_b ? " tb" : "") + (p.accumulate ? " +=" : "") +
               (p.bias ? " bias" : "") + " gaps " + std::to_string(p.a_gap) + "," + std::to_string(p.b_gap) +
               "," + std::to_string(p.c_gap) + " offset " + std::to_string(p.offset));
  const int64_t a_rows = p.transpose_a ? p.K : p.M, a_columns = p.transpose_a ? p.M : p.K;
  const int64_t b_rows = p.transpose_b ? p.N : p.K, b_columns = p.transpose_b ? p.K : p.N;
  const int64_t lda = a_columns + p.a_gap, ldb = b_columns + p.b_gap, ldc = p.N + p.c_gap;
  const std::vector<T> a = Integers<T>(1, a_rows * lda), b = Integers<T>(2, b_rows * ldb);
  const std::vector<C> c = Integers<C>(3, p.M * ldc);
  const std::vector<W> bias = Integers<W>(4, p.N);
  const DeviceCopy<T> a_device(device, a, p.offset), b_device(device, b, p.offset);
  const DeviceCopy<C> c_device(device, c, p.offset);
  const DeviceCopy<W> bias_device(device, bias, p.offset);
  device.ops().Matmul({.c = c_device.Strided(p.M, p.N, ldc),
                       .a = a_device.Strided(a_rows, a_columns, lda),
                       .b = b_device.Strided(b_rows, b_columns, ldb),
                       .bias = p.bias ? bias_device.t() : Tensor(),
                       .transpose_a = p.transpose_a,
                       .transpose_b = p.transpose_b,
                       .accumulate = p.accumulate});
  const std::vector<C> got = c_device.Get();
  for (int64_t i = 0; i < p.M; ++i) {
    for (int64_t j = 0; j < ldc; ++j) {
      double want = Number(c[i * ldc + j]);
      if (j < p.N) {
        if (!p.accumulate) want = 0;
        for (int64_t k = 0; k < p.K; ++k) {
          want += Number(a[p.transpose_a ? k * lda + i : i * lda + k]) *
                  Number(b[p.transpose_b ? j * ldb + k : k * ldb + j]);
        }
        if (p.bias) want += Number(bias[j]);
        want = Number(static_cast<C>(static_cast<Wide<C>>(want)));
      }
      ASSERT_EQ(Number(got[i * ldc + j]), want) << "row " << i << " column " << j;
    }
  }
}
void ExpectExactProductInEveryType(Device& device, const Product& p) {
  ExpectExactProduct<bfloat16, float>(device, p);
  ExpectExactProduct<bfloat16, bfloat16>(device, p);
  ExpectExactProduct<float, float>(device, p);
  ExpectExactProduct<double, double>(device, p);
}

TEST(DeviceMatmul, IsExactOnIntegersForEveryLayoutAndEpilogue) {
  const auto device = MakeTestDevice();
  for (int flags = 0; flags < 16; ++flags) {
    Product p = {.M = 37, .N = 70, .K = 29};
    p.transpose_a = (flags & 1) != 0;
    p.transpose_b = (flags & 2) != 0;
    p.accumulate = (flags & 4) != 0;
    p.bias = (flags & 8) != 0;
    ExpectExactProductInEveryType(*device, p);
  }
}

TEST(DeviceMatmul, ServesEveryStrideAndAlignment) {
  const auto device = MakeTestDevice();
  for (int64_t offset = 0; offset < 3; ++offset) {
    for (const int64_t gap : {1, 2, 5}) {
      for (int transposes = 0; transposes < 4; ++transposes) {
        ExpectExactProductInEveryType(*device, {.M = 16,
                                                .N = 24,
                                                .K = 32,
                                                .transpose_a = (transposes & 1) != 0,
                                                .transpose_b = (transposes & 2) != 0,
                                                .accumulate = offset == 1,
                                                .bias = offset == 2,
                                                .a_gap = gap,
                                                .b_gap = gap + 1,
                                                .c_gap = gap + 2,
                                                .offset = offset});
      }
    }
  }
}

TEST(DeviceMatmul, HandlesSingleRowsColumnsAndTerms) {
  const auto device = MakeTestDevice();
  const int64_t sizes[][3] = {{1, 1, 1},   {1, 200, 65}, {200, 1, 65},
                              {65, 66, 1}, {64, 64, 64}, {130, 260, 300}};
  for (const auto& size : sizes) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      ExpectExactProductInEveryType(*device, {.M = size[0],
                                              .N = size[1],
                                              .K = size[2],
                                              .transpose_a = (transposes & 1) != 0,
                                              .transpose_b = (transposes & 2) != 0});
    }
  }
}

// A sum of no terms is 0, and an empty result touches nothing.
TEST(DeviceMatmul, HandlesEmptySumsAndEmptyResults) {
  const auto device = MakeTestDevice();
  for (const bool accumulate : {false, true}) {
    for (const bool bias : {false, true}) {
      for (const int64_t gap : {0, 3}) {
        ExpectExactProductInEveryType(
            *device, {.M = 3, .N = 5, .K = 0, .accumulate = accumulate, .bias = bias, .c_gap = gap});
        ExpectExactProductInEveryType(
            *device, {.M = 0, .N = 5, .K = 4, .accumulate = accumulate, .bias = bias, .c_gap = gap});
        ExpectExactProductInEveryType(
            *device, {.M = 3, .N = 0, .K = 4, .accumulate = accumulate, .bias = bias, .c_gap = gap});
      }
    }
  }
}

// TF32 would drop the last bits of the operands, bf16 sums those of the result.
TEST(DeviceMatmul, KeepsEveryBitOfF32) {
  const auto device = MakeTestDevice();
  const float a = 1 + 0x1p-23f, b = 1 - 0x1p-24f;
  const DeviceCopy<float> a_device(*device, {a, 0, 0, a}), b_device(*device, {b, 0, 0, 1}),
      c_device(*device, std::vector<float>(4));
  device->ops().Matmul({.c = c_device.t({2, 2}), .a = a_device.t({2, 2}), .b = b_device.t({2, 2})});
  EXPECT_EQ(c_device.Get(), (std::vector<float>{a * b, 0, 0, a}));
  const DeviceCopy<bfloat16> x(*device, {bfloat16(256.0f), bfloat16(1.0f)});
  const DeviceCopy<float> sum(*device, {0.0f});
  device->ops().Matmul({.c = sum.t({1, 1}), .a = x.t({1, 2}), .b = x.t({1, 2}), .transpose_b = true});
  EXPECT_EQ(sum.Get()[0], 65537.0f);
}

// Results are read, and operands are changed, by ops that are enqueued before the host waits for anything.
TEST(DeviceMatmul, KeepsItsPlaceAmongOtherOps) {
  const auto device = MakeTestDevice();
  Ops& ops = device->ops();
  const int64_t n = 8;
  const std::vector<float> values = Integers<float>(5, n * n);
  const DeviceCopy<float> a(*device, values), b(*device, std::vector<float>(n * n)),
      c(*device, std::vector<float>(n * n)), d(*device, std::vector<float>(n * n)),
      sum(*device, std::vector<float>(n * n));
  ops.Fill({.y = b.t({n, n}), .value = 1});
  ops.Matmul({.c = c.t({n, n}), .a = a.t({n, n}), .b = b.t({n, n})});
  ops.Fill({.y = b.t({n, n}), .value = 2});
  ops.Matmul({.c = d.t({n, n}), .a = c.t({n, n}), .b = b.t({n, n})});
  ops.Fill({.y = c.t({n, n}), .value = 0});
  ops.Add({.y = sum.t({n, n}), .a = c.t({n, n}), .b = d.t({n, n})});
  ops.Matmul({.c = d.t({n, n}), .a = c.t({n, n}), .b = b.t({n, n})});
  const std::vector<float> got = sum.Get();
  for (int64_t i = 0; i < n; ++i) {
    float row = 0;
    for (int64_t k = 0; k < n; ++k) row += values[i * n + k];
    for (int64_t j = 0; j < n; ++j) EXPECT_EQ(got[i * n + j], row * static_cast<float>(n) * 2) << i;
  }
  EXPECT_EQ(d.Get(), std::vector<float>(n * n));
}

// Played again, a recorded product reads what its operands hold then.
TEST(DeviceMatmul, RunsInARecording) {
  const auto device = MakeTestDevice();
  const int64_t M = 9, N = 12, K = 17;
  const DeviceCopy<bfloat16> a(*device, Integers<bfloat16>(6, M * K)),
      b(*device, Integers<bfloat16>(7, K * N));
  const DeviceCopy<float> c(*device, std::vector<float>(M * N));
  const DeviceCopy<float> bias(*device, Integers<float>(8, N));
  const auto recording = device->MakeRecording();
  std::vector<float> want(M * N);
  for (uint64_t round = 0; round < 4; ++round) {
    const std::vector<bfloat16> values = Integers<bfloat16>(20 + round, M * K);
    a.Set(values);
    recording->Run([&] {
      device->ops().Matmul(
          {.c = c.t({M, N}), .a = a.t({M, K}), .b = b.t({K, N}), .bias = bias.t(), .accumulate = true});
    });
    const std::vector<bfloat16> right = b.Get();
    for (int64_t i = 0; i < M; ++i) {
      for (int64_t j = 0; j < N; ++j) {
        for (int64_t k = 0; k < K; ++k) {
          want[i * N + j] += static_cast<float>(values[i * K + k]) * static_cast<float>(right[k * N + j]);
        }
        want[i * N + j] += bias.Get()[j];
      }
    }
    EXPECT_EQ(c.Get(), want) << "round " << round;
  }
}

// Blocks of every kind: with a kernel of their own (4, 8, 16) and as batched products, square or not.
template <class T, class Y>
void ExpectExactBlocks(Device& device, int64_t N, int64_t num_blocks, int64_t in, int64_t out, int64_t gap) {
  using W = Wide<T>;
  SCOPED_TRACE(std::string(NameOf(DTypeOf<T>::value)) + " to " + NameOf(DTypeOf<Y>::value) + ", N " +
               std::to_string(N) + ", " + std::to_string(num_blocks) + " blocks " + std::to_string(out) +
               "x" + std::to_string(in) + ", gap " + std::to_string(gap));
  const int64_t ins = num_blocks * in, outs = num_blocks * out;
  const int64_t x_stride = ins + gap, y_stride = outs + gap;
  const std::vector<T> x = Integers<T>(31, N * x_stride), weight = Integers<T>(32, outs * in),
                       dy = Integers<T>(33, N * y_stride), dx = Integers<T>(34, N * x_stride);
  const std::vector<W> bias = Integers<W>(35, outs), dweight = Integers<W>(36, outs * in),
                       dbias = Integers<W>(37, outs);
  const DeviceCopy<T> x_device(device, x), weight_device(device, weight), dy_device(device, dy),
      dx_device(device, dx);
  const DeviceCopy<Y> y_device(device, Integers<Y>(38, N * y_stride));
  const DeviceCopy<W> bias_device(device, bias), dweight_device(device, dweight), dbias_device(device, dbias);
  device.ops().BlockLinearForward({.y = y_device.Strided(N, outs, y_stride),
                                   .x = x_device.Strided(N, ins, x_stride),
                                   .weight = weight_device.t({outs, in}),
                                   .bias = bias_device.t(),
                                   .num_blocks = num_blocks});
  device.ops().BlockLinearBackward({.dx = dx_device.Strided(N, ins, x_stride),
                                    .dweight = dweight_device.t({outs, in}),
                                    .dbias = dbias_device.t(),
                                    .dy = dy_device.Strided(N, outs, y_stride),
                                    .x = x_device.Strided(N, ins, x_stride),
                                    .weight = weight_device.t({outs, in}),
                                    .num_blocks = num_blocks,
                                    .accumulate_dx = true});
  const std::vector<Y> y = y_device.Get();
  const std::vector<T> got_dx = dx_device.Get();
  const std::vector<W> got_dweight = dweight_device.Get(), got_dbias = dbias_device.Get();
  std::vector<double> want_dweight(dweight.begin(), dweight.end()), want_dbias(dbias.begin(), dbias.end());
  for (int64_t r = 0; r < N; ++r) {
    std::vector<double> want_dx(ins);
    for (int64_t c = 0; c < ins; ++c) want_dx[c] = Number(dx[r * x_stride + c]);
    for (int64_t o = 0; o < outs; ++o) {
      double sum = Number(bias[o]);
      const double gradient = Number(dy[r * y_stride + o]);
      for (int64_t i = 0; i < in; ++i) {
        const int64_t column = o / out * in + i;
        sum += Number(x[r * x_stride + column]) * Number(weight[o * in + i]);
        want_dx[column] += gradient * Number(weight[o * in + i]);
        want_dweight[o * in + i] += gradient * Number(x[r * x_stride + column]);
      }
      want_dbias[o] += gradient;
      ASSERT_EQ(Number(y[r * y_stride + o]), Number(static_cast<Y>(static_cast<Wide<Y>>(sum))))
          << r << " " << o;
    }
    for (int64_t c = 0; c < ins; ++c) {
      ASSERT_EQ(Number(got_dx[r * x_stride + c]), Number(static_cast<T>(static_cast<Wide<T>>(want_dx[c]))))
          << r << " " << c;
    }
  }
  for (int64_t e = 0; e < outs * in; ++e) ASSERT_EQ(Number(got_dweight[e]), want_dweight[e]) << e;
  for (int64_t o = 0; o < outs; ++o) ASSERT_EQ(Number(got_dbias[o]), want_dbias[o]) << o;
}

TEST(DeviceBlockLinear, IsExactOnIntegersForEveryKindOfBlock) {
  const auto device = MakeTestDevice();
  const int64_t shapes[][4] = {{1, 1, 4, 4},     {300, 3, 4, 4},  {70, 150, 4, 4}, {37, 5, 8, 8},
                               {150, 2, 16, 16}, {19, 3, 16, 16}, {20, 3, 5, 5},   {33, 2, 3, 7},
                               {40, 4, 24, 24},  {17, 1, 40, 9}};
  for (const auto& s : shapes) {
    for (const int64_t gap : {0, 1, 4}) {
      ExpectExactBlocks<bfloat16, float>(*device, s[0], s[1], s[2], s[3], gap);
      ExpectExactBlocks<bfloat16, bfloat16>(*device, s[0], s[1], s[2], s[3], gap);
      ExpectExactBlocks<float, float>(*device, s[0], s[1], s[2], s[3], gap);
      ExpectExactBlocks<double, double>(*device, s[0], s[1], s[2], s[3], gap);
    }
  }
}

TEST(DeviceColumnSum, IsExactOnIntegersForEveryWidth) {
  const auto device = MakeTestDevice();
  const auto expect_sums = [&]<class T>(int64_t N, int64_t width, int64_t gap) {
    using W = Wide<T>;
    const std::vector<T> x = Integers<T>(41, N * (width + gap));
    std::vector<W> y = Integers<W>(42, width);
    const DeviceCopy<T> x_device(*device, x);
    const DeviceCopy<W> y_device(*device, y);
    device->ops().ColumnSum({.y = y_device.t(), .x = x_device.Strided(N, width, width + gap)});
    for (int64_t r = 0; r < N; ++r) {
      for (int64_t c = 0; c < width; ++c) y[c] += static_cast<W>(x[r * (width + gap) + c]);
    }
    EXPECT_EQ(y_device.Get(), y) << NameOf(DTypeOf<T>::value) << " " << N << "x" << width << " gap " << gap;
  };
  for (const auto& [N, width] :
       {std::pair<int64_t, int64_t>{1, 1}, {700, 4}, {65, 256}, {129, 300}, {3, 1000}, {0, 5}}) {
    for (const int64_t gap : {0, 3, 8}) {
      expect_sums.operator()<bfloat16>(N, width, gap);
      expect_sums.operator()<float>(N, width, gap);
      expect_sums.operator()<double>(N, width, gap);
    }
  }
}
}  // namespace
}  // namespace carousel::testing
