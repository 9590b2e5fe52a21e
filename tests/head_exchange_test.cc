#include "core/comm/head_exchange.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "core/base/random.h"
#include "kernels/make_device.h"
#include "parallel/counting_communicator.h"
#include "tests/mesh_testing.h"

namespace carousel {
namespace {

// B sequences of T tokens of W columns, of P ranks.
struct Case {
  int P;
  int64_t B, T, W;
  int64_t local_rows() const { return B * T / P; }
  int64_t local_columns() const { return W / P; }
};
const Case kCases[] = {{2, 1, 6, 4}, {2, 3, 4, 10}, {4, 1, 8, 8}, {4, 2, 4, 12}, {3, 5, 9, 6}};

// The value of the whole tensor's element.
double Value(int64_t b, int64_t t, int64_t w) { return static_cast<double>((b * 100 + t) * 100 + w + 1); }

// A rank-2 tensor in memory of its own, its rows `padding` elements apart, which must stay as they are.
template <class T>
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int64_t padding)
      : stride_(columns + padding), values_(static_cast<size_t>(rows * stride_), static_cast<T>(-1.0f)) {
    tensor_ = Tensor(values_.data(), DTypeOf<T>::value, {rows, stride_}).Columns(0, columns);
  }
  Tensor tensor() const { return tensor_; }
  T& at(int64_t row, int64_t column) { return values_[static_cast<size_t>(row * stride_ + column)]; }
  int64_t NumChangedOutside() {
    int64_t count = 0;
    for (int64_t r = 0; r < tensor_.dim[0]; ++r) {
      for (int64_t c = tensor_.dim[1]; c < stride_; ++c) {
        count += static_cast<Wide<T>>(at(r, c)) != Wide<T>{-1};
      }
    }
    return count;
  }

 private:
  int64_t stride_;
  std::vector<T> values_;
  Tensor tensor_;
};

// The two halves of a workspace.
class Buffers {
 public:
  explicit Buffers(int64_t bytes) : space_(static_cast<size_t>(2 * bytes + 1)) {
    const Tensor both(space_.data(), DType::kU8, {2 * bytes});
    workspace_ = {.sent = both.Rows(0, bytes), .received = both.Rows(bytes, bytes)};
  }
  const HeadExchange::Workspace& workspace() const { return workspace_; }

 private:
  std::vector<uint8_t> space_;
  HeadExchange::Workspace workspace_;
};

// `body` on P ranks, each with an axis and ops of its own.
void OnRanks(int P, const std::function<void(const Axis&, Ops&)>& body) {
  RunLocalMesh({.sequence = P}, [&](const Mesh& mesh) {
    std::string error;
    const std::unique_ptr<Device> device = MakeDevice("cpu", 1, &error);
    ASSERT_NE(device, nullptr) << error;
    body(mesh.sequence, device->ops());
  });
}

// Runs both directions of every case and layout in T's arithmetic; values are whole numbers that bf16 rounds
// alike everywhere.
template <class T>
void ExpectExchange(const Case& c, int64_t heads_padding, int64_t tokens_padding) {
  OnRanks(c.P, [&](const Axis& axis, Ops& ops) {
    const HeadExchange exchange(axis);
    const int64_t rank = axis.index;
    const int64_t rows = c.local_rows(), columns = c.local_columns(), tokens_per_rank = c.T / c.P;
    const Buffers buffers(exchange.BufferBytes(rows, {{.dtype = DTypeOf<T>::value, .width = c.W}}));
    const HeadExchange::Workspace& workspace = buffers.workspace();
    Matrix<T> tokens(rows, c.W, tokens_padding), heads(c.B * c.T, columns, heads_padding);
    const auto value = [](int64_t b, int64_t t, int64_t w) {
      return static_cast<T>(static_cast<Wide<T>>(Value(b, t, w)));
    };
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t w = 0; w < c.W; ++w) {
        tokens.at(n, w) = value(n / tokens_per_rank, rank * tokens_per_rank + n % tokens_per_rank, w);
      }
    }
    exchange.ToHeads(ops, heads.tensor(), tokens.tensor(), c.B, workspace);
    for (int64_t n = 0; n < c.B * c.T; ++n) {
      for (int64_t w = 0; w < columns; ++w) {
        ASSERT_EQ(static_cast<Wide<T>>(heads.at(n, w)),
                  static_cast<Wide<T>>(value(n / c.T, n % c.T, rank * columns + w)))
            << "row " << n << " column " << w << " of rank " << rank;
      }
    }
    EXPECT_EQ(heads.NumChangedOutside(), 0);

    Matrix<T> back(rows, c.W, tokens_padding);
    exchange.ToTokens(ops, back.tensor(), heads.tensor(), c.B, workspace);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t w = 0; w < c.W; ++w) {
        ASSERT_EQ(static_cast<Wide<T>>(back.at(n, w)), static_cast<Wide<T>>(tokens.at(n, w)));
      }
    }
    EXPECT_EQ(back.NumChangedOutside(), 0);
  });
}

