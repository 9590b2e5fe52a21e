// A vocabulary cut into parts: the loss from the parts' statistics, and the embedding, against the same ops
// on all of it. On every path of the CPU backend.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "tests/op_testing.h"

namespace carousel::testing {
namespace {
using cpu::CpuDevice;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Losses {
  std::vector<double> loss;
  std::vector<std::vector<double>> dlogits;  // row by row
  std::vector<int> correct;
};

Tensor Ids(std::vector<int32_t>& ids) {
  return Tensor(ids.data(), DType::kI32, {static_cast<int64_t>(ids.size())});
}
// Columns [begin, begin + count) of x, as a matrix of its own.
Matrix Columns(const Matrix& x, int64_t begin, int64_t count) {
  Matrix part(x.t().dtype, x.t().dim[0], count);
  for (int64_t r = 0; r < part.t().dim[0]; ++r) {
    for (int64_t c = 0; c < count; ++c) part.Set(r, c, x.Get(r, begin + c));
  }
  return part;
}

Losses Whole(Ops& ops, DType compute, const Matrix& logits, std::vector<int32_t> targets, double soft_cap) {
  const int64_t n = logits.t().dim[0], V = logits.t().dim[1];
  Matrix loss(WideOf(compute), 1, n), dlogits(compute, n, V);
  std::vector<uint8_t> correct(static_cast<size_t>(n), 7);
  ops.CrossEntropy({.loss = loss.As({n}),
                    .dlogits = dlogits.t(),
                    .logits = logits.t(),
                    .targets = Ids(targets),
                    .correct = Tensor(correct.data(), DType::kU8, {n}),
                    .soft_cap = soft_cap});
  Losses result;
  for (int64_t r = 0; r < n; ++r) {
    result.loss.push_back(loss.Get(0, r));
    result.correct.push_back(correct[static_cast<size_t>(r)]);
    result.dlogits.emplace_back();
    for (int64_t c = 0; c < V; ++c) result.dlogits.back().push_back(dlogits.Get(r, c));
  }
  return result;
}

// The same in parts; every part must find the same loss and the same answers.
Losses InParts(Ops& ops, DType compute, const Matrix& logits, std::vector<int32_t> targets, double soft_cap,
               int64_t parts) {
  const DType wide = WideOf(compute);
  const int64_t n = logits.t().dim[0], V = logits.t().dim[1] / parts;
  Matrix stats(wide, parts * n, 4);
  for (int64_t p = 0; p < parts; ++p) {
    const Matrix part = Columns(logits, p * V, V);
    ops.CrossEntropyStats({.stats = stats.t().Rows(p * n, n),
                           .logits = part.t(),
                           .targets = Ids(targets),
                           .first_id = p * V,
                           .soft_cap = soft_cap});
  }
  Losses result;
  result.dlogits.resize(static_cast<size_t>(n));
  for (int64_t p = 0; p < parts; ++p) {
    const Matrix part = Columns(logits, p * V, V);
    Matrix loss(wide, 1, n), alone(wide, 1, n), dlogits(compute, n, V);
    std::vector<uint8_t> correct(static_cast<size_t>(n), 7);
    CrossEntropyFromStatsArgs args = {.loss = loss.As({n}),
                                      .dlogits = dlogits.t(),
                                      .correct = Tensor(correct.data(), DType::kU8, {n}),
                                      .stats = stats.t(),
                                      .num_parts = parts,
                                      .logits = part.t(),
                                      .targets = Ids(targets),
                                      .first_id = p * V,
                                      .soft_cap = soft_cap};
    ops.CrossEntropyFromStats(args);
    args.loss = alone.As({n});
    args.dlogits = args.correct = {};
    ops.CrossEntropyFromStats(args);
    Losses here;
    for (int64_t r = 0; r < n; ++r) {
      here.loss.push_back(loss.Get(0, r));
      here.correct.push_back(correct[static_cast<size_t>(r)]);
      for (int64_t c = 0; c < V; ++c) result.dlogits[static_cast<size_t>(r)].push_back(dlogits.Get(r, c));
      if (compute != DType::kBF16 && !std::isnan(loss.Get(0, r))) {
        EXPECT_EQ(alone.Get(0, r), loss.Get(0, r)) << "the gradient changes the loss";
      }
    }
    if (p == 0) {
      result.loss = here.loss;
      result.correct = here.correct;
    }
    EXPECT_EQ(here.correct, result.correct) << "part " << p;
    for (int64_t r = 0; r < n; ++r) {
      const double a = here.loss[static_cast<size_t>(r)], b = result.loss[static_cast<size_t>(r)];
      EXPECT_TRUE(a == b || (std::isnan(a) && std::isnan(b))) << "part " << p << " row " << r;
    }
  }
  return result;
}

// `size`: of the numbers whose difference a loss is.
void ExpectEqual(const Losses& got, const Losses& want, DType compute, double size, const std::string& what) {
  SCOPED_TRACE(what);
  const double epsilon = compute == DType::kF64 ? 1e-13 / 30 : 0x1p-23 * 4;
  const double rounding = compute == DType::kBF16 ? 0x1p-7 : 0;
  EXPECT_EQ(got.correct, want.correct);
  ASSERT_EQ(got.loss.size(), want.loss.size());
  for (size_t r = 0; r < want.loss.size(); ++r) {
    if (std::isnan(want.loss[r])) {
      EXPECT_TRUE(std::isnan(got.loss[r])) << "row " << r << " is " << got.loss[r];
      continue;
    }
    if (std::isinf(want.loss[r])) {
      EXPECT_EQ(got.loss[r], want.loss[r]) << r;
    } else {
      EXPECT_NEAR(got.loss[r], want.loss[r], epsilon * size) << "row " << r;
    }
    for (size_t c = 0; c < want.dlogits[r].size(); ++c) {
      const double a = got.dlogits[r][c], b = want.dlogits[r][c];
      if (std::isnan(b)) {
        EXPECT_TRUE(std::isnan(a)) << "row " << r << " column " << c;
      } else {
        EXPECT_NEAR(a, b, epsilon * size + rounding * std::abs(b)) << "row " << r << " column " << c;
      }
    }
  }
}

// Every number of parts against the whole, on every path.
void ExpectPartsEqualTheWhole(int64_t n, int64_t V, const std::vector<double>& values,
                              const std::vector<int32_t>& targets, double soft_cap, double size,
                              const std::string& what) {
  for (const OpPath& path : AllOpPaths()) {
    CpuDevice device(path.options);
    Matrix logits(WideOf(path.compute), n, V);
    for (int64_t i = 0; i < n * V; ++i) logits.Set(i / V, i % V, values[static_cast<size_t>(i)]);
    const Losses whole = Whole(device.ops(), path.compute, logits, targets, soft_cap);
    for (const int64_t parts : {1, 2, 3, 4, 6, 12}) {
      if (V % parts != 0) continue;
      ExpectEqual(InParts(device.ops(), path.compute, logits, targets, soft_cap, parts), whole, path.compute,
                  size, what + ", " + path.name + ", parts " + std::to_string(parts));
    }
  }
}
std::vector<double> Random(int64_t count, double range) {
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back((2 * RandomUniform(11, 0, static_cast<uint64_t>(i)) - 1) * range);
  }
  return values;
}

TEST(VocabularyParts, EqualTheWholeWhereverTheTargetIs) {
  for (const int64_t V : {12, 24, 108, 1200}) {
    std::vector<int32_t> targets;
    for (int64_t r = 0; r < 26; ++r)
      targets.push_back(static_cast<int32_t>(r % 13 == 12 ? -1 - r : r * (V - 1) / 25));
    for (const double soft_cap : {0.0, 30.0}) {
      ExpectPartsEqualTheWhole(26, V, Random(26 * V, 12), targets, soft_cap, 20,
                               "V " + std::to_string(V) + " cap " + std::to_string(soft_cap));
    }
  }
}

TEST(VocabularyParts, EqualTheWholeForLogitsOfVeryDifferentSize) {
  std::vector<double> values = Random(6 * 24, 1);
  // one part's logits are so small that its sum vanishes beside another's, or so large that it is alone
  for (int64_t r = 0; r < 6; ++r) {
    for (int64_t c = 4 * r; c < 4 * r + 4; ++c) {
      values[static_cast<size_t>(24 * r + c)] += r % 2 == 0 ? 2000 : -2000;
    }
  }
  ExpectPartsEqualTheWhole(6, 24, values, {0, 5, 23, 12, 16, 21}, 0, 4000, "far apart");
  ExpectPartsEqualTheWhole(6, 24, values, {0, 5, 23, 12, 16, 21}, 3, 10, "far apart, capped");
}

TEST(VocabularyParts, EqualTheWholeForInfiniteLogits) {
  for (const double soft_cap : {0.0, 30.0}) {
    std::vector<double> values = Random(5 * 12, 2);
    for (int64_t c = 0; c < 12; ++c) {
      if (c < 6) values[static_cast<size_t>(c)] = -kInfinity;            // whole parts of the first row
      if (c != 7) values[static_cast<size_t>(12 + c)] = -kInfinity;      // all but one
      values[static_cast<size_t>(24 + c)] = -kInfinity;                  // all
      if (c % 2 == 0) values[static_cast<size_t>(36 + c)] = -kInfinity;  // some in each part
    }
    values[48 + 5] = kInfinity;
    ExpectPartsEqualTheWhole(5, 12, values, {8, 7, 1, 3, 5}, soft_cap, 10, "targets of finite logits");
    ExpectPartsEqualTheWhole(5, 12, values, {2, 0, 0, 10, 11}, soft_cap, 10, "targets of infinite logits");
  }
}

TEST(VocabularyParts, ANaNInAnyPartIsInTheLossOfAll) {
  for (int64_t place = 0; place < 12; ++place) {
    std::vector<double> values = Random(2 * 12, 2);
    values[static_cast<size_t>(place)] = std::nan("");
    ExpectPartsEqualTheWhole(2, 12, values, {static_cast<int32_t>(11 - place), 4}, 0, 10, "NaN");
    // the other logits of its part are -inf
    for (int64_t c = 0; c < 12; ++c) {
      if (c / 3 == place / 3 && c != place) values[static_cast<size_t>(c)] = -kInfinity;
    }
    ExpectPartsEqualTheWhole(2, 12, values, {static_cast<int32_t>(11 - place), 4}, 0, 10, "NaN and -inf");
  }
}

TEST(VocabularyParts, EqualLargestLogitsGoToTheLowestIdOfAllParts) {
  for (const double soft_cap : {0.0, 30.0}) {
    for (int64_t first = 0; first < 12; ++first) {
      for (int64_t second = first + 1; second < 12; ++second) {
        std::vector<double> values(3 * 12, 0.25);
        for (int64_t r = 0; r < 3; ++r)
          values[static_cast<size_t>(12 * r + first)] = values[static_cast<size_t>(12 * r + second)] = 2;
        const std::vector<int32_t> targets = {static_cast<int32_t>(first), static_cast<int32_t>(second), -5};
        CpuDevice device({.num_threads = 1});
        Matrix logits(DType::kF32, 3, 12);
        for (int64_t i = 0; i < 36; ++i) logits.Set(i / 12, i % 12, values[static_cast<size_t>(i)]);
        for (const int64_t parts : {1, 2, 3, 4, 6, 12}) {
          EXPECT_EQ(InParts(device.ops(), DType::kF32, logits, targets, soft_cap, parts).correct,
                    (std::vector<int>{1, 0, 0}))
              << first << " " << second << " parts " << parts;
        }
      }
    }
  }
  ExpectPartsEqualTheWhole(2, 12, std::vector<double>(24, -1), {0, 6}, 0, 10, "all equal");
}

// Beyond the cap every z is the same number; which logit is larger still counts.
TEST(VocabularyParts, CompareLogitsBeforeTheCap) {
  std::vector<double> values;
  for (int64_t r = 0; r < 12; ++r) {
    for (int64_t c = 0; c < 12; ++c) values.push_back(1000 + static_cast<double>((c * 5 + r * 7) % 12));
  }
  std::vector<int32_t> targets;
  for (int32_t r = 0; r < 12; ++r) targets.push_back((r * 3) % 12);
  ExpectPartsEqualTheWhole(12, 12, values, targets, 3, 10, "beyond the cap");
}

TEST(VocabularyPartsDeathTest, ATargetOfNoPartIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  CpuDevice device({.num_threads = 1});
  Matrix logits(DType::kF32, 1, 12);
  logits.Fill(1);
  EXPECT_DEATH(InParts(device.ops(), DType::kF32, logits, {12}, 0, 2), "CHECK");
}

TEST(VocabularyParts, OfTheEmbeddingAddUpToTheWhole) {
  constexpr int64_t kN = 60, kV = 12, kD = 7;
  std::vector<int32_t> ids;
  for (int64_t n = 0; n < kN; ++n)
    ids.push_back(static_cast<int32_t>(RandomUint64(5, 1, static_cast<uint64_t>(n)) % kV));
  for (const OpPath& path : AllOpPaths()) {
    SCOPED_TRACE(path.name);
    const DType wide = WideOf(path.compute);
    CpuDevice device(path.options);
    Matrix weight(path.compute, kV, kD), y(wide, kN, kD), dy(wide, kN, kD), dweight(wide, kV, kD);
    weight.FillRandom(1);
    dy.FillRandom(2);
    dweight.FillRandom(3);
    const Matrix before = dweight;
    device.ops().EmbeddingForward({.y = y.t(), .weight = weight.t(), .ids = Ids(ids)});
    device.ops().EmbeddingBackward({.dweight = dweight.t(), .dy = dy.t(), .ids = Ids(ids)});
    for (const int64_t parts : {1, 2, 4}) {
      const int64_t V = kV / parts;
      Matrix sum(wide, kN, kD), part_y(wide, kN, kD);
      sum.Fill(0);
      for (int64_t p = 0; p < parts; ++p) {
        Matrix part_dweight = before;
        device.ops().EmbeddingForward(
            {.y = part_y.t(), .weight = weight.t().Rows(p * V, V), .ids = Ids(ids), .first_id = p * V});
        for (int64_t i = 0; i < kN * kD; ++i) {
          sum.Set(i / kD, i % kD, sum.Get(i / kD, i % kD) + part_y.Get(i / kD, i % kD));
        }
        device.ops().EmbeddingBackward(
            {.dweight = part_dweight.t().Rows(p * V, V), .dy = dy.t(), .ids = Ids(ids), .first_id = p * V});
        for (int64_t i = 0; i < kV * kD; ++i) {
          const Matrix& want = i / kD / V == p ? dweight : before;
          ASSERT_EQ(part_dweight.Get(i / kD, i % kD), want.Get(i / kD, i % kD)) << "row " << i / kD;
        }
      }
      EXPECT_EQ(sum, y) << parts << " parts";
    }
  }
}
}  // namespace
}  // namespace carousel::testing
