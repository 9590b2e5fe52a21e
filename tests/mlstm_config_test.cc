// How the device computes the mLSTM cells of the shipped configs.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "configs/load.h"
#include "core/base/int_math.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/mlstm_config.h"
#include "kernels/cuda/mlstm_generic.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

const DeviceInfo kA100 = {.name = "sm_80",
                          .compute_capability = 80,
                          .num_sms = 108,
                          .max_shared_bytes = 163 << 10,
                          .memory_bytes = 80LL << 30};
const DeviceInfo kH100 = {.name = "sm_90",
                          .compute_capability = 90,
                          .num_sms = 132,
                          .max_shared_bytes = 227 << 10,
                          .memory_bytes = 80LL << 30};

// The mLSTM cells of all recipes, one sequence of one token each.
std::vector<std::pair<std::string, MlstmShape>> ShippedShapes() {
  std::vector<std::pair<std::string, MlstmShape>> shapes;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(CAROUSEL_SOURCE_DIR) + "/configs")) {
    if (entry.path().extension() != ".textproto") continue;
    const absl::StatusOr<RunSpec> run = LoadRun(entry.path(), {});
    EXPECT_TRUE(run.ok()) << entry.path() << run.status();
    if (!run.ok()) continue;
    const ModelSpec& spec = run->model;
    shapes.emplace_back(entry.path().stem(), MlstmShape{.B = 1,
                                                        .T = 1,
                                                        .NH = spec.num_heads,
                                                        .DHQK = spec.head_dim_qk(),
                                                        .DHV = spec.head_dim_v(),
                                                        .L = spec.chunk_length,
                                                        .input_gate = spec.input_gate});
  }
  EXPECT_GE(shapes.size(), 19u);
  return shapes;
}

// The table of mlstm_config.h.
TEST(MlstmConfig, ShippedModelsRunOnTensorCoresExceptThoseOfOddHeadSizes) {
  const std::set<std::string> expected = {"bench_step",        // 32/64
                                          "bench_checkpoint",  // 96/192
                                          "demo_bytes"};       // 32/64
  for (const DeviceInfo& device : {kA100, kH100}) {
    std::set<std::string> generic;
    for (auto [name, s] : ShippedShapes()) {
      s.B = 8, s.T = 2048;
      if (!PickMlstmConfig(s, DType::kBF16, device).tensor_cores) generic.insert(name);
    }
    EXPECT_EQ(generic, expected) << device.name;
  }
}

// Heads that a scan takes whole, and those of the sizes below that it takes in blocks.
std::set<std::pair<int64_t, int64_t>> WidthsOfScans() {
  return {{64, 64},   {64, 128},  {128, 128}, {128, 256},  {192, 384}, {256, 256}, {256, 512}, {384, 384},
          {512, 512}, {256, 768}, {512, 768}, {256, 1024}, {384, 768}, {512, 256}, {512, 1024}};
}

TEST(MlstmConfig, TheTensorCoreScanIsForBf16OfItsHeadSizes) {
  const std::set<std::pair<int64_t, int64_t>> widths = WidthsOfScans();
  for (const int64_t DHQK : {16, 64, 96, 128, 192, 256, 384, 512}) {
    for (const int64_t DHV : {16, 64, 128, 192, 256, 384, 512, 768, 1024}) {
      const MlstmShape s = {.B = 2, .T = 100, .NH = 4, .DHQK = DHQK, .DHV = DHV, .L = 64};
      EXPECT_EQ(PickMlstmConfig(s, DType::kBF16, kH100).tensor_cores, widths.count({DHQK, DHV}) == 1)
          << DHQK << "/" << DHV;
      EXPECT_FALSE(PickMlstmConfig(s, DType::kF32, kH100).tensor_cores);
      EXPECT_FALSE(PickMlstmConfig(s, DType::kF64, kH100).tensor_cores);
    }
  }
  // counters that do not fit into its ints
  const MlstmShape huge = {.B = 1 << 20, .T = 1 << 12, .NH = 1, .DHQK = 64, .DHV = 64, .L = 64};
  EXPECT_FALSE(PickMlstmConfig(huge, DType::kBF16, kH100).tensor_cores);
}

