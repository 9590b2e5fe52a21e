// The kernels beside the library's matrix products (kernels/cuda/matmul_kernels.h), which run on a GPU only
// where the library refuses something, and the strided batches of MatmulEngine: on the emulation, against
// plain loops.
#include "kernels/cuda/matmul_kernels.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/base/random.h"
#include "tests/simt_testing.h"

namespace carousel::simt {
namespace {
using ::carousel::testing::DeviceArray;

template <class T>
std::vector<T> Integers(uint64_t stream, int64_t count) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = RandomUint64(43, stream, static_cast<uint64_t>(i));
    values.push_back(static_cast<T>(static_cast<Wide<T>>(static_cast<int>(bits % 7) - 3)));
  }
  return values;
}
template <class T>
double Number(T value) {
  return static_cast<double>(static_cast<Wide<T>>(value));
}

// The operands of a product in device memory, and the product by plain loops.
template <class T, class C>
struct Case {
  Case(int64_t M, int64_t N, int64_t K, int64_t batch, int flags, int64_t gap)
      : M(M), N(N), K(K), batch(batch), flags(flags), gap(gap) {}

  bool transpose_a() const { return (flags & 1) != 0; }
  bool transpose_b() const { return (flags & 2) != 0; }
  bool accumulate() const { return (flags & 4) != 0; }
  bool has_bias() const { return (flags & 8) != 0; }
  // Matrices of a batch stand side by side, as the blocks of a block-diagonal map do.
  int64_t lda() const { return batch * (transpose_a() ? M : K) + gap; }
  int64_t ldb() const { return (transpose_b() ? K : N) + gap; }
  int64_t ldc() const { return batch * N + gap; }
  int64_t b_rows() const { return transpose_b() ? N : K; }

  MatmulProduct product() const {
    return {.c = {.data = c.get(), .dtype = DTypeOf<C>::value, .row_stride = ldc(), .batch_stride = N},
            .a = {.data = a.get(),
                  .dtype = DTypeOf<T>::value,
                  .row_stride = lda(),
                  .batch_stride = transpose_a() ? M : K},
            .b = {.data = b.get(),
                  .dtype = DTypeOf<T>::value,
                  .row_stride = ldb(),
                  .batch_stride = b_rows() * ldb()},
            .bias = {.data = has_bias() ? bias.get() : nullptr,
                     .dtype = DTypeOf<Wide<T>>::value,
                     .batch_stride = N},
            .M = M,
            .N = N,
            .K = K,
            .batch = batch,
            .transpose_a = transpose_a(),
            .transpose_b = transpose_b(),
            .accumulate = accumulate()};
  }
  // Sums of products alone.
  double Sum(int64_t i, int64_t row, int64_t column) const {
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at_a = transpose_a() ? k * lda() + i * M + row : row * lda() + i * K + k;
      const int64_t at_b = i * b_rows() * ldb() + (transpose_b() ? column * ldb() + k : k * ldb() + column);
      sum += Number(a[at_a]) * Number(b[at_b]);
    }
    return sum;
  }
  // c is what the product gives, and nothing between its rows was written.
  void Expect(const std::vector<C>& before, bool with_sums) const {
    SCOPED_TRACE(std::string(NameOf(DTypeOf<T>::value)) + " to " + NameOf(DTypeOf<C>::value) + " " +
                 std::to_string(M) + "x" + std::to_string(N) + "x" + std::to_string(K) + ", batch " +
                 std::to_string(batch) + ", flags " + std::to_string(flags) + ", gap " + std::to_string(gap));
    const std::vector<C> after = c.values();
    for (int64_t row = 0; row < M; ++row) {
      for (int64_t e = 0; e < ldc(); ++e) {
        const int64_t i = e / N, column = e % N;
        double want = Number(before[row * ldc() + e]);
        if (e < batch * N) {
          if (!accumulate()) want = 0;
          if (with_sums) want += Sum(i, row, column);
          if (has_bias()) want += Number(bias[i * N + column]);
          want = Number(static_cast<C>(static_cast<Wide<C>>(want)));
        }
        ASSERT_EQ(Number(after[row * ldc() + e]), want) << "row " << row << " element " << e;
      }
    }
  }

  const int64_t M, N, K, batch;
  const int flags;
  const int64_t gap;
  const DeviceArray<T> a{Integers<T>(1, (transpose_a() ? K : M) * lda())};
  const DeviceArray<T> b{Integers<T>(2, batch* b_rows() * ldb())};
  const DeviceArray<C> c{Integers<C>(3, M* ldc())};
  const DeviceArray<Wide<T>> bias{Integers<Wide<T>>(4, batch* N)};
};

