#include "core/comm/conv_halo.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/mesh_testing.h"

namespace carousel {
namespace {

constexpr int64_t kElems = 6;
constexpr double kUntouched = -1;
using State = std::vector<double>;
Tensor StateTensor(State& state) { return Tensor(state.data(), DType::kF64, {1, 2, 3}); }

TEST(ConvHalo, PassesStatesToTheNextRankAndGradientsBack) {
  for (const int64_t S : {2, 3, 4}) {
    RunLocalMesh({.sequence = S}, [&](const Mesh& mesh) {
      const int64_t rank = mesh.sequence.index;
      const ConvHalo halo(mesh.sequence);
      EXPECT_EQ(halo.is_first(), rank == 0);
      EXPECT_EQ(halo.is_last(), rank == S - 1);

      State last(kElems, static_cast<double>(10 + rank)), initial(kElems, kUntouched);
      halo.PassOn(StateTensor(initial), StateTensor(last));
      EXPECT_EQ(initial, State(kElems, rank == 0 ? kUntouched : static_cast<double>(10 + rank - 1)));

      State dinitial(kElems, static_cast<double>(20 + rank)), dlast(kElems, kUntouched);
      halo.PassBack(StateTensor(dlast), StateTensor(dinitial));
      EXPECT_EQ(dlast, State(kElems, rank == S - 1 ? kUntouched : static_cast<double>(20 + rank + 1)));
    });
  }
}

TEST(ConvHalo, EndsOfTheChainNeedNoTensorForWhatDoesNotCome) {
  RunLocalMesh({.sequence = 2}, [](const Mesh& mesh) {
    const ConvHalo halo(mesh.sequence);
    State state(kElems, 5.0);
    halo.PassOn(halo.is_first() ? Tensor() : StateTensor(state),
                halo.is_last() ? Tensor() : StateTensor(state));
    EXPECT_EQ(state, State(kElems, 5.0));
  });
}

TEST(ConvHalo, OneRankDoesNothing) {
  const ConvHalo halo(Axis{});
  EXPECT_TRUE(halo.is_first());
  EXPECT_TRUE(halo.is_last());
  State a(kElems, 1.0), b(kElems, 2.0);
  halo.PassOn(StateTensor(a), StateTensor(b));
  halo.PassBack(StateTensor(a), StateTensor(b));
  EXPECT_EQ(a, State(kElems, 1.0));
  EXPECT_EQ(b, State(kElems, 2.0));
}
}  // namespace
}  // namespace carousel
