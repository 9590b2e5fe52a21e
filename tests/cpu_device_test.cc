// Memory of the CPU device, what its ops refuse, and what the table of op cases does not reach: fills and
// casts of every dtype, exact sums, MakeDevice.
#include "kernels/cpu/cpu_device.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/arena.h"
#include "core/base/exact_sum.h"
#include "core/base/random.h"
#include "kernels/make_device.h"

namespace carousel::cpu {
namespace {

template <class T>
Tensor View(std::vector<T>& v) {
  return Tensor(v.data(), DTypeOf<T>::value, {static_cast<int64_t>(v.size())});
}
template <class T>
Tensor View(std::vector<T>& v, int64_t rows, int64_t columns) {
  return Tensor(v.data(), DTypeOf<T>::value, {rows, columns});
}

TEST(CpuDevice, GivesZeroedAlignedMemoryAndCountsIt) {
  CpuDevice device({});
  EXPECT_EQ(device.name(), "cpu");
  EXPECT_TRUE(device.host_accessible());
  EXPECT_EQ(device.Allocate(0), nullptr);
  device.Free(nullptr);
  char* a = static_cast<char*>(device.Allocate(100'001));
  char* b = static_cast<char*>(device.Allocate(1));
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % Arena::kAlignBytes, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % Arena::kAlignBytes, 0u);
  for (int i = 0; i < 100'001; ++i) ASSERT_EQ(a[i], 0);
  EXPECT_EQ(device.allocated_bytes(), 100'002);
  device.Free(a);
  EXPECT_EQ(device.allocated_bytes(), 1);
  EXPECT_EQ(device.peak_allocated_bytes(), 100'002);
  // b is freed by the destructor, which a leak checker confirms
}

TEST(CpuDevice, ReportsMemoryItCannotHaveByNull) {
  CpuDevice device({});
  EXPECT_EQ(device.Allocate(std::numeric_limits<int64_t>::max() / 2), nullptr);
  EXPECT_EQ(device.allocated_bytes(), 0);
}

TEST(CpuDevice, Copies) {
  CpuDevice device({});
  const std::vector<int> from = {1, 2, 3};
  std::vector<int> to(3);
  void* memory = device.Allocate(12);
  device.CopyToDevice(memory, from.data(), 12);
  device.CopyToHost(to.data(), memory, 12);
  device.Synchronize();
  EXPECT_EQ(to, from);
}

TEST(CpuDeviceDeathTest, RefusesToFreeWhatIsNotItsOwn) {
  int x;
  EXPECT_DEATH(CpuDevice({}).Free(&x), "did not allocate");
}

TEST(MakeDevice, KnowsTheCpuAndExplainsTheRest) {
  std::string error;
  EXPECT_NE(MakeDevice("cpu", 2, &error), nullptr);
  for (const int threads : {0, -3, 100'000}) {
    error.clear();
    EXPECT_EQ(MakeDevice("cpu", threads, &error), nullptr);
    EXPECT_NE(error.find(std::to_string(threads) + " threads; use 1 to"), std::string::npos) << error;
  }
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99999", "CPU"}) {
    error.clear();
    EXPECT_EQ(MakeDevice(name, 1, &error), nullptr);
    EXPECT_NE(error.find("there is no device '" + std::string(name) + "'; use 'cpu'"), std::string::npos)
        << error;
  }
  for (const char* name : {"cuda", "cuda:0", "cuda:12"}) {
    error.clear();
    EXPECT_EQ(MakeDevice(name, 1, &error), nullptr);
    EXPECT_NE(error.find("is not available"), std::string::npos) << error;
    EXPECT_NE(error.find("CUDA"), std::string::npos) << error;
  }
}

TEST(MakeDevice, SimtIsTheEmulatedGpuOrSaysWhyThereIsNone) {
  std::string error;
  const std::unique_ptr<Device> device = MakeDevice("simt", 1, &error);
  if (device == nullptr) {
    EXPECT_NE(error.find("device 'simt' is not available: "), std::string::npos) << error;
    EXPECT_NE(error.find("CAROUSEL_"), std::string::npos) << error;
    return;
  }
  EXPECT_EQ(device->name(), "simt:0");
  EXPECT_FALSE(device->host_accessible());
  EXPECT_GT(device->memory().total_bytes, 0);
  EXPECT_TRUE(device->records());
}

TEST(Fill, WritesEveryDtypeAndLeavesGaps) {
  CpuDevice device({.num_threads = 2});
  std::vector<float> f(40'000);
  std::vector<double> d(7);
  std::vector<bfloat16> h(7);
  std::vector<int32_t> i(7);
  std::vector<int64_t> l(7);
  std::vector<uint8_t> b(7);
  device.ops().Fill({.y = View(f), .value = -1.5});
  device.ops().Fill({.y = View(d), .value = 0.1});
  device.ops().Fill({.y = View(h), .value = 3});
  device.ops().Fill({.y = View(i), .value = -7});
  device.ops().Fill({.y = View(l), .value = 1e15});
  device.ops().Fill({.y = View(b), .value = 255});
  EXPECT_EQ(f, std::vector<float>(40'000, -1.5f));
  EXPECT_EQ(d, std::vector<double>(7, 0.1));
  EXPECT_EQ(static_cast<float>(h[6]), 3.0f);
  EXPECT_EQ(i, std::vector<int32_t>(7, -7));
  EXPECT_EQ(l, std::vector<int64_t>(7, 1'000'000'000'000'000));
  EXPECT_EQ(b, std::vector<uint8_t>(7, 255));
  std::vector<float> rows(6);
  device.ops().Fill({.y = View(rows, 2, 3).Columns(1, 1), .value = 9});
  EXPECT_EQ(rows, (std::vector<float>{0, 9, 0, 0, 9, 0}));
}

TEST(Cast, ConvertsBetweenAllDtypes) {
  CpuDevice device({});
  std::vector<int32_t> ints = {-2, 0, 70'000};
  std::vector<double> doubles(3);
  std::vector<int64_t> longs(3);
  std::vector<float> floats(3);
  device.ops().Cast({.y = View(doubles), .x = View(ints)});
  EXPECT_EQ(doubles, (std::vector<double>{-2, 0, 70'000}));
  device.ops().Cast({.y = View(longs), .x = View(doubles)});
  EXPECT_EQ(longs, (std::vector<int64_t>{-2, 0, 70'000}));
  device.ops().Cast({.y = View(floats), .x = View(longs)});
  EXPECT_EQ(floats, (std::vector<float>{-2, 0, 70'000}));
}

TEST(Cast, FromDoubleToBf16RoundsOnce) {
  // Just above the tie between 1 and 1 + 2^-7: as a float it is the tie itself, which would round down to
  // even.
  std::vector<double> x = {1 + 0x1p-8 + 0x1p-40,
                           1 + 0x1p-8,
                           1 + 0x1p-8 - 0x1p-40,
                           -(1 + 0x1p-8 + 0x1p-40),
                           1 + 0x1.8p-7 - 0x1p-45,
                           0.0,
                           INFINITY,
                           NAN,
                           1e300,
                           1e-300};
  const std::vector<float> want = {1 + 0x1p-7f, 1,        1,   -(1 + 0x1p-7f), 1 + 0x1p-7f,
                                   0,           INFINITY, NAN, INFINITY,       0};
  std::vector<bfloat16> y(x.size());
  CpuDevice device({});
  device.ops().Cast({.y = View(y), .x = View(x)});
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(want[i])) {
      EXPECT_TRUE(std::isnan(static_cast<float>(y[i])));
    } else {
      EXPECT_EQ(static_cast<float>(y[i]), want[i]) << x[i];
    }
  }
}

TEST(AdamW, HasTheSameBitsHoweverTheRangeIsCut) {
  constexpr int64_t kSize = 1000;
  const auto random = [](uint64_t stream) {
    std::vector<float> values(kSize);
    for (int64_t i = 0; i < kSize; ++i) {
      values[i] = static_cast<float>(RandomNormal(3, stream, static_cast<uint64_t>(i)));
    }
    return values;
  };
  for (const SimdLevel level : {SimdLevel::kBase, SimdLevel::kV3, SimdLevel::kV4}) {
    if (level > DetectSimdLevel()) continue;
    CpuDevice device({.simd_level = level});
    std::vector<float> want;
    for (const std::vector<int64_t>& cuts :
         {std::vector<int64_t>{0, kSize}, {0, 1, 18, 333, 700, 701, kSize}, {0, 15, 31, 511, 999, kSize}}) {
      std::vector<float> master = random(0), m = random(1), v = random(2), grad = random(3);
      for (float& x : v) x = x * x;
      std::vector<bfloat16> weight(kSize);
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        const int64_t begin = cuts[i], count = cuts[i + 1] - cuts[i];
        device.ops().AdamW({.master = View(master).Rows(begin, count),
                            .m = View(m).Rows(begin, count),
                            .v = View(v).Rows(begin, count),
                            .weight = View(weight).Rows(begin, count),
                            .grad = View(grad).Rows(begin, count),
                            .lr = 0.01,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.1,
                            .grad_scale = 0.3,
                            .step = 3});
      }
      for (const std::vector<float>* part : {&m, &v}) master.insert(master.end(), part->begin(), part->end());
      for (const bfloat16 w : weight) master.push_back(static_cast<float>(w));
      if (want.empty()) want = master;
      EXPECT_EQ(master, want) << NameOf(level);
    }
  }
}

double SquaredNormInPieces(Ops& ops, std::vector<float>& x, const std::vector<int64_t>& cuts) {
  std::vector<int64_t> sum(kExactSumElems);
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    ops.SquaredNorm({.sum = View(sum), .x = View(x).Rows(cuts[i], cuts[i + 1] - cuts[i])});
  }
  ExactSum total;
  std::memcpy(static_cast<void*>(&total), sum.data(), sizeof(total));
  return total.ToDouble();
}

TEST(SquaredNorm, HasTheSameBitsHoweverItIsCutAtBlocks) {
  constexpr int64_t kSize = 50 * kSquaredNormBlock + 333;
  std::vector<float> x(kSize);
  double want = 0;
  for (int64_t i = 0; i < kSize; ++i) {
    x[i] = static_cast<float>(RandomNormal(1, 2, static_cast<uint64_t>(i)) * std::pow(10.0, i % 9 - 4));
    want += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  double first = 0;
  for (const bool reference : {false, true}) {
    for (const int threads : {1, 2, 3}) {
      CpuDevice device({.num_threads = threads, .reference = reference});
      const double whole = SquaredNormInPieces(device.ops(), x, {0, kSize});
      EXPECT_NEAR(whole, want, 1e-12 * want);
      if (threads == 1) first = whole;
      EXPECT_EQ(whole, first);
      const int64_t block = kSquaredNormBlock;
      EXPECT_EQ(SquaredNormInPieces(device.ops(), x, {0, block, 7 * block, 7 * block, 50 * block, kSize}),
                first);
    }
  }
}

TEST(SquaredNorm, HasTheSameBitsOnEveryInstructionSet) {
  std::vector<float> x(3 * kSquaredNormBlock + 5);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(RandomNormal(5, 2, i));
  const int64_t n = static_cast<int64_t>(x.size());
  CpuDevice base({.simd_level = SimdLevel::kBase});
  const double want = SquaredNormInPieces(base.ops(), x, {0, n});
  for (const SimdLevel level : {SimdLevel::kV3, SimdLevel::kV4}) {
    if (level > DetectSimdLevel()) continue;
    CpuDevice device({.simd_level = level});
    EXPECT_EQ(SquaredNormInPieces(device.ops(), x, {0, n}), want) << NameOf(level);
  }
}

TEST(SumExactly, AddsToWhatIsThere) {
  CpuDevice device({});
  std::vector<int64_t> sum(kExactSumElems);
  std::vector<float> x = {1e30f, 1.0f, -1e30f};
  std::vector<double> y = {0x1p-70, -2.0};
  device.ops().SumExactly({.sum = View(sum), .x = View(x)});
  device.ops().SumExactly({.sum = View(sum), .x = View(y)});
  ExactSum total;
  std::memcpy(static_cast<void*>(&total), sum.data(), sizeof(total));
  EXPECT_EQ(total.ToDouble(), -1.0 + 0x1p-70);
  total.Add(1.0);
  EXPECT_EQ(total.ToDouble(), 0x1p-70);
}

TEST(CpuOpsDeathTest, RefuseWrongShapesDtypesAndValues) {
  CpuDevice device({});
  Ops& ops = device.ops();
  std::vector<float> f(12), g(12);
  std::vector<bfloat16> h(12);
  std::vector<int32_t> ids = {0, 3};
  const Tensor f34 = View(f, 3, 4), g43 = View(g, 4, 3), g34 = View(g, 3, 4), h34 = View(h, 3, 4);
  EXPECT_DEATH(ops.Matmul({.c = View(f, 3, 3), .a = f34, .b = g34}), "shape of a.b");
  EXPECT_DEATH(ops.Matmul({.c = View(f, 3, 3), .a = h34, .b = g43}), "dtype of a.b is f32, must be bf16");
  EXPECT_DEATH(ops.Add({.y = f34, .a = f34, .b = View(g).Rows(0, 4)}), "CHECK failed");
  EXPECT_DEATH(ops.GluForward({.y = f34, .gate = g43, .up = g34}), "shape of a.gate");
  EXPECT_DEATH(ops.EmbeddingForward(
                   {.y = View(f, 6, 2).Rows(0, 2), .weight = View(g, 3, 4).Columns(0, 2), .ids = View(ids)}),
               "must be contiguous");
  EXPECT_DEATH(
      ops.EmbeddingForward({.y = View(f, 2, 6).Rows(0, 2), .weight = View(g, 2, 6), .ids = View(ids)}),
      "token id 3 at position 1 is outside of the vocabulary of 2");
  EXPECT_DEATH(ops.SoftCapForward({.y = f34, .x = g34, .cap = 0}), "a.cap > 0.0");
  EXPECT_DEATH(ops.RmsNormForward({.y = f34,
                                   .rstd = View(f).Rows(0, 3),
                                   .x = g34,
                                   .delta = f34,
                                   .weight = View(g).Rows(0, 4),
                                   .eps = 1e-6}),
               "delta needs a place for the sum");
}
}  // namespace
}  // namespace carousel::cpu