// Scans on wgmma: on compute capability 9.0 alone, for the head sizes that tensor cores have scans for,
// unless the portable kernels are asked for.
TEST(MlstmConfig, TheSm90ScanIsForItsArchitectureAndHeadSizes) {
  const std::set<std::pair<int64_t, int64_t>> widths = WidthsOfScans();
  DeviceInfo portable = kH100, newer = kH100, small = kH100;
  portable.portable_kernels = true;
  newer.compute_capability = 100;
  small.max_shared_bytes = 163 << 10;
  for (const int64_t DHQK : {16, 64, 128, 192, 256, 384, 512}) {
    for (const int64_t DHV : {16, 64, 128, 192, 256, 384, 512, 768, 1024}) {
      SCOPED_TRACE(::testing::Message() << DHQK << "/" << DHV);
      const MlstmShape s = {.B = 2, .T = 100, .NH = 4, .DHQK = DHQK, .DHV = DHV, .L = 64};
      const MlstmConfig config = PickMlstmConfig(s, DType::kBF16, kH100);
      EXPECT_EQ(config.sm90, widths.count({DHQK, DHV}) == 1);
      EXPECT_LE(config.sm90, config.tensor_cores);
      const auto joined = DHQK == 64 && (DHV == 64 || DHV == 128) ? MlstmSm90Joined::kAll
                          : DHQK == 128 && DHV == 128             ? MlstmSm90Joined::kDKV
                                                                  : MlstmSm90Joined::kNone;
      EXPECT_EQ(config.sm90_joined, joined);
      for (const DeviceInfo& device : {kA100, portable, newer}) {
        EXPECT_FALSE(PickMlstmConfig(s, DType::kBF16, device).sm90);
        EXPECT_EQ(PickMlstmConfig(s, DType::kBF16, device).sm90_joined, MlstmSm90Joined::kNone);
        EXPECT_EQ(PickMlstmConfig(s, DType::kBF16, device).tensor_cores, config.tensor_cores);
      }
      EXPECT_FALSE(PickMlstmConfig(s, DType::kF32, kH100).sm90);
      int64_t most_bytes = 0;
      for (const MlstmRole role : {MlstmRole::kH, MlstmRole::kDQ, MlstmRole::kDV, MlstmRole::kDK}) {
        const int64_t bytes = MlstmSm90SharedBytes(role, DHQK, DHV);
        EXPECT_EQ(bytes > 0, config.sm90);
        EXPECT_LE(bytes, 227 << 10);
        most_bytes = std::max(most_bytes, bytes);
      }
      EXPECT_EQ(MlstmSm90Supports(small, DHQK, DHV), config.sm90 && most_bytes <= small.max_shared_bytes);
      EXPECT_EQ(MlstmSm90SharedBytes(MlstmRole::kForwardState, DHQK, DHV), 0);
      const int64_t joined_bytes = MlstmSm90JoinedSharedBytes(DHQK, DHV);
      EXPECT_EQ(joined_bytes > 0, joined != MlstmSm90Joined::kNone);
      EXPECT_LE(joined_bytes, 227 << 10);
      EXPECT_EQ(
          MlstmSm90JoinedScans(small, DHQK, DHV),
          std::max(most_bytes, joined_bytes) <= small.max_shared_bytes ? joined : MlstmSm90Joined::kNone);
    }
  }
}

