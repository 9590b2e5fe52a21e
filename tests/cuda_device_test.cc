// The GPU device through core/device.h: memory, copies in order with the ops, recorded sequences of ops.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/device.h"
#include "core/tensor.h"
#include "tests/device_testing.h"

namespace carousel::testing {
namespace {

class CudaDeviceTest : public ::testing::Test {
 protected:
  Tensor Make(int64_t n) { return Tensor(device_->Allocate(n * SizeOf(DType::kF32)), DType::kF32, {n}); }
  Tensor Make(const std::vector<float>& values) {
    const Tensor x = Make(static_cast<int64_t>(values.size()));
    device_->CopyToDevice(x.data, values.data(), x.num_bytes());
    return x;
  }
  std::vector<float> Read(Tensor x) {
    std::vector<float> values(static_cast<size_t>(x.num_elems()), -1.0f);
    device_->CopyToHost(values.data(), x.data, x.num_bytes());
    return values;
  }
  // Whole numbers, different everywhere.
  static std::vector<float> Numbers(int64_t n, int64_t first = 1) {
    std::vector<float> values(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i)
      values[static_cast<size_t>(i)] = static_cast<float>((first + i) % 1000003);
    return values;
  }

  const std::unique_ptr<Device> device_ = MakeTestDevice();
};

TEST_F(CudaDeviceTest, IsNamedAfterItsBackendAndIndex) {
  EXPECT_TRUE(device_->name() == "simt:0" || device_->name() == "cuda:0") << device_->name();
  EXPECT_FALSE(device_->host_accessible());
  EXPECT_TRUE(device_->records());
}

TEST_F(CudaDeviceTest, MemoryIsZeroAndAligned) {
  for (const int64_t bytes : {1, 2, 255, 4096, 100001}) {
    void* memory = device_->Allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % Arena::kAlignBytes, 0u) << bytes;
    std::vector<char> host(static_cast<size_t>(bytes), 1);
    device_->CopyToHost(host.data(), memory, bytes);
    EXPECT_EQ(host, std::vector<char>(static_cast<size_t>(bytes))) << bytes;
  }
  EXPECT_EQ(device_->Allocate(0), nullptr);
  device_->Free(nullptr);
}

TEST_F(CudaDeviceTest, MemoryThatIsFreedIsFreeAgain) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  device_->Free(device_->Allocate(kBytes));  // what the driver itself takes at first use
  const MemoryInfo before = device_->memory();
  EXPECT_GT(before.total_bytes, 0);
  void* memory = device_->Allocate(kBytes);
  EXPECT_LE(device_->memory().free_bytes, before.free_bytes - kBytes / 2);
  device_->Free(memory);
  // others may use the device at the same time
  EXPECT_GE(device_->memory().free_bytes, before.free_bytes - kBytes / 2);
}

TEST_F(CudaDeviceTest, MoreMemoryThanThereIsGivesNullAndTheReason) {
  EXPECT_EQ(device_->Allocate(device_->memory().total_bytes + 1), nullptr);
  EXPECT_NE(device_->allocation_error().find("out of memory"), std::string::npos)
      << device_->allocation_error();
  EXPECT_NE(device_->Allocate(1024), nullptr);  // the device is as good as before
  EXPECT_EQ(device_->allocation_error(), "");
  device_->Synchronize();
}

// Copies pass through pieces of pinned memory of 1 MiB each.
TEST_F(CudaDeviceTest, CopiesOfEverySizeArriveWhole) {
  constexpr int64_t kPiece = (int64_t{1} << 20) / 4;
  for (const int64_t n : {int64_t{1}, int64_t{1000}, kPiece - 1, kPiece, kPiece + 1, 4 * kPiece,
                          4 * kPiece + 3, 11 * kPiece + 7}) {
    const std::vector<float> values = Numbers(n, n);
    EXPECT_TRUE(Read(Make(values)) == values) << n;
  }
  device_->CopyToDevice(nullptr, nullptr, 0);
  device_->CopyToHost(nullptr, nullptr, 0);
}

TEST_F(CudaDeviceTest, TheSourceOfACopyMayChangeAtOnce) {
  std::vector<float> values = Numbers(100);
  const Tensor x = Make(100), y = Make(100), sum = Make(100);
  device_->CopyToDevice(x.data, values.data(), x.num_bytes());
  for (float& v : values) v *= 1000;
  device_->CopyToDevice(y.data, values.data(), x.num_bytes());
  std::fill(values.begin(), values.end(), -1.0f);
  device_->ops().Add({.y = sum, .a = x, .b = y});
  std::vector<float> want = Numbers(100);
  for (float& v : want) v *= 1001;
  EXPECT_EQ(Read(sum), want);
}

TEST_F(CudaDeviceTest, CopiesAreOrderedWithTheOps) {
  const std::vector<float> first = Numbers(5000), second = Numbers(5000, 77);
  const Tensor x = Make(first), y = Make(5000), z = Make(5000);
  device_->ops().Cast({.y = y, .x = x});
  device_->CopyToDevice(x.data, second.data(), x.num_bytes());  // after the op has read x
  device_->ops().Cast({.y = z, .x = x});
  device_->ops().Fill({.y = x, .value = 0});
  EXPECT_EQ(Read(y), first);
  EXPECT_EQ(Read(z), second);
}

