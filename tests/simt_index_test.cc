// Tensors of more than 2^31 elements: the emulation runs the one block of a grid that holds the last row, so
// that a tensor of gigabytes costs the memory of the rows that are touched.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <utility>

#include "core/base/random.h"
#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_cudart.h"

#define CAROUSEL_TEST_DEVICE simt
#include "tests/device_testing.h"

namespace carousel::testing {
namespace {

using PickBlock = std::function<int64_t(dim3 grid)>;
PickBlock pick_block;

cudaError_t RunOneBlock(const gpu::LaunchCfg& config, emulator::Thunk thunk, std::shared_ptr<void> pack) {
  emulator::options().only_block = pick_block(config.grid);
  emulator::run_grid(config, thunk, pack.get());
  return cudaSuccess;
}

constexpr int64_t kWidth = 8192, kRows = 280001;
static_assert(kRows * kWidth > int64_t{1} << 31);

// Two matrices (kRows, kWidth) of memory that nobody has touched before the first test.
class DeviceIndex : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    fake_cuda::Options options = fake_cuda::GetOptions();
    options.num_sms = 132;  // many blocks share the rows of a backward pass
    fake_cuda::SetOptions(options);
    wide = Tensor(emulator::device_alloc(kRows * kWidth * 4, /*poison=*/false), DType::kF32, {kRows, kWidth});
    narrow =
        Tensor(emulator::device_alloc(kRows * kWidth * 2, /*poison=*/false), DType::kBF16, {kRows, kWidth});
  }
  static void TearDownTestSuite() {
    emulator::device_free(wide.data);
    emulator::device_free(narrow.data);
  }
  DeviceIndex() : submit_(std::exchange(emulator::submit, RunOneBlock)), options_(emulator::options()) {
    pick_block = [](dim3 grid) { return int64_t{grid.x} * grid.y * grid.z - 1; };
  }
  ~DeviceIndex() override {
    emulator::submit = submit_;
    emulator::options() = options_;
  }
  // Zeros.
  void* Allocate(int64_t bytes) {
    void* const memory = device->Allocate(bytes);
    device->Synchronize();  // kernels run at once here, so what is before them must have run
    return memory;
  }
  // A vector on the device, all of one value.
  Tensor Vector(int64_t n, float value) {
    Tensor t(Allocate(n * 4), DType::kF32, {n});
    for (int64_t i = 0; i < n; ++i) t.as<float>()[i] = value;
    return t;
  }
  float& Wide(int64_t r, int64_t c) { return wide.as<float>()[r * kWidth + c]; }
  bfloat16& Narrow(int64_t r, int64_t c) { return narrow.as<bfloat16>()[r * kWidth + c]; }

  const emulator::SubmitFn submit_;
  const emulator::Options options_;
  std::unique_ptr<Device> device = MakeTestDevice();
  static inline Tensor wide, narrow;
};

TEST_F(DeviceIndex, CastReachesTheLastElements) {
  Wide(kRows - 1, kWidth - 1) = 2.5f;
  device->ops().Cast({.y = narrow, .x = wide});
  device->Synchronize();
  EXPECT_EQ(static_cast<float>(Narrow(kRows - 1, kWidth - 1)), 2.5f);
}

TEST_F(DeviceIndex, CastOfRowsWithGapsReachesTheLastElements) {
  Wide(kRows - 1, 4095) = 3.5f;
  device->ops().Cast({.y = narrow.Columns(0, 4096), .x = wide.Columns(0, 4096)});
  device->Synchronize();
  EXPECT_EQ(static_cast<float>(Narrow(kRows - 1, 4095)), 3.5f);
}

TEST_F(DeviceIndex, DropoutDrawsForTheElementsPlace) {
  for (int64_t c = kWidth - 64; c < kWidth; ++c) Narrow(kRows - 1, c) = bfloat16(1.0f);
  device->ops().Dropout({.y = narrow, .x = narrow, .rate = 0.5, .key = 5});
  device->Synchronize();
  for (int64_t c = kWidth - 64; c < kWidth; ++c) {
    const uint64_t e = static_cast<uint64_t>((kRows - 1) * kWidth + c);
    const bool keep = RandomBits(5, 0, e / 4)[e % 4] >= 0x80000000u;
    EXPECT_EQ(static_cast<float>(Narrow(kRows - 1, c)), keep ? 2.0f : 0.0f) << c;
  }
}

