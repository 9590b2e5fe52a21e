// Permutation, sampler and the fixed validation windows.
#include "core/data/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "core/data/permutation.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {

TEST(Permutation, VisitsEveryIndexOnceForEverySize) {
  std::vector<int64_t> sizes;
  for (int64_t n = 1; n <= 260; ++n) sizes.push_back(n);
  for (const int64_t n : {1023, 1024, 1025, 4095, 4097, 65535, 65536, 65537, 100003}) sizes.push_back(n);
  for (const int64_t n : sizes) {
    for (const uint64_t key : {0ull, 1ull, 0xFFFFFFFFFFFFFFFFull}) {
      const Permutation permute(n, key);
      std::vector<bool> seen(static_cast<size_t>(n), false);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t image = permute(i);
        ASSERT_GE(image, 0);
        ASSERT_LT(image, n);
        ASSERT_FALSE(seen[static_cast<size_t>(image)]) << n << " twice " << image;
        seen[static_cast<size_t>(image)] = true;
      }
    }
  }
}

TEST(Permutation, StaysInsideTheLargestSizes) {
  for (const int64_t n : {(int64_t{1} << 62), (int64_t{1} << 62) - 1, (int64_t{1} << 60) + 1}) {
    const Permutation permute(n, 3);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 1000; ++i) {
      const int64_t image = permute(n - 1 - i);
      EXPECT_GE(image, 0);
      EXPECT_LT(image, n);
      seen.insert(image);
    }
    EXPECT_EQ(seen.size(), 1000u);
  }
}

// If images were uniform, the mean of |image - i| over n would be n / 3 and each of 16 x 16 cells of the
// (index, image) square would hold n / 256: chi-square with 225 degrees of freedom, mean 225, deviation
// sqrt(2 x 225) = 21; 225 + 6 x 21 = 352. A permutation has less spread than independent draws, never more.
TEST(Permutation, SpreadsImagesEvenly) {
  const int64_t n = 1 << 16;
  for (const uint64_t key : {1ull, 2ull, 77ull}) {
    const Permutation permute(n, key);
    double cells[16][16] = {}, distance = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t image = permute(i);
      cells[i * 16 / n][image * 16 / n] += 1;
      distance += std::abs(static_cast<double>(image - i));
    }
    double chi_square = 0;
    for (const auto& row : cells) {
      for (const double count : row) chi_square += (count - n / 256.0) * (count - n / 256.0) / (n / 256.0);
    }
    EXPECT_LT(chi_square, 352);
    EXPECT_NEAR(distance / n / n, 1.0 / 3, 0.01);
  }
}

TEST(Permutation, DependsOnTheKey) {
  const Permutation a(1000, 1), b(1000, 2);
  int64_t equal = 0;
  for (int64_t i = 0; i < 1000; ++i) equal += a(i) == b(i);
  EXPECT_LT(equal, 10);  // 1 expected
}

// From an independent implementation (Python, Philox by its paper). A change of the order would silently
// change every run that is resumed.
TEST(Permutation, IsTheSameInEveryRelease) {
  const Permutation permute(1000, 42);
  std::vector<int64_t> images;
  for (int64_t i = 0; i < 6; ++i) images.push_back(permute(i));
  EXPECT_EQ(images, (std::vector<int64_t>{150, 623, 430, 9, 683, 921}));
}

TEST(NumWindows, CountsWholeWindowsOfTPlusOneTokens) {
  EXPECT_EQ(NumWindows(0, 4), 0);
  EXPECT_EQ(NumWindows(4, 4), 0);
  EXPECT_EQ(NumWindows(5, 4), 1);
  EXPECT_EQ(NumWindows(8, 4), 1);
  EXPECT_EQ(NumWindows(9, 4), 2);
  EXPECT_EQ(NumWindows(2, 1), 1);
}

Sampler Make(const std::vector<std::pair<int64_t, double>>& tokens_and_weights, int64_t T, uint64_t seed) {
  std::vector<SamplerSource> sources;
  for (const auto& [tokens, weight] : tokens_and_weights) {
    sources.push_back({.name = "s" + std::to_string(sources.size()), .num_tokens = tokens, .weight = weight});
  }
  auto sampler = Sampler::Create(sources, T, seed);
  EXPECT_TRUE(sampler.ok()) << sampler.status();
  return std::move(sampler).value();
}

