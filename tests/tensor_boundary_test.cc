#include "core/comm/tensor_boundary.h"

#include <atomic>
#include <mutex>

#include "tests/mesh_testing.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
constexpr int64_t kRows = 3, kW = 5;  // rows of one rank

double Value(int64_t rank, int64_t j) { return testing::Unit("rank " + std::to_string(rank), j); }

// The rank's tensor of `rows` rows.
std::vector<double> Values(int64_t rank, int64_t rows) {
  std::vector<double> x(static_cast<size_t>(rows * kW));
  for (size_t j = 0; j < x.size(); ++j) x[j] = Value(rank, static_cast<int64_t>(j));
  return x;
}
Tensor Rows(std::vector<double>& x) {
  return Tensor(x.data(), DType::kF64, {static_cast<int64_t>(x.size()) / kW, kW});
}

TEST(TensorBoundary, GathersTheRowsOfAllRanksInOrder) {
  for (const int64_t t : {2, 3, 4}) {
    for (const bool in_place : {false, true}) {
      RunLocalMesh({.tensor = t}, [&](const Mesh& mesh) {
        const TensorBoundary border(mesh.tensor);
        std::vector<double> mine = Values(border.index(), kRows),
                            scratch(static_cast<size_t>(9 * kRows * kW));
        const Tensor all = border.AllRows(Rows(scratch), Rows(mine));
        ASSERT_TRUE(all.HasShape({t * kRows, kW}));
        Tensor from = Rows(mine);
        if (in_place) {
          from = border.MyRows(all);
          std::copy(mine.begin(), mine.end(), from.as<double>());
        }
        border.GatherTokens(all, from);
        for (int64_t r = 0; r < t; ++r) {
          for (int64_t j = 0; j < kRows * kW; ++j) {
            ASSERT_EQ(all.as<double>()[r * kRows * kW + j], Value(r, j));
          }
        }
      });
    }
  }
}

TEST(TensorBoundary, SumsTheRowsThatEachRankKeeps) {
  for (const int64_t t : {2, 3, 4}) {
    RunLocalMesh({.tensor = t}, [&](const Mesh& mesh) {
      const TensorBoundary border(mesh.tensor);
      std::vector<double> all = Values(border.index(), t * kRows), mine(static_cast<size_t>(kRows * kW));
      border.SumTokens(Rows(mine), Rows(all));
      for (int64_t j = 0; j < kRows * kW; ++j) {
        double sum = 0;
        for (int64_t r = 0; r < t; ++r) sum += Value(r, border.index() * kRows * kW + j);
        ASSERT_EQ(mine[static_cast<size_t>(j)], sum);
      }
    });
  }
}

// <GatherTokens(x), y> over all ranks = <x, SumTokens(y)>.
TEST(TensorBoundary, TheTwoCrossingsAreConjugate) {
  constexpr int64_t kT = 4;
  std::vector<double> left(kT), right(kT);
  RunLocalMesh({.tensor = kT}, [&](const Mesh& mesh) {
    const TensorBoundary border(mesh.tensor);
    const int64_t r = border.index();
    std::vector<double> x = Values(r, kRows), y = Values(kT + r, kT * kRows), all_x(y.size()),
                        sum_y(x.size());
    border.GatherTokens(Rows(all_x), Rows(x));
    border.SumTokens(Rows(sum_y), Rows(y));
    left[static_cast<size_t>(r)] = testing::Dot(Rows(all_x), Rows(y));
    right[static_cast<size_t>(r)] = testing::Dot(Rows(x), Rows(sum_y));
  });
  const auto total = [](const std::vector<double>& x) { return x[0] + x[1] + x[2] + x[3]; };
  EXPECT_NEAR(total(left), total(right), 1e-12);
  EXPECT_NE(total(left), 0);
}

TEST(TensorBoundary, SumsWhatIsSmallForEveryRank) {
  RunLocalMesh({.tensor = 3}, [&](const Mesh& mesh) {
    std::vector<double> x = Values(mesh.tensor.index, kRows);
    TensorBoundary(mesh.tensor).Sum(Rows(x));
    for (size_t j = 0; j < x.size(); ++j) {
      const auto i = static_cast<int64_t>(j);
      ASSERT_EQ(x[j], Value(0, i) + Value(1, i) + Value(2, i));
    }
  });
}

TEST(TensorBoundary, OneRankHasNoBorder) {
  const TensorBoundary border{Axis()};
  std::vector<double> x = Values(0, kRows);
  const Tensor all = border.AllRows(Tensor(), Rows(x));
  EXPECT_EQ(all.data, x.data());
  EXPECT_EQ(border.MyRows(all).data, x.data());
  border.GatherTokens(all, Rows(x));
  border.SumTokens(Rows(x), all);
  border.Sum(Rows(x));
  EXPECT_EQ(x, Values(0, kRows));
  std::vector<double> copy = x;
  EXPECT_DEATH(border.GatherTokens(Rows(copy), Rows(x)), "");
}
}  // namespace
}  // namespace carousel
