// Where the mLSTM's tensor-core scan is used, and into how many segments it splits a sequence.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "core/device.h"
#include "kernels/cuda/make_cuda_device.h"
#include "kernels/cuda/mlstm_scan.h"
#include "kernels/simt/fake_cudart.h"
#include "tests/device_mlstm_testing.h"
#include "tests/mlstm_summary_cases.h"

namespace carousel::simt {
namespace {
DeviceInfo Device(int compute_capability, int num_sms, int64_t shared_kib) {
  DeviceInfo device;
  device.compute_capability = compute_capability;
  device.num_sms = num_sms;
  device.max_shared_bytes = shared_kib * 1024;
  return device;
}
MlstmShape Shape(int64_t B, int64_t T, int64_t NH, int64_t DHQK, int64_t DHV) {
  return {.B = B, .T = T, .NH = NH, .DHQK = DHQK, .DHV = DHV, .L = 64};
}

TEST(MlstmScan, IsThereForCertainHeadWidthsOnDevicesWithTheSharedMemory) {
  const DeviceInfo large = Device(80, 108, 163), small = Device(86, 82, 99), old = Device(75, 40, 64);
  for (const auto& [DHQK, DHV] :
       {std::pair{64, 64}, {64, 128}, {128, 128}, {128, 256}, {256, 256}, {1280, 1280}}) {
    EXPECT_TRUE(MlstmScanSupports(large, DHQK, DHV));
    EXPECT_TRUE(MlstmScanSupports(small, DHQK, DHV));
    EXPECT_FALSE(MlstmScanSupports(old, DHQK, DHV));
  }
  for (const auto& [DHQK, DHV] : {std::pair{192, 384}, {256, 512}, {384, 384}, {512, 512}, {1024, 1024}}) {
    EXPECT_TRUE(MlstmScanSupports(large, DHQK, DHV));
    EXPECT_FALSE(MlstmScanSupports(small, DHQK, DHV));
  }
  for (const auto& [DHQK, DHV] : {std::pair{96, 96}, {64, 256}, {128, 64}, {192, 192}, {640, 640}, {0, 0}})
    EXPECT_FALSE(MlstmScanSupports(large, DHQK, DHV)) << DHQK << "/" << DHV;
}

TEST(MlstmScan, SplitsASequenceOnlyWhereItsPairsDoNotFillTheDevice) {
  const DeviceInfo device = Device(90, 132, 227);
  EXPECT_EQ(PickMlstmSegments(device, Shape(8, 8192, 8, 256, 512)).num_segments, 1);
  EXPECT_EQ(PickMlstmSegments(device, Shape(1, 8192, 8, 256, 512)).num_segments, 4);    // 32 blocks
  EXPECT_EQ(PickMlstmSegments(device, Shape(1, 8192, 4, 192, 384)).num_segments, 11);   // 12 blocks
  EXPECT_EQ(PickMlstmSegments(device, Shape(1, 8192, 1, 1024, 1024)).num_segments, 4);  // 32 blocks
  EXPECT_EQ(PickMlstmSegments(device, Shape(1, 8192, 4, 1280, 1280)).num_segments, 1);  // 200 blocks
  EXPECT_EQ(PickMlstmSegments(device, Shape(1, 8192, 4, 64, 64)).num_segments, 32);  // 33 would not be even
  EXPECT_EQ(PickMlstmSegments(device, Shape(1, 256, 1, 64, 64)).num_segments, 1);    // too short
}

TEST(MlstmScan, SegmentsHoldEveryChunkAndNoneIsEmpty) {
  const DeviceInfo device = Device(90, 132, 227);
  for (int64_t B = 1; B <= 40; ++B) {
    for (int64_t T = 1; T <= 20000; T = T * 4 / 3 + 1) {
      const int64_t NC = CeilDiv(T, kMlstmChunk);
      const MlstmSegments s = PickMlstmSegments(device, Shape(B, T, 4, 128, 128));
      EXPECT_GE(s.num_segments * s.chunks_per_segment, NC);
      EXPECT_LT((s.num_segments - 1) * s.chunks_per_segment, NC);
    }
  }
}

TEST(MlstmScan, AWorkspaceIsEnoughForEverySmallerShape) {
  for (const int num_sms : {1, 4, 108, 132}) {
    const DeviceInfo device = Device(90, num_sms, 227);
    for (int64_t T = 1; T <= 20000; T = T * 3 / 2 + 1) {
      for (int64_t B = 1; B <= 150; ++B) {
        const MlstmShape shape = Shape(B, T, 1, 128, 128);
        EXPECT_GE(MaxMlstmSegmentStates(device, shape), B * PickMlstmSegments(device, shape).num_segments);
        if (B > 1) {
          EXPECT_GE(MaxMlstmSegmentStates(device, shape),
                    MaxMlstmSegmentStates(device, Shape(B - 1, T, 1, 128, 128)));
        }
        if (T > 1) {
          EXPECT_GE(MaxMlstmSegmentStates(device, shape),
                    MaxMlstmSegmentStates(device, Shape(B, T * 2 / 3, 1, 128, 128)));
        }
      }
    }
  }
}

// On a device with blocks to spare, which the emulation of the other tests is not.
TEST(MlstmScan, SegmentsOfHeadsCutIntoBlocksJoin) {
  const fake_cuda::Options before = fake_cuda::GetOptions();
  fake_cuda::Options options = before;
  options.num_sms = 8;
  fake_cuda::SetOptions(options);
  const MlstmShape shape = Shape(1, 530, 1, 512, 256);
  EXPECT_EQ(PickMlstmSegments(Device(90, options.num_sms, 227), shape).num_segments, 2);
  mlstm_test::Problem p = mlstm_test::RandomProblem(shape, 21);
  mlstm_test::AddInitialState(p, 22);
  mlstm_test::AddLastGradient(p, 23);
  p.reset.assign(static_cast<size_t>(p.N()), 0);
  p.reset[40] = 1;
  mlstm_test::RoundInputs(p, DType::kBF16);
  const mlstm_test::Result expected = mlstm_test::Specification(p);
  for (const GpuKernels kernels : {GpuKernels::kBest, GpuKernels::kPortable}) {
    std::string error;
    const std::unique_ptr<carousel::Device> device = MakeCudaDevice(0, &error, kernels);
    ASSERT_NE(device, nullptr) << error;
    const mlstm_test::Result r = mlstm_test::RunOn<bfloat16>(*device, p);
    mlstm_test::ExpectBf16Close(r, expected);
    EXPECT_LE(mlstm_test::RelativeError(r.dC, expected.dC), 1e-2);
    EXPECT_LE(mlstm_test::RelativeError(r.dn, expected.dn), 1e-2);
  }
  fake_cuda::SetOptions(before);
}
}  // namespace
}  // namespace carousel::simt