TEST(HeadExchange, GivesEachRankAllTokensOfItsColumnsAndBack) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "P " << c.P << " B " << c.B << " T " << c.T << " W " << c.W);
    ExpectExchange<float>(c, 0, 0);
    ExpectExchange<double>(c, 0, 0);
    ExpectExchange<bfloat16>(c, 0, 0);
  }
}

TEST(HeadExchange, LeavesWhatLiesBetweenTheRowsOfStridedTensors) {
  for (const Case& c : kCases) {
    ExpectExchange<float>(c, 3, 0);
    ExpectExchange<float>(c, 0, 5);
    ExpectExchange<double>(c, 2, 1);
  }
}

// Five tensors of two dtypes, three and two of them side by side in `heads`, as an mLSTM cell has them: one
// call, and each tensor as by itself. `odd`: widths whose blocks end between two elements of the larger type.
template <class Small, class Large>
void ExpectFusedExchange(const Case& c, bool odd, int64_t padding) {
  const int64_t widths[] = {c.W, c.W, odd ? 3 * c.P : 2 * c.W, c.P,
                            c.P};  // small, small, small, large, large
  OnRanks(c.P, [&](const Axis& axis, Ops& ops) {
    const HeadExchange exchange(axis);
    const int64_t rows = c.local_rows(), rank = axis.index, tokens_per_rank = c.T / c.P;
    const int64_t small_width = widths[0] + widths[1] + widths[2], large_width = widths[3] + widths[4];
    const std::vector<HeadExchange::Columns> columns = {
        {.dtype = DTypeOf<Large>::value, .width = large_width},
        {.dtype = DTypeOf<Small>::value, .width = small_width}};
    const Buffers buffers(exchange.BufferBytes(rows, columns));
    // Whole numbers, different for all elements of all five tensors, or to within bf16's 8 bits.
    const auto value = [&](int tensor, int64_t b, int64_t t, int64_t w) {
      return static_cast<double>(((tensor * 3 + b) * 7 + t) * 5 + w);
    };
    std::vector<Matrix<Small>> small, small_back;
    std::vector<Matrix<Large>> large, large_back;
    const auto fill = [&](auto& matrix, int tensor) {
      for (int64_t n = 0; n < rows; ++n) {
        for (int64_t w = 0; w < matrix.tensor().dim[1]; ++w) {
          using T = std::decay_t<decltype(matrix.at(0, 0))>;
          matrix.at(n, w) = static_cast<T>(static_cast<Wide<T>>(
              value(tensor, n / tokens_per_rank, rank * tokens_per_rank + n % tokens_per_rank, w)));
        }
      }
    };
    for (int j = 0; j < 3; ++j) {
      small.emplace_back(rows, widths[j], padding);
      small_back.emplace_back(rows, widths[j], padding);
      fill(small.back(), j);
    }
    for (int j = 3; j < 5; ++j) {
      large.emplace_back(rows, widths[j], padding);
      large_back.emplace_back(rows, widths[j], padding);
      fill(large.back(), j);
    }
    Matrix<Small> small_heads(c.B * c.T, small_width / c.P, padding);
    Matrix<Large> large_heads(c.B * c.T, large_width / c.P, 0);
    const auto parts = [&](std::vector<Matrix<Small>>& s, std::vector<Matrix<Large>>& l) {
      return std::vector<HeadExchange::Fused>{
          {.heads = large_heads.tensor(), .tokens = {l[0].tensor(), l[1].tensor()}},
          {.heads = small_heads.tensor(), .tokens = {s[0].tensor(), s[1].tensor(), s[2].tensor()}}};
    };
    const int64_t calls_before = axis.communicator->recorder().num_calls();
    exchange.ToHeads(ops, parts(small, large), c.B, buffers.workspace());
    exchange.ToTokens(ops, parts(small_back, large_back), c.B, buffers.workspace());
    EXPECT_EQ(axis.communicator->recorder().num_calls() - calls_before, 2);
    const auto check_heads = [&](auto& heads, int first_tensor, int num_tensors) {
      using T = std::decay_t<decltype(heads.at(0, 0))>;
      int64_t first_column = 0;
      for (int j = first_tensor; j < first_tensor + num_tensors; ++j) {
        const int64_t mine = widths[j] / c.P;
        for (int64_t n = 0; n < c.B * c.T; ++n) {
          for (int64_t w = 0; w < mine; ++w) {
            const T expected =
                static_cast<T>(static_cast<Wide<T>>(value(j, n / c.T, n % c.T, rank * mine + w)));
            ASSERT_EQ(static_cast<Wide<T>>(heads.at(n, first_column + w)), static_cast<Wide<T>>(expected))
                << "tensor " << j << " row " << n << " column " << w << " of rank " << rank;
          }
        }
        first_column += mine;
      }
      EXPECT_EQ(heads.NumChangedOutside(), 0);
    };
    check_heads(small_heads, 0, 3);
    check_heads(large_heads, 3, 2);
    const auto check_back = [&](auto& matrices, auto& back) {
      for (size_t j = 0; j < matrices.size(); ++j) {
        for (int64_t n = 0; n < rows; ++n) {
          for (int64_t w = 0; w < matrices[j].tensor().dim[1]; ++w) {
            using T = std::decay_t<decltype(back[j].at(0, 0))>;
            ASSERT_EQ(static_cast<Wide<T>>(back[j].at(n, w)), static_cast<Wide<T>>(matrices[j].at(n, w)));
          }
        }
        EXPECT_EQ(back[j].NumChangedOutside(), 0);
      }
    };
    check_back(small, small_back);
    check_back(large, large_back);
  });
}