TEST_F(DeviceIndex, GluReachesTheLastElementsOfBothHalves) {
  const Tensor gate = narrow.Columns(0, 4096), up = narrow.Columns(4096, 4096);
  Tensor y = wide;  // room for (kRows, 4096) bf16
  y.dtype = DType::kBF16;
  y.dim[1] = y.row_stride = 4096;
  Narrow(kRows - 1, 4095) = bfloat16(20.0f);
  Narrow(kRows - 1, 8191) = bfloat16(3.0f);
  device->ops().GluForward({.y = y, .gate = gate, .up = up});
  device->Synchronize();
  EXPECT_EQ(static_cast<float>(y.as<bfloat16>()[kRows * 4096 - 1]), 60.0f);
}

TEST_F(DeviceIndex, NormsReachTheLastRow) {
  const Tensor weight = Vector(kWidth, 1), rstd = Vector(kRows, 0), dweight = Vector(kWidth, 0);
  for (int64_t c = 0; c < kWidth; ++c) Wide(kRows - 1, c) = c % 2 == 0 ? 2.0f : -2.0f;
  device->ops().RmsNormForward({.y = narrow, .rstd = rstd, .x = wide, .weight = weight, .eps = 0});
  device->Synchronize();
  EXPECT_EQ(rstd.as<float>()[kRows - 1], 0.5f);
  EXPECT_EQ(static_cast<float>(Narrow(kRows - 1, kWidth - 1)), -1.0f);

  // The block that takes the last row has taken rows before it.
  pick_block = [](dim3 grid) { return (kRows - 1) % grid.x * grid.y; };
  Narrow(kRows - 1, kWidth - 1) = bfloat16(-1.0f);
  for (int64_t c = 0; c < kWidth - 1; ++c) Narrow(kRows - 1, c) = bfloat16(0.0f);
  device->ops().RmsNormBackward(
      {.dx = wide, .dweight = dweight, .dy = narrow, .x = wide, .weight = weight, .rstd = rstd});
  device->Synchronize();
  // dx = rstd (dy - xhat mean(dy xhat)), xhat = -1 in the last column
  EXPECT_NEAR(Wide(kRows - 1, kWidth - 1), 0.5 * (-1 + 1.0 / kWidth), 1e-6);
  EXPECT_NEAR(Wide(kRows - 1, 0), 0.5 * (-1.0 / kWidth), 1e-9);
}

TEST_F(DeviceIndex, TheHeadNormReachesTheLastHead) {
  const Tensor mean(Allocate(kRows * 16 * 4), DType::kF32, {kRows, 16});
  const Tensor rstd(Allocate(kRows * 16 * 4), DType::kF32, {kRows, 16});
  Tensor y = wide;  // room for (kRows, kWidth) bf16
  y.dtype = DType::kBF16;
  for (int64_t c = kWidth - 512; c < kWidth; ++c) Narrow(kRows - 1, c) = bfloat16(c % 2 == 0 ? 5.0f : 1.0f);
  device->ops().HeadNormGateForward({.y = y, .mean = mean, .rstd = rstd, .h = narrow, .NH = 16, .eps = 0});
  device->Synchronize();
  EXPECT_EQ(mean.as<float>()[kRows * 16 - 1], 3.0f);
  EXPECT_EQ(static_cast<float>(y.as<bfloat16>()[kRows * kWidth - 1]), -1.0f);
}

TEST_F(DeviceIndex, TheConvolutionReachesTheLastToken) {
  Tensor y = wide;  // room for (kRows, kWidth) bf16
  y.dtype = DType::kBF16;
  for (const int64_t K : {4, 3}) {
    const Tensor weight(Allocate(kWidth * K * 2), DType::kBF16, {kWidth, K});
    for (int64_t i = 0; i < kWidth * K; ++i) weight.as<bfloat16>()[i] = bfloat16(1.0f);
    for (int64_t t = 0; t < K; ++t) Narrow(kRows - 1 - t, kWidth - 1) = bfloat16(1.0f);
    device->ops().CausalConvForward({.y = y,
                                     .x = narrow,
                                     .weight = weight,
                                     .shape = {.B = 1, .T = kRows, .C = kWidth, .K = K},
                                     .silu = false});
    device->Synchronize();
    EXPECT_EQ(static_cast<float>(y.as<bfloat16>()[kRows * kWidth - 1]), static_cast<float>(K));
  }
}
}  // namespace
}  // namespace carousel::testing