TEST(Sampler, VisitsEveryWindowOncePerEpoch) {
  const Sampler sampler = Make({{101, 1}}, 10, 5);
  ASSERT_EQ(sampler.num_windows(0), 10);
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 10; ++i) {
      const Window w = sampler.At(epoch * 10 + i);
      EXPECT_EQ(w.epoch, epoch);
      EXPECT_EQ(w.source, 0);
      EXPECT_GE(w.index, 0);
      EXPECT_LT(w.index, 10);
      seen.insert(w.index);
    }
    EXPECT_EQ(seen.size(), 10u) << "epoch " << epoch;
  }
}

// From the same independent implementation: 100 windows, epochs 0, 1 and 2.
TEST(Sampler, IsTheSameInEveryRelease) {
  const Sampler sampler = Make({{1001, 1}}, 10, 7);
  std::vector<int64_t> indices;
  for (const int64_t n : {0, 1, 2, 3, 100, 101, 102, 103, 250, 251, 252, 253}) {
    indices.push_back(sampler.At(n).index);
  }
  EXPECT_EQ(indices, (std::vector<int64_t>{74, 75, 30, 4, 97, 33, 17, 81, 52, 31, 88, 44}));
}

TEST(Sampler, OrdersEpochsAndSeedsDifferently) {
  const Sampler a = Make({{100001, 1}}, 10, 1), b = Make({{100001, 1}}, 10, 2);
  const int64_t n = a.num_windows(0);
  int64_t same_epoch = 0, same_seed = 0;
  for (int64_t i = 0; i < n; ++i) {
    same_epoch += a.At(i).index == a.At(n + i).index;
    same_seed += a.At(i).index == b.At(i).index;
  }
  EXPECT_LT(same_epoch, 12);  // 1 expected
  EXPECT_LT(same_seed, 12);
}

TEST(Sampler, NeedsNoHistory) {
  const Sampler a = Make({{5001, 1}, {3001, 2}}, 10, 9), b = Make({{5001, 1}, {3001, 2}}, 10, 9);
  std::vector<Window> forward;
  for (int64_t n = 0; n < 2000; ++n) forward.push_back(a.At(n));
  for (int64_t n = 1999; n >= 0; --n) EXPECT_EQ(b.At(n), forward[static_cast<size_t>(n)]);
}

TEST(Sampler, VisitsEverySourceInWholeEpochsInAMixture) {
  const Sampler sampler = Make({{501, 3}, {301, 1}}, 10, 4);  // 50 and 30 windows
  std::map<std::pair<int32_t, int64_t>, std::multiset<int64_t>> seen;
  for (int64_t n = 0; n < 200000; ++n) {
    const Window w = sampler.At(n);
    seen[{w.source, w.epoch}].insert(w.index);
  }
  std::map<int32_t, int64_t> last;
  for (const auto& [key, windows] : seen) last[key.first] = std::max(last[key.first], key.second);
  for (const auto& [key, windows] : seen) {
    if (key.second == last[key.first]) continue;  // still going on
    EXPECT_EQ(static_cast<int64_t>(windows.size()), key.first == 0 ? 50 : 30);
    EXPECT_EQ(std::set<int64_t>(windows.begin(), windows.end()).size(), windows.size());
  }
  EXPECT_GT(last[0], 1000);
  EXPECT_GT(last[1], 1000);
}

TEST(Sampler, MixesInProportionToTheWeightsAtEveryLength) {
  const std::vector<double> weights = {0.5, 0.3, 0.15, 0.05};
  const Sampler sampler = Make({{101, 50}, {1001, 30}, {55, 15}, {11, 5}}, 10, 4);
  std::vector<int64_t> counts(4, 0);
  for (int64_t n = 0; n < 3 * Sampler::kMixturePeriod; ++n) {
    for (size_t s = 0; s < 4; ++s) {
      // Evenly spread: never more than about one sample per other source off.
      EXPECT_NEAR(static_cast<double>(counts[s]), weights[s] * static_cast<double>(n), 2.5) << n;
    }
    if (n % 9973 == 0) {
      for (int64_t s = 0; s < 4; ++s) EXPECT_EQ(sampler.CountBefore(n, s), counts[static_cast<size_t>(s)]);
    }
    ++counts[static_cast<size_t>(sampler.At(n).source)];
  }
}

