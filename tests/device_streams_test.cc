// Streams and events of the CUDA backend on the emulated GPU, whose interleaving of streams is seeded.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "kernels/cuda/make_cuda_device.h"
#include "kernels/simt/fake_cudart.h"

namespace carousel::testing {
namespace {
constexpr int kNumSeeds = 20;
constexpr int64_t kN = 300;

class DeviceStreams : public ::testing::Test {
 protected:
  void TearDown() override {
    device_.reset();
    EXPECT_EQ(fake_cuda::CountLiveObjects(), fake_cuda::LiveObjects{});
  }
  Tensor Make(int64_t n, double value = 0) {
    const Tensor x(device_->Allocate(n * SizeOf(DType::kF32)), DType::kF32, {n});
    device_->ops().Fill({.y = x, .value = value});
    device_->Synchronize();
    return x;
  }
  std::vector<float> Read(Tensor x) {
    std::vector<float> values(static_cast<size_t>(x.num_elems()));
    device_->Synchronize();
    device_->CopyToHost(values.data(), x.data, x.num_bytes());
    return values;
  }
  static std::vector<float> All(float value) { return std::vector<float>(kN, value); }
  // In how many seeds the body, with a fresh device and a stream beside, is true.
  int CountSeeds(const std::function<bool(Stream& compute, Stream& beside)>& body) {
    int count = 0;
    for (uint64_t seed = 1; seed <= kNumSeeds; ++seed) {
      Open({.seed = seed});
      const auto compute = device_->ComputeStream(), beside = device_->MakeStream();
      count += body(*compute, *beside);
    }
    return count;
  }
  void Open(const fake_cuda::Options& options = {}) {
    device_.reset();
    fake_cuda::SetOptions(options);
    std::string error;
    device_ = simt::MakeCudaDevice(0, &error);
    ASSERT_NE(device_, nullptr) << error;
  }