TEST(HeadExchange, CarriesTensorsOfTwoDtypesInOneCall) {
  for (const Case& c : kCases) {
    for (const bool odd : {false, true}) {
      SCOPED_TRACE(testing::Message() << "P " << c.P << " B " << c.B << " T " << c.T << " W " << c.W);
      ExpectFusedExchange<bfloat16, float>(c, odd, 0);
      ExpectFusedExchange<bfloat16, float>(c, odd, 3);
      ExpectFusedExchange<float, float>(c, odd, 0);
      ExpectFusedExchange<double, double>(c, odd, 2);
    }
  }
}

TEST(HeadExchange, ABlockIsWhatIsSentToOneRankInWholeElements) {
  const auto bytes = [](int64_t P, int64_t rows, int64_t wide, int64_t narrow) {
    return HeadExchange::BlockBytes(
        P, rows, {{.dtype = DType::kF32, .width = wide}, {.dtype = DType::kBF16, .width = narrow}});
  };
  EXPECT_EQ(bytes(2, 6, 4, 36), 6 * (2 * 4 + 18 * 2));
  EXPECT_EQ(bytes(4, 3, 8, 20), 3 * (2 * 4 + 5 * 2) + 2);  // fifteen bf16: up to the next f32
  EXPECT_EQ(HeadExchange::BlockBytes(2, 3, {{.dtype = DType::kBF16, .width = 10}}), 3 * 5 * 2);
  // A larger type behind a smaller one begins at its own multiple.
  EXPECT_EQ(
      HeadExchange::BlockBytes(1, 1, {{.dtype = DType::kU8, .width = 3}, {.dtype = DType::kF64, .width = 2}}),
      8 + 16);
}

// What has been packed may lie where the answer arrives.
TEST(HeadExchange, TakesHeadsFromTheMemoryThatItReceivesInto) {
  const Case c = {2, 1, 4, 4};
  OnRanks(c.P, [&](const Axis& axis, Ops& ops) {
    const HeadExchange exchange(axis);
    const int64_t rows = c.local_rows();
    const Buffers buffers(exchange.BufferBytes(
        rows, {{.dtype = DType::kF32, .width = c.W}, {.dtype = DType::kF32, .width = c.W}}));
    const Tensor received(buffers.workspace().received.data, DType::kF32, {2 * c.T, c.W / c.P});
    for (int64_t j = 0; j < received.num_elems(); ++j) {
      received.as<float>()[j] = static_cast<float>(100 * axis.index + j);
    }
    Matrix<float> first(rows, c.W, 0), second(rows, c.W, 0);
    exchange.ToTokens(ops,
                      {{.heads = received.Rows(0, c.T), .tokens = {first.tensor()}},
                       {.heads = received.Rows(c.T, c.T), .tokens = {second.tensor()}}},
                      c.B, buffers.workspace());
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t w = 0; w < c.W; ++w) {
        // Column w is column w % 2 of rank w / 2, whose row is this rank's n.
        const auto at = static_cast<float>(100 * (w / 2) + (axis.index * rows + n) * 2 + w % 2);
        EXPECT_EQ(first.at(n, w), at);
        EXPECT_EQ(second.at(n, w), at + static_cast<float>(c.T * 2));
      }
    }
  });
}