TEST(Sampler, GivesTheSlotsOfAPeriodByLargestRemainder) {
  const Sampler sampler = Make({{11, 1}, {11, 1}, {11, 1}}, 10, 0);
  // 65536 / 3 = 21845.33: the first of equal remainders gets the slot left over.
  EXPECT_EQ(sampler.CountBefore(Sampler::kMixturePeriod, 0), 21846);
  EXPECT_EQ(sampler.CountBefore(Sampler::kMixturePeriod, 1), 21845);
  EXPECT_EQ(sampler.CountBefore(Sampler::kMixturePeriod, 2), 21845);
}

TEST(Sampler, OrdersEqualSourcesDifferently) {
  const Sampler sampler = Make({{10001, 1}, {10001, 1}}, 10, 0);
  int64_t equal = 0;
  for (int64_t n = 0; n < 2000; n += 2) {
    ASSERT_NE(sampler.At(n).source, sampler.At(n + 1).source);
    equal += sampler.At(n).index == sampler.At(n + 1).index;
  }
  EXPECT_LT(equal, 12);
}

TEST(Sampler, RefusesWhatItCannotServe) {
  const auto create = [](std::vector<SamplerSource> sources) {
    return Sampler::Create(std::move(sources), 16, 0).status();
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(create({}), kInvalid, {"data.train"});
  ExpectError(create({{"short", 16, 1}}), kInvalid, {"short", "16 tokens", "17", "at most 15"});
  ExpectError(create({{"zero", 100, 0}}), kInvalid, {"zero", "weight 0", "positive"});
  ExpectError(create({{"minus", 100, -1}}), kInvalid, {"minus", "weight -1"});
  ExpectError(create({{"nan", 100, std::nan("")}}), kInvalid, {"nan"});
  ExpectError(create({{"inf", 100, INFINITY}}), kInvalid, {"inf"});
  ExpectError(create({{"big", 100, 1e9}, {"tiny", 100, 1}}), kInvalid, {"tiny", "1/65536"});
  EXPECT_TRUE(create({{"a", 17, 1e308}, {"b", 17, 1e308}}).ok());  // the sum must not overflow
}

TEST(SpreadWindows, CoversTheStreamEvenly) {
  const auto windows = SpreadWindows({{"a", 1001, 1}}, 10, 4);
  ASSERT_TRUE(windows.ok());
  std::vector<int64_t> indices;
  for (const Window& w : *windows) indices.push_back(w.index);
  EXPECT_EQ(indices, (std::vector<int64_t>{0, 25, 50, 75}));
}

TEST(SpreadWindows, TakesEveryWindowOnceIfMoreAreAskedFor) {
  const auto windows = SpreadWindows({{"a", 31, 1}, {"b", 11, 1}, {"c", 25, 1}}, 10, 100);
  ASSERT_TRUE(windows.ok());
  std::vector<std::pair<int32_t, int64_t>> got;
  for (const Window& w : *windows) got.emplace_back(w.source, w.index);
  EXPECT_EQ(got, (std::vector<std::pair<int32_t, int64_t>>{{0, 0}, {0, 1}, {0, 2}, {1, 0}, {2, 0}, {2, 1}}));
}

TEST(SpreadWindows, SpreadsOverAllSourcesAndNeverRepeats) {
  const std::vector<SamplerSource> sources = {{"a", 100001, 1}, {"b", 50001, 1}};
  for (const int64_t count : {1, 2, 3, 7, 64, 1000, 14999, 15000}) {
    const auto windows = SpreadWindows(sources, 10, count);
    ASSERT_TRUE(windows.ok());
    ASSERT_EQ(static_cast<int64_t>(windows->size()), count);
    std::set<std::pair<int32_t, int64_t>> seen;
    int64_t in_a = 0;
    for (const Window& w : *windows) {
      EXPECT_LT(w.index, w.source == 0 ? 10000 : 5000);
      seen.emplace(w.source, w.index);
      in_a += w.source == 0;
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), count);
    EXPECT_NEAR(static_cast<double>(in_a), static_cast<double>(count) * 2 / 3, 1);
  }
}

TEST(SpreadWindows, RefusesShortSourcesAndEmptyLists) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(SpreadWindows({}, 10, 4).status(), kInvalid, {"data.validation"});
  ExpectError(SpreadWindows({{"v", 10, 1}}, 10, 4).status(), kInvalid,
              {"v", "10 tokens", "eval.sequence_length + 1 = 11"});
  ExpectError(SpreadWindows({{"v", 100, 1}}, 10, 0).status(), kInvalid, {"eval.num_windows=0"});
}
}  // namespace
}  // namespace carousel
