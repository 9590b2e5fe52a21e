// What comparing logits takes, and what it finds.
#include "launcher/models/export_check.h"

#include <gtest/gtest.h>

#include "checkpoints/hf_export.h"
#include "core/model/bound_model.h"
#include "launcher/progress_bar.h"
#include "tests/temp_dir.h"
#include "tests/xlstm_package_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::ExportableSpec;
using testing::MemoryWeights;

TEST(LogitCheckBytes, IsEnoughForTheModelAndItsLogits) {
  const std::unique_ptr<Device> device = testing::CpuDevice(1);
  std::vector<std::pair<std::string, ModelSpec>> specs = testing::PaperSpecs();
  specs.emplace_back("large", ExportableSpec());
  ModelSpec wide = ExportableSpec();
  wide.vocab_size = 5000;
  specs.emplace_back("wide", wide);
  for (const auto& [name, spec] : specs) {
    const BoundModel model(spec, {.compute = DType::kF32, .B = 1, .T = 150}, *device);
    ASSERT_TRUE(model.ok());
    EXPECT_GE(LogitCheckBytes(spec), model.needed_bytes() + 2 * 4 * 150 * spec.vocab_size) << name;
    EXPECT_LE(LogitCheckBytes(spec), 20 * model.needed_bytes()) << name;
  }
}

TEST(AvailableHostBytes, IsSomethingHere) {
  EXPECT_GT(AvailableHostBytes(), int64_t{1} << 20);
  EXPECT_LT(AvailableHostBytes(), int64_t{1} << 50);
}

TEST(CompareLogits, FindsWeightsThatAreNotTheModels) {
  const TempDir temp;
  MemoryWeights weights(ExportableSpec());
  PosixFileSystem files;
  const auto write = [&](const std::string& name) {
    HfExportOptions options;
    options.dialect = ConfigDialect::kReference;
    options.out_dir = temp.path() + "/" + name;
    EXPECT_TRUE(ExportHf(ExportableSpec(), weights, options, files).ok());
    return options.out_dir;
  };
  const auto source = OpenModel(write("a"));
  ASSERT_TRUE(source.ok()) << source.status();
  const auto same = CompareLogits(*source, source->path, DType::kF32, 1);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->find("max |delta logit| = 0 "), 0u) << *same;
  weights.values("backbone.blocks.1.ffn.proj_down.weight")[7] += 1;
  const absl::Status other = CompareLogits(*source, write("b"), DType::kF32, 1).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kDataLoss) << other;
  EXPECT_TRUE(Contains(other, "max |delta logit|") && Contains(other, source->path)) << other;
  const float nan = std::nanf("");
  weights.values("backbone.blocks.1.ffn.proj_down.weight")[7] = nan;
  EXPECT_EQ(CompareLogits(*source, write("c"), DType::kF32, 1).status().code(), absl::StatusCode::kDataLoss);
}

TEST(ProgressBar, ShowsShareAndBytes) {
  const int64_t gib = int64_t{1} << 30;
  EXPECT_EQ(ProgressBar::Line("export", gib, 4 * gib),
            "export  [=======                       ]  25 %  1 GiB of 4 GiB");
  EXPECT_EQ(ProgressBar::Line("x", 0, 0), "x  [==============================] 100 %  0 bytes of 0 bytes");
}
}  // namespace
}  // namespace carousel