// <ToHeads(x), g> = <x, ToTokens(g)>, summed over ranks: each is the other's gradient.
TEST(HeadExchange, EachDirectionIsTheGradientOfTheOther) {
  for (const Case& c : kCases) {
    OnRanks(c.P, [&](const Axis& axis, Ops& ops) {
      const HeadExchange exchange(axis);
      const int64_t rows = c.local_rows(), columns = c.local_columns();
      const Buffers buffers(exchange.BufferBytes(rows, {{.dtype = DType::kF64, .width = c.W}}));
      const HeadExchange::Workspace& workspace = buffers.workspace();
      Matrix<double> x(rows, c.W, 0), y(c.B * c.T, columns, 0), dx(rows, c.W, 0), dy(c.B * c.T, columns, 0);
      uint64_t draw = static_cast<uint64_t>(axis.index) << 32;
      const auto fill = [&](Matrix<double>& m) {
        for (int64_t j = 0; j < m.tensor().num_elems(); ++j) {
          m.tensor().as<double>()[j] = RandomUniform(7, StreamOf("exchange"), draw++) - 0.5;
        }
      };
      fill(x);
      fill(dy);
      exchange.ToHeads(ops, y.tensor(), x.tensor(), c.B, workspace);
      exchange.ToTokens(ops, dx.tensor(), dy.tensor(), c.B, workspace);
      double products[2] = {};
      for (int64_t j = 0; j < x.tensor().num_elems(); ++j) {
        products[0] += y.tensor().as<double>()[j] * dy.tensor().as<double>()[j];
        products[1] += x.tensor().as<double>()[j] * dx.tensor().as<double>()[j];
      }
      axis.communicator->AllReduceSum(Tensor(products, DType::kF64, {2}));
      EXPECT_NEAR(products[0], products[1], 1e-13);
      EXPECT_GT(std::abs(products[0]), 1e-3);
    });
  }
}

TEST(HeadExchange, OneRankCopiesNothing) {
  std::string error;
  const std::unique_ptr<Device> device = MakeDevice("cpu", 1, &error);
  ASSERT_NE(device, nullptr) << error;
  const HeadExchange exchange(Axis{});
  EXPECT_EQ(exchange.BufferBytes(6, {{.dtype = DType::kF32, .width = 4}}), 0);
  Matrix<float> x(6, 4, 1);
  exchange.ToHeads(device->ops(), x.tensor(), x.tensor(), 2, {});
  exchange.ToTokens(device->ops(), x.tensor(), x.tensor(), 2, {});
  EXPECT_EQ(x.at(0, 0), -1.0f);
}

TEST(HeadExchange, SendsOnceWhatOtherRanksNeed) {
  CountingCommunicator counting(/*rank=*/1, /*size=*/4);
  const Axis axis = {.size = 4, .index = 1, .communicator = &counting};
  std::string error;
  const std::unique_ptr<Device> device = MakeDevice("cpu", 1, &error);
  ASSERT_NE(device, nullptr) << error;
  const HeadExchange exchange(axis);
  Matrix<float> tokens(6, 8, 0), heads(24, 2, 0);
  const Buffers buffers(exchange.BufferBytes(6, {{.dtype = DType::kF32, .width = 8}}));
  exchange.ToHeads(device->ops(), heads.tensor(), tokens.tensor(), 2, buffers.workspace());
  EXPECT_EQ(counting.Totals().total.num_calls, 1);
  EXPECT_EQ(counting.Totals().total.wire_bytes, 6 * 8 * 4 * 3 / 4);
}

TEST(HeadExchangeDeathTest, RefusesWidthsThatDoNotDivide) {
  CountingCommunicator counting(/*rank=*/0, /*size=*/4);
  const Axis axis = {.size = 4, .index = 0, .communicator = &counting};
  std::string error;
  const std::unique_ptr<Device> device = MakeDevice("cpu", 1, &error);
  ASSERT_NE(device, nullptr) << error;
  const HeadExchange exchange(axis);
  Matrix<float> tokens(6, 10, 0), heads(24, 2, 0);
  const Buffers buffers(10000);
  EXPECT_DEATH(exchange.ToHeads(device->ops(), heads.tensor(), tokens.tensor(), 2, buffers.workspace()),
               "CHECK");
}
}  // namespace
}  // namespace carousel
