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
    std::vector<T> space(static_cast<size_t>(exchange.WorkspaceElems(rows, c.W)));
    const Tensor workspace(space.data(), DTypeOf<T>::value, {static_cast<int64_t>(space.size())});
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

// <ToHeads(x), g> = <x, ToTokens(g)>, summed over ranks: each is the other's gradient.
TEST(HeadExchange, EachDirectionIsTheGradientOfTheOther) {
  for (const Case& c : kCases) {
    OnRanks(c.P, [&](const Axis& axis, Ops& ops) {
      const HeadExchange exchange(axis);
      const int64_t rows = c.local_rows(), columns = c.local_columns();
      std::vector<double> space(static_cast<size_t>(exchange.WorkspaceElems(rows, c.W)));
      const Tensor workspace(space.data(), DType::kF64, {static_cast<int64_t>(space.size())});
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
  EXPECT_EQ(exchange.WorkspaceElems(6, 4), 0);
  Matrix<float> x(6, 4, 1);
  exchange.ToHeads(device->ops(), x.tensor(), x.tensor(), 2, Tensor());
  exchange.ToTokens(device->ops(), x.tensor(), x.tensor(), 2, Tensor());
  EXPECT_EQ(x.at(0, 0), -1.0f);
}

TEST(HeadExchange, SendsOnceWhatOtherRanksNeed) {
  CountingCommunicator counting(/*rank=*/1, /*size=*/4);
  const Axis axis = {.size = 4, .index = 1, .communicator = &counting};
  std::string error;
  const std::unique_ptr<Device> device = MakeDevice("cpu", 1, &error);
  ASSERT_NE(device, nullptr) << error;
  const HeadExchange exchange(axis);
  Matrix<float> tokens(6, 8, 0), heads(24, 2, 0), space(1, exchange.WorkspaceElems(6, 8), 0);
  exchange.ToHeads(device->ops(), heads.tensor(), tokens.tensor(), 2, space.tensor());
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
  Matrix<float> tokens(6, 10, 0), heads(24, 2, 0), space(1, 1000, 0);
  EXPECT_DEATH(exchange.ToHeads(device->ops(), heads.tensor(), tokens.tensor(), 2, space.tensor()), "CHECK");
}
}  // namespace
}  // namespace carousel
