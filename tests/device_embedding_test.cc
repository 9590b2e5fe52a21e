// The embedding and its gradient on a device: runs of equal ids of every length and place, order of sums, ids
// that are no tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "tests/device_copy.h"
#include "tests/device_testing.h"

namespace carousel::testing {
namespace {

template <class W>
std::vector<W> Integers(uint64_t stream, int64_t count) {
  std::vector<W> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(
        static_cast<W>(static_cast<int>(RandomUint64(23, stream, static_cast<uint64_t>(i)) % 9) - 4));
  }
  return values;
}

// dweight after the gradient of these ids was added to integers: sums of integers are exact in any order.
// With `first_id` the table has the rows of ids [first_id, first_id + V) alone.
template <class W>
void ExpectExactGradient(Device& device, const std::vector<int32_t>& ids, int64_t V, int64_t D,
                         const std::string& what, int64_t first_id = -1) {
  SCOPED_TRACE(what + ", " + NameOf(DTypeOf<W>::value) + ", V " + std::to_string(V) + ", D " +
               std::to_string(D));
  const int64_t N = static_cast<int64_t>(ids.size());
  const std::vector<W> dy = Integers<W>(1, N * D);
  std::vector<W> want = Integers<W>(2, V * D);
  const DeviceCopy<int32_t> ids_device(device, ids);
  const DeviceCopy<W> dy_device(device, dy), dweight_device(device, want);
  device.ops().EmbeddingBackward({.dweight = dweight_device.t({V, D}),
                                  .dy = dy_device.t({N, D}),
                                  .ids = ids_device.t(),
                                  .first_id = first_id});
  for (int64_t n = 0; n < N; ++n) {
    const int64_t row = ids[n] - std::max<int64_t>(first_id, 0);
    for (int64_t c = 0; c < D && row >= 0 && row < V; ++c) want[row * D + c] += dy[n * D + c];
  }
  const std::vector<W> got = dweight_device.Get();
  for (int64_t e = 0; e < V * D; ++e) ASSERT_EQ(got[e], want[e]) << "id " << e / D << " column " << e % D;
}

std::vector<int32_t> Ids(int64_t N, const std::function<int64_t(int64_t)>& id) {
  std::vector<int32_t> ids;
  for (int64_t n = 0; n < N; ++n) ids.push_back(static_cast<int32_t>(id(n)));
  return ids;
}
int64_t Draw(int64_t n) { return static_cast<int64_t>(RandomUint64(29, 0, static_cast<uint64_t>(n)) >> 1); }

TEST(DeviceEmbeddingGradient, AddsEveryRowOnceHoweverIdsRepeat) {
  const auto device = MakeTestDevice();
  const struct {
    const char* name;
    int64_t N, V;
    std::function<int64_t(int64_t)> id;
  } cases[] = {
      {"one token", 1, 3, [](int64_t) { return 2; }},
      {"one id", 200, 5, [](int64_t) { return 3; }},
      {"one id in a vocabulary of one", 130, 1, [](int64_t) { return 0; }},
      {"all ids different", 150, 150, [](int64_t n) { return 149 - n; }},
      {"runs that end with a part", 256, 4, [](int64_t n) { return n / 64; }},
      {"runs that end around a part's end", 300, 10, [](int64_t n) { return n * 3 / 193; }},
      {"one long run between short ones", 500, 500, [](int64_t n) { return n < 30 || n > 420 ? n : 200; }},
      {"long runs one after the other", 700, 3, [](int64_t n) { return n % 3; }},
      {"drawn from few", 400, 7, [](int64_t n) { return Draw(n) % 7; }},
      {"drawn from many", 300, 50304, [](int64_t n) { return Draw(n) % 50304; }},
      {"frequent and rare ones", 400, 1000,
       [](int64_t n) { return Draw(n) % 4 == 0 ? Draw(n + 1000) % 1000 : 7; }},
  };
  for (const auto& c : cases) {
    const std::vector<int32_t> ids = Ids(c.N, c.id);
    ExpectExactGradient<float>(*device, ids, c.V, 4, c.name);
    if (c.V > 1000) continue;
    ExpectExactGradient<float>(*device, ids, c.V, 5, c.name);
    ExpectExactGradient<double>(*device, ids, c.V, 6, c.name);
  }
  // wider than a block of threads
  ExpectExactGradient<float>(*device, Ids(100, [](int64_t n) { return n / 70; }), 2, 700, "wide rows");
}

TEST(DeviceEmbeddingGradient, OfAPartLeavesOutTheIdsOfOtherParts) {
  const auto device = MakeTestDevice();
  const struct {
    const char* name;
    int64_t N, V, first;
    std::function<int64_t(int64_t)> id;
  } cases[] = {
      {"none is here", 300, 8, 16, [](int64_t n) { return n % 16; }},
      {"all are here", 300, 8, 16, [](int64_t n) { return 16 + n % 8; }},
      {"one is here", 300, 8, 16, [](int64_t n) { return n == 170 ? 23 : 24 + n; }},
      {"the first part of some", 300, 8, 0, [](int64_t n) { return n % 11; }},
      {"the last row meets what is elsewhere", 192, 8, 16, [](int64_t n) { return n < 100 ? 23 : 24; }},
      {"long runs here and elsewhere", 400, 2, 3, [](int64_t n) { return n / 70; }},
      {"ids that are none", 200, 8, 4, [](int64_t n) { return n % 3 == 0 ? -1 - n : n % 20; }},
      {"a vocabulary of a power of two", 260, 64, 64, [](int64_t n) { return Draw(n) % 192; }},
  };
  for (const auto& c : cases) {
    const std::vector<int32_t> ids = Ids(c.N, c.id);
    ExpectExactGradient<float>(*device, ids, c.V, 4, c.name, c.first);
    ExpectExactGradient<float>(*device, ids, c.V, 5, c.name, c.first);
    ExpectExactGradient<double>(*device, ids, c.V, 6, c.name, c.first);
  }
}

TEST(DeviceEmbeddingGradient, HasTheSameBitsEveryTime) {
  const auto device = MakeTestDevice();
  const int64_t N = 500, V = 11, D = 12;
  std::vector<float> dy;
  for (int64_t e = 0; e < N * D; ++e) {
    dy.push_back(static_cast<float>(RandomUniform(31, 0, static_cast<uint64_t>(e)) - 0.5));
  }
  const DeviceCopy<int32_t> ids(*device, Ids(N, [](int64_t n) { return Draw(n) % 11; }));
  const DeviceCopy<float> dy_device(*device, dy);
  std::vector<float> first;
  for (int run = 0; run < 3; ++run) {
    const DeviceCopy<float> dweight(*device, std::vector<float>(V * D));
    device->ops().EmbeddingBackward(
        {.dweight = dweight.t({V, D}), .dy = dy_device.t({N, D}), .ids = ids.t()});
    if (run == 0) first = dweight.Get();
    EXPECT_EQ(dweight.Get(), first);
  }
}

TEST(DeviceEmbeddingGradient, RunsInARecording) {
  const auto device = MakeTestDevice();
  const int64_t N = 100, V = 9, D = 8;
  const std::vector<float> dy = Integers<float>(5, N * D);
  std::vector<float> want(V * D);
  const DeviceCopy<int32_t> ids(*device, std::vector<int32_t>(N));
  const DeviceCopy<float> dy_device(*device, dy), dweight(*device, want);
  const auto recording = device->MakeRecording();
  for (int64_t round = 0; round < 4; ++round) {
    const std::vector<int32_t> values = Ids(N, [&](int64_t n) { return Draw(n + 1000 * round) % V; });
    ids.Set(values);
    recording->Run([&] {
      device->ops().EmbeddingBackward(
          {.dweight = dweight.t({V, D}), .dy = dy_device.t({N, D}), .ids = ids.t()});
    });
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t c = 0; c < D; ++c) want[values[n] * D + c] += dy[n * D + c];
    }
    EXPECT_EQ(dweight.Get(), want) << "round " << round;
  }
}