TEST(MlstmConfig, LargeHeadsAreCutIntoTheLargestBlocksThatDivideThem) {
  using Sizes = std::pair<int64_t, int64_t>;
  const std::map<Sizes, int64_t> widths = {
      {{768, 768}, 384}, {{1024, 1024}, 512}, {{1280, 1280}, 256}, {{512, 1024}, 512}, {{1024, 512}, 512},
      {{384, 768}, 384}, {{768, 1024}, 256},  {{256, 768}, 256},   {{512, 256}, 256},  {{1536, 1536}, 512},
      {{512, 512}, 0},   {{384, 384}, 0},     {{256, 512}, 0},     {{640, 640}, 0},    {{1024, 640}, 0},
      {{1024, 0}, 0},    {{0, 1024}, 0}};
  for (const auto& [sizes, width] : widths) {
    SCOPED_TRACE(::testing::Message() << sizes.first << "/" << sizes.second);
    EXPECT_EQ(MlstmBlockWidth(sizes.first, sizes.second), width);
    const int64_t blocks = NumMlstmBlocks(sizes.first, sizes.second);
    EXPECT_EQ(blocks, width == 0 ? 1 : sizes.first * sizes.second / (width * width));
    if (width == 0) continue;
    // every block of threads has its dots, and the two kinds of scan leave as many anchors
    for (const MlstmRole role : {MlstmRole::kH, MlstmRole::kDQ}) {
      EXPECT_EQ(MlstmScanSlices(role, sizes.first, sizes.second),
                MlstmScanSlices(role, width, width) * blocks);
      EXPECT_EQ(blocks % NumMlstmColumnBlocks(role, sizes.first, sizes.second), 0);
    }
    EXPECT_EQ(MlstmScanAnchorParts(sizes.first, sizes.second), MlstmScanAnchorParts(width, width) * blocks);
    EXPECT_EQ(MlstmSm90DotParts(sizes.first, sizes.second), sizes.first / 64 * (sizes.second / width));
  }
}

TEST(MlstmConfig, SegmentsCoverEverySequenceAndFillTheDevice) {
  for (const auto& [name, shape] : ShippedShapes()) {
    for (const int64_t B : {1, 2, 16, 64}) {
      for (const int64_t T : {1, 31, 64, 100, 2048, 8192, 65536}) {
        MlstmShape s = shape;
        s.B = B, s.T = T;
        const MlstmConfig config = PickMlstmConfig(s, DType::kBF16, kH100);
        if (!config.tensor_cores) continue;
        SCOPED_TRACE(::testing::Message() << name << " B " << B << " T " << T);
        const int64_t NC = CeilDiv(T, kMlstmChunk), n = config.segments.num_segments,
                      per_segment = config.segments.chunks_per_segment;
        EXPECT_GE(n * per_segment, NC);
        EXPECT_LT((n - 1) * per_segment, NC);
        EXPECT_LE(B * n, MaxMlstmSegmentStates(kH100, s));
        EXPECT_TRUE(n == 1 || per_segment % kMlstmAnchorChunks == 0);
        // more segments than multiprocessors would only cost; a sequence is split if most would stand idle
        const int64_t blocks = B * s.NH * MlstmScanSlices(MlstmRole::kH, s.DHQK, s.DHV);
        if (n > 1) {
          EXPECT_LE(blocks * n, kH100.num_sms);
        }
        if (T >= 8192 && 2 * blocks <= kH100.num_sms) {
          EXPECT_GT(n, 1);
        }
      }
    }
  }
}

TEST(MlstmConfig, TheGenericScanDividesEveryHeadSize) {
  for (const auto& [name, s] : ShippedShapes()) {
    for (const MlstmRole role : {MlstmRole::kH, MlstmRole::kDQ}) {
      const int64_t rows = role == MlstmRole::kH ? s.DHV : s.DHQK,
                    slices = MlstmGenericSlices(role, s.DHQK, s.DHV);
      EXPECT_GE(slices * 64, rows) << name;
      EXPECT_LT((slices - 1) * 64, rows) << name;
    }
  }
}
}  // namespace
}  // namespace carousel::CAROUSEL_DEVICE_NS