TEST_F(CudaDeviceTest, ManySmallCopiesDoNotDisturbEachOther) {
  constexpr int64_t kCopies = 50;
  const Tensor x = Make(kCopies), total = Make(1);
  for (int64_t i = 0; i < kCopies; ++i) {
    const float value = static_cast<float>(i + 1);
    device_->CopyToDevice(x.Rows(i, 1).data, &value, sizeof value);
    device_->ops().Add({.y = total, .a = total, .b = x.Rows(i, 1)});
  }
  EXPECT_EQ(Read(x), Numbers(kCopies));
  EXPECT_EQ(Read(total)[0], kCopies * (kCopies + 1) / 2);
}

// ---- recordings

TEST_F(CudaDeviceTest, ARecordingCallsTheOpsTwiceAndThenPlaysThem) {
  const Tensor x = Make(Numbers(300)), y = Make(300);
  const auto recording = device_->MakeRecording();
  int calls = 0;
  for (int run = 1; run <= 5; ++run) {
    recording->Run([&] {
      ++calls;
      device_->ops().Add({.y = y, .a = y, .b = x});
      device_->ops().Add({.y = y, .a = y, .b = x});
    });
    std::vector<float> want = Numbers(300);
    for (float& v : want) v *= static_cast<float>(2 * run);
    EXPECT_EQ(Read(y), want) << run;
  }
  EXPECT_EQ(calls, 2);
}

TEST_F(CudaDeviceTest, ARecordingReadsWhatItsTensorsHoldWhenItRuns) {
  const Tensor x = Make(64), y = Make(64);
  const auto recording = device_->MakeRecording();
  for (int run = 0; run < 4; ++run) {
    const std::vector<float> values = Numbers(64, 10 * run);
    device_->CopyToDevice(x.data, values.data(), x.num_bytes());
    recording->Run([&] { device_->ops().Cast({.y = y, .x = x}); });
    device_->CopyToDevice(x.data, Numbers(64, 5000).data(),
                          x.num_bytes());  // after the recorded op has read it
    EXPECT_EQ(Read(y), values) << run;
  }
}

TEST_F(CudaDeviceTest, RecordingsStandBesideEachOther) {
  const Tensor x = Make(Numbers(40)), y = Make(40), z = Make(40);
  const auto double_x = device_->MakeRecording(), sum = device_->MakeRecording();
  for (int run = 0; run < 4; ++run) {
    double_x->Run([&] { device_->ops().Add({.y = y, .a = x, .b = x}); });
    sum->Run([&] { device_->ops().Add({.y = z, .a = z, .b = y}); });
  }
  std::vector<float> want = Numbers(40);
  for (float& v : want) v *= 8;
  EXPECT_EQ(Read(z), want);
}

// A recorded training-like sequence has the bits of the same sequence called op by op.
TEST_F(CudaDeviceTest, ARecordingGivesTheBitsOfTheOps) {
  constexpr int64_t kN = 1000;
  std::vector<float> values(kN);
  for (size_t i = 0; i < kN; ++i) values[i] = 1.0f / (3.0f + static_cast<float>(i));
  const auto run = [&](bool recorded) {
    const Tensor x = Make(values), y = Make(kN);
    const Tensor narrow(device_->Allocate(2 * kN), DType::kBF16, {kN});
    const auto sequence = [&] {
      device_->ops().Add({.y = y, .a = y, .b = x});
      device_->ops().Cast({.y = narrow, .x = y});
      device_->ops().Add({.y = y, .a = narrow, .b = y});
    };
    const auto recording = device_->MakeRecording();
    for (int i = 0; i < 4; ++i) {
      if (recorded) {
        recording->Run(sequence);
      } else {
        sequence();
      }
    }
    return Read(y);
  };
  EXPECT_EQ(run(true), run(false));
}

TEST_F(CudaDeviceTest, ARecordingMayBeMadeAndLeftUnused) {
  device_->MakeRecording();
  const Tensor y = Make(8);
  {
    const auto recording = device_->MakeRecording();
    for (int i = 0; i < 3; ++i) recording->Run([&] { device_->ops().Fill({.y = y, .value = 2}); });
  }  // destroyed while its work may still run
  EXPECT_EQ(Read(y), std::vector<float>(8, 2.0f));
}

TEST_F(CudaDeviceTest, CopiesAmongRecordedOpsAreRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a forked child cannot go on using a GPU
  const Tensor y = Make(8);
  std::vector<float> host(8);
  const auto recording = device_->MakeRecording();
  recording->Run([&] { device_->ops().Fill({.y = y, .value = 2}); });
  EXPECT_DEATH(recording->Run([&] { device_->CopyToHost(host.data(), y.data, y.num_bytes()); }),
               "CopyToHost among recorded ops");
  EXPECT_DEATH(recording->Run([&] { device_->CopyToDevice(y.data, host.data(), y.num_bytes()); }),
               "CopyToDevice among recorded ops");
}

TEST_F(CudaDeviceTest, RangesMayBeNamed) {
  const Tensor y = Make(4);
  {
    const OpsRange block(device_->ops(), "block");
    const OpsRange part(device_->ops(), std::string("part").c_str());
    device_->ops().Fill({.y = y, .value = 3});
  }
  EXPECT_EQ(Read(y), std::vector<float>(4, 3.0f));
}

TEST_F(CudaDeviceTest, FreeingMemoryOfOthersIsAMistake) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  int host = 0;
  EXPECT_DEATH(device_->Free(&host), "did not allocate");
}
}  // namespace
}  // namespace carousel::testing