class MatmulKernels : public ::testing::Test {
 protected:
  MatmulKernels() { CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"); }
  ~MatmulKernels() override { cudaStreamDestroy(stream_); }
  void Wait() { CheckCuda(cudaStreamSynchronize(stream_), "the kernels"); }
  // body.operator()<T, C>() for every pair of types that a product may have.
  template <class Body>
  void ForEveryType(Body&& body) {
    body.template operator()<bfloat16, float>();
    body.template operator()<bfloat16, bfloat16>();
    body.template operator()<float, float>();
    body.template operator()<double, double>();
  }
  cudaStream_t stream_ = nullptr;
};

TEST_F(MatmulKernels, MultiplyAnyLayoutWithoutTheLibrary) {
  ForEveryType([&]<class T, class C>() {
    for (int flags = 0; flags < 16; ++flags) {
      const int64_t batch = 1 + flags % 3;
      const Case<T, C> any(70, 35, 21, batch, flags, flags % 4);
      PlainProduct(any.product(), stream_);
      Wait();
      any.Expect(Integers<C>(3, any.M * any.ldc()), /*with_sums=*/true);
    }
    const Case<T, C> one(1, 1, 1, 1, 4, 0), tiles(64, 128, 33, 2, 1, 0);
    PlainProduct(one.product(), stream_);
    PlainProduct(tiles.product(), stream_);
    Wait();
    one.Expect(Integers<C>(3, one.M * one.ldc()), /*with_sums=*/true);
    tiles.Expect(Integers<C>(3, tiles.M * tiles.ldc()), /*with_sums=*/true);
  });
}

TEST_F(MatmulKernels, StartRowsWithTheirBias) {
  ForEveryType([&]<class T, class C>() {
    for (const int flags : {0, 4, 8, 12}) {
      for (const int64_t N : {1, 45, 2500}) {
        const Case<T, C> any(13, N, 2, 2, flags, 3);
        StartRows(any.product(), stream_);
        Wait();
        any.Expect(Integers<C>(3, any.M * any.ldc()), /*with_sums=*/false);
      }
    }
  });
}

TEST_F(MatmulKernels, FinishRowsFromSumsInF32) {
  const auto expect = [&]<class C>() {
    for (const int flags : {0, 4, 8, 12}) {
      const Case<bfloat16, C> any(13, 45, 6, 2, flags, 3);
      std::vector<float> sums;
      for (int64_t i = 0; i < any.batch; ++i) {
        for (int64_t e = 0; e < any.M * any.N; ++e) {
          sums.push_back(static_cast<float>(any.Sum(i, e / any.N, e % any.N)));
        }
      }
      const DeviceArray<float> staged(sums);
      FinishRows(any.product(), staged.get(), stream_);
      Wait();
      any.Expect(Integers<C>(3, any.M * any.ldc()), /*with_sums=*/true);
    }
  };
  expect.operator()<bfloat16>();
  expect.operator()<float>();
}

TEST_F(MatmulKernels, AgreeWithTheEngineOnBatches) {
  MatmulEngine engine(stream_, DeviceInfo());
  ForEveryType([&]<class T, class C>() {
    for (int flags = 0; flags < 16; ++flags) {
      const Case<T, C> any(33, 20, 18, 1 + flags % 4, flags, flags % 3);
      engine.Run(any.product());
      Wait();
      any.Expect(Integers<C>(3, any.M * any.ldc()), /*with_sums=*/true);
    }
  });
}

// One b and one bias for all products of a batch.
TEST_F(MatmulKernels, ShareAnOperandWhoseStrideIsZero) {
  MatmulEngine engine(stream_, DeviceInfo());
  const int64_t M = 3, N = 4, K = 5, batch = 3;
  const std::vector<float> a = Integers<float>(5, batch * M * K), b = Integers<float>(6, K * N);
  const DeviceArray<float> a_device(a), b_device(b), bias(Integers<float>(7, N));
  std::vector<std::vector<float>> results;
  for (const bool library : {false, true}) {
    const DeviceArray<float> c(std::vector<float>(batch * M * N));
    const MatmulProduct p = {
        .c = {.data = c.get(), .row_stride = N, .batch_stride = M * N},
        .a = {.data = a_device.get(), .row_stride = K, .batch_stride = M * K},
        .b = {.data = b_device.get(), .row_stride = N},
        .bias = {.data = bias.get()},
        .M = M,
        .N = N,
        .K = K,
        .batch = batch,
    };
    library ? engine.Run(p) : PlainProduct(p, stream_);
    Wait();
    results.push_back(c.values());
  }
  EXPECT_EQ(results[0], results[1]);
  for (int64_t e = 0; e < batch * M * N; ++e) {
    float want = bias[e % N];
    for (int64_t k = 0; k < K; ++k) want += a[e / N * K + k] * b[k * N + e % N];
    EXPECT_EQ(results[0][e], want) << e;
  }
}

// The library would read a stranger's memory without a word.
TEST_F(MatmulKernels, ReportOperandsOutsideOfDeviceMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto multiply = [&](int64_t K) {
    MatmulEngine engine(stream_, DeviceInfo());
    const DeviceArray<float> a(std::vector<float>(12)), b(std::vector<float>(64)), c(std::vector<float>(64));
    engine.Run({.c = {.data = c.get(), .row_stride = 4},
                .a = {.data = a.get(), .row_stride = K},
                .b = {.data = b.get(), .row_stride = 4},
                .M = 3,
                .N = 4,
                .K = K});
    Wait();
  };
  multiply(4);
  EXPECT_DEATH(multiply(5), "row 2 of a lies outside of device memory");
}
}  // namespace
}  // namespace carousel::simt