  std::unique_ptr<Device> device_;
};

TEST_F(DeviceStreams, TheComputeStreamIsTheOneOfTheDevice) {
  Open();
  const auto compute = device_->ComputeStream(), beside = device_->MakeStream();
  EXPECT_EQ(compute->native(), device_->native_stream());
  EXPECT_EQ(&compute->ops(), &device_->ops());
  EXPECT_NE(beside->native(), device_->native_stream());
  EXPECT_NE(&beside->ops(), &device_->ops());
}

TEST_F(DeviceStreams, AnEventOrdersStreamsInEverySeed) {
  EXPECT_EQ(CountSeeds([&](Stream& compute, Stream& beside) {
              const Tensor x = Make(kN), y = Make(kN);
              const auto event = device_->MakeEvent();
              compute.ops().Fill({.y = x, .value = 5});
              compute.Record(*event);
              beside.Wait(*event);
              beside.ops().Add({.y = y, .a = x, .b = x});
              beside.Record(*event);  // the same event, used again
              compute.Wait(*event);
              compute.ops().Add({.y = y, .a = y, .b = x});
              return Read(y) == All(15);
            }),
            kNumSeeds);
}

TEST_F(DeviceStreams, AMissingWaitGivesWrongResultsInSomeSeeds) {
  const int right = CountSeeds([&](Stream& compute, Stream& beside) {
    const Tensor x = Make(kN), y = Make(kN);
    const auto event = device_->MakeEvent();
    compute.ops().Fill({.y = x, .value = 5});
    compute.Record(*event);
    beside.ops().Add({.y = y, .a = x, .b = x});
    return Read(y) == All(10);
  });
  EXPECT_GT(right, 0);
  EXPECT_LT(right, kNumSeeds);
}

TEST_F(DeviceStreams, AWaitDroppedByOptionGivesWrongResultsInSomeSeeds) {
  int right = 0;
  for (uint64_t seed = 1; seed <= kNumSeeds; ++seed) {
    Open({.seed = seed});
    const auto compute = device_->ComputeStream(), beside = device_->MakeStream();
    const Tensor x = Make(kN), y = Make(kN);
    const auto event = device_->MakeEvent();
    fake_cuda::SetOptions({.seed = seed, .drop_event_wait = 0});
    compute->ops().Fill({.y = x, .value = 5});
    compute->Record(*event);
    beside->Wait(*event);
    beside->ops().Add({.y = y, .a = x, .b = x});
    right += Read(y) == All(10);
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, kNumSeeds);
}

TEST_F(DeviceStreams, AnEventThatWasNeverRecordedIsNotWaitedFor) {
  Open();
  const auto beside = device_->MakeStream();
  const auto event = device_->MakeEvent();
  const Tensor x = Make(kN);
  beside->Wait(*event);
  beside->ops().Fill({.y = x, .value = 1});
  EXPECT_EQ(Read(x), All(1));
}

TEST_F(DeviceStreams, SynchronizeWaitsForAllStreams) {
  EXPECT_EQ(CountSeeds([&](Stream&, Stream& beside) {
              const Tensor x = Make(kN);
              beside.ops().Fill({.y = x, .value = 3});
              return Read(x) == All(3);
            }),
            kNumSeeds);
}

TEST_F(DeviceStreams, NewMemoryIsZeroForAllStreams) {
  EXPECT_EQ(CountSeeds([&](Stream& compute, Stream& beside) {
              for (int i = 0; i < 5; ++i) compute.ops().Fill({.y = Make(kN), .value = 1});
              const Tensor x(device_->Allocate(kN * 4), DType::kF32, {kN});
              beside.ops().Fill({.y = x, .value = 2});
              return Read(x) == All(2);
            }),
            kNumSeeds);
}

// Ops that need scratch memory and matrix products, on both streams at once.
TEST_F(DeviceStreams, EachStreamHasScratchMemoryOfItsOwn) {
  constexpr int64_t kRows = 700, kColumns = 24;
  EXPECT_EQ(CountSeeds([&](Stream& compute, Stream& beside) {
              Stream* streams[] = {&compute, &beside};
              std::vector<Tensor> sums, products;
              std::vector<Tensor> x;
              for (int i = 0; i < 2; ++i) {
                x.push_back(Make(kRows * kColumns, i + 1).Reshape({kRows, kColumns}));
                sums.push_back(Make(kColumns));
                products.push_back(Make(kColumns * kColumns).Reshape({kColumns, kColumns}));
              }
              for (int round = 0; round < 3; ++round) {
                for (size_t i = 0; i < 2; ++i) {
                  Ops& ops = streams[i]->ops();
                  ops.ColumnSum({.y = sums[i], .x = x[i]});
                  ops.Matmul({.c = products[i], .a = x[i], .b = x[i], .transpose_a = true});
                }
              }
              bool right = true;
              for (size_t i = 0; i < 2; ++i) {
                const float value = static_cast<float>(i + 1);
                for (const float sum : Read(sums[i])) right &= sum == 3 * kRows * value;
                for (const float product : Read(products[i].Reshape({kColumns * kColumns}))) {
                  right &= product == kRows * value * value;
                }
              }
              return right;
            }),
            kNumSeeds);
}

// ---- recordings

TEST_F(DeviceStreams, ARecordingRunsBesideAnotherStreamInEverySeed) {
  EXPECT_EQ(CountSeeds([&](Stream& compute, Stream& beside) {
              const Tensor x = Make(kN, 1), y = Make(kN), z = Make(kN), total = Make(kN);
              const auto played = device_->MakeEvent(), read = device_->MakeEvent();
              const auto recording = device_->MakeRecording();
              int num_calls = 0;
              for (int run = 0; run < 5; ++run) {
                compute.Wait(*read);
                recording->Run([&] {
                  ++num_calls;
                  device_->ops().Add({.y = y, .a = y, .b = x});
                });
                compute.Record(*played);
                beside.Wait(*played);
                beside.ops().Add({.y = total, .a = total, .b = y});
                beside.Record(*read);
                beside.ops().Add({.y = z, .a = z, .b = x});
              }
              return num_calls == 2 && Read(y) == All(5) && Read(z) == All(5) && Read(total) == All(15);
            }),
            kNumSeeds);
}

// Memory of a stream beside that moved: what was recorded is recorded anew.
TEST_F(DeviceStreams, ARecordingThatUsesTwoStreamsIsPlayedOnBoth) {
  constexpr int64_t kColumns = 40;
  EXPECT_EQ(CountSeeds([&](Stream& compute, Stream& beside) {
              const Tensor x = Make(2000 * kColumns, 1).Reshape({2000, kColumns}), sum = Make(kColumns);
              const auto forked = device_->MakeEvent(), joined = device_->MakeEvent();
              const auto recording = device_->MakeRecording();
              int num_calls = 0;
              const auto run = [&] {
                recording->Run([&] {
                  ++num_calls;
                  compute.ops().Add({.y = x, .a = x, .b = x});
                  compute.Record(*forked);
                  beside.Wait(*forked);
                  beside.ops().ColumnSum({.y = sum, .x = x.Rows(0, 100)});
                  beside.Record(*joined);
                  compute.Wait(*joined);
                });
              };
              for (int i = 0; i < 3; ++i) run();
              device_->Synchronize();
              beside.ops().ColumnSum({.y = Make(kColumns), .x = x});  // needs more scratch memory
              device_->Synchronize();  // the recording is played in order with the compute stream alone
              for (int i = 0; i < 2; ++i) run();
              // 100 rows of 2 + 4 + 8 + 16 + 32.
              return num_calls == 3 && Read(sum) == std::vector<float>(kColumns, 6200);
            }),
            kNumSeeds);
}

TEST_F(DeviceStreams, AStreamThatOutlivesItsDeviceIsAMistake) {
  Open();
  EXPECT_DEATH(
      {
        const auto beside = device_->MakeStream();
        device_.reset();
      },
      "a stream outlives its device");
}
}  // namespace
}  // namespace carousel::testing