template <class T>
void ExpectRowsOfTheTable(Device& device, int64_t N, int64_t V, int64_t D) {
  using W = Wide<T>;
  std::vector<T> weight;
  for (const W value : Integers<W>(6, V * D)) weight.push_back(static_cast<T>(value));
  const std::vector<int32_t> ids = Ids(N, [&](int64_t n) { return Draw(n) % V; });
  const DeviceCopy<T> weight_device(device, weight);
  const DeviceCopy<int32_t> ids_device(device, ids);
  const DeviceCopy<W> y(device, std::vector<W>(N * D, W{-99}));
  device.ops().EmbeddingForward({.y = y.t({N, D}), .weight = weight_device.t({V, D}), .ids = ids_device.t()});
  const std::vector<W> got = y.Get();
  for (int64_t e = 0; e < N * D; ++e) {
    ASSERT_EQ(got[e], static_cast<W>(weight[ids[e / D] * D + e % D])) << N << " " << D << " element " << e;
  }
}
TEST(DeviceEmbedding, CopiesRowsOfEveryWidth) {
  const auto device = MakeTestDevice();
  for (const int64_t D : {1, 7, 8, 64, 300, 2500}) {
    ExpectRowsOfTheTable<bfloat16>(*device, 21, 30, D);
    ExpectRowsOfTheTable<float>(*device, 21, 30, D);
    ExpectRowsOfTheTable<double>(*device, 21, 30, D);
  }
  ExpectRowsOfTheTable<bfloat16>(*device, 0, 30, 8);
  ExpectRowsOfTheTable<bfloat16>(*device, 900, 30, 8);
}

// A token outside of the vocabulary ends the program when the host next waits, before anything was computed
// from it.
TEST(DeviceEmbeddingDeathTest, ReportsAnIdOutsideOfTheVocabulary) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto look_up = [](int32_t id) {
    const auto device = MakeTestDevice();
    const DeviceCopy<int32_t> ids(*device, {3, id, 1});
    const DeviceCopy<bfloat16> weight(*device, std::vector<bfloat16>(40));
    const DeviceCopy<float> y(*device, std::vector<float>(12));
    device->ops().EmbeddingForward({.y = y.t({3, 4}), .weight = weight.t({10, 4}), .ids = ids.t()});
    device->Synchronize();
  };
  const auto add_gradient = [](int32_t id) {
    const auto device = MakeTestDevice();
    const DeviceCopy<int32_t> ids(*device, {3, id, 1});
    const DeviceCopy<float> dy(*device, std::vector<float>(12));
    const DeviceCopy<float> dweight(*device, std::vector<float>(40));
    device->ops().EmbeddingBackward({.dweight = dweight.t({10, 4}), .dy = dy.t({3, 4}), .ids = ids.t()});
    device->Synchronize();
  };
  for (const int32_t bad : {-1, 10, 2000000000}) {
    EXPECT_DEATH(look_up(bad), "CheckIdsKernel: token ids of the vocabulary");
    EXPECT_DEATH(add_gradient(bad), "CheckIdsKernel: token ids of the vocabulary");
  }
}
}  // namespace
}  // namespace carousel::testing
