// Writing directories of the Python package xlstm, and reading them back.
#include "checkpoints/xlstm_package_export.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoints/xlstm_package_import.h"
#include "tests/temp_dir.h"
#include "tests/xlstm_package_testing.h"

namespace carousel {
namespace {
namespace fs = std::filesystem;
using testing::Contains;
using testing::ExpectEqualWeights;
using testing::MemoryWeights;
using testing::MixedPaperSpec;
using testing::PaperSpecs;

constexpr SlstmBackend kBackends[] = {SlstmBackend::kVanilla, SlstmBackend::kCuda};

absl::StatusOr<ModelDirectoryResult> Export(const ModelSpec& spec, const WeightSource& weights,
                                            SlstmBackend backend, const PackageExportOptions& options) {
  PosixFileSystem files;
  return ExportPackage({.spec = spec, .backend = backend, .context_length = 64}, weights, options, files);
}
std::string Read(const std::string& path) {
  PosixFileSystem files;
  const auto text = ReadFile(files, path, int64_t{1} << 24);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

TEST(ExportPackage, ReadsBackBitForBitAndWritesTheSameBytesAgain) {
  const TempDir temp;
  for (const auto& [name, spec] : PaperSpecs()) {
    for (const SlstmBackend backend : kBackends) {
      const std::string a = temp.path() + "/" + name + NameOf(backend), b = a + "_again";
      const MemoryWeights weights(spec);
      const auto result = Export(spec, weights, backend, {.out_dir = a});
      ASSERT_TRUE(result.ok()) << result.status();
      const auto model = PackageModel::Open(a);
      ASSERT_TRUE(model.ok()) << model.status();
      if (!spec.slstm_at.empty()) {
        EXPECT_EQ((*model)->config().backend, backend);
      }
      ExpectEqualWeights(**model, weights);
      ASSERT_TRUE(Export((*model)->config().spec, **model, backend, {.out_dir = b}).ok());
      for (const char* file : {"config.json", "model.safetensors"}) {
        EXPECT_EQ(Read(a + "/" + file), Read(b + "/" + file)) << name << " " << file;
      }
    }
  }
}

TEST(ExportPackage, ChangesTheBackendWithoutLoss) {
  const TempDir temp;
  const MemoryWeights weights(MixedPaperSpec());
  const auto path = [&](const char* name) { return temp.path() + "/" + name; };
  ASSERT_TRUE(Export(MixedPaperSpec(), weights, SlstmBackend::kVanilla, {.out_dir = path("v")}).ok());
  const auto vanilla = PackageModel::Open(path("v"));
  ASSERT_TRUE(vanilla.ok());
  ASSERT_TRUE(Export(MixedPaperSpec(), **vanilla, SlstmBackend::kCuda, {.out_dir = path("c")}).ok());
  EXPECT_NE(Read(path("v") + "/model.safetensors"), Read(path("c") + "/model.safetensors"));
  const auto cuda = PackageModel::Open(path("c"));
  ASSERT_TRUE(cuda.ok());
  ExpectEqualWeights(**cuda, weights);
  ASSERT_TRUE(Export(MixedPaperSpec(), **cuda, SlstmBackend::kVanilla, {.out_dir = path("v2")}).ok());
  EXPECT_EQ(Read(path("v") + "/model.safetensors"), Read(path("v2") + "/model.safetensors"));
}

TEST(ExportPackage, SaysWhichBackendInTheMetadata) {
  const TempDir temp;
  using Metadata = std::map<std::string, std::string>;
  for (const auto& [name, spec] : PaperSpecs()) {
    for (const SlstmBackend backend : kBackends) {
      const std::string dir = temp.path() + "/" + name + NameOf(backend);
      ASSERT_TRUE(Export(spec, MemoryWeights(spec), backend, {.out_dir = dir}).ok());
      const auto reader = SafetensorsReader::Open(dir + "/model.safetensors");
      ASSERT_TRUE(reader.ok()) << reader.status();
      Metadata expected = {{"format", "pt"}, {"family", "xlstm_v1"}};
      if (!spec.slstm_at.empty()) expected["slstm_backend"] = NameOf(backend);
      EXPECT_EQ(reader->metadata(), expected) << name;
      EXPECT_NE(reader->Find("lm_head.weight"), nullptr) << name;  // tied or not
    }
  }
}

TEST(ExportPackage, SplitsIntoShards) {
  const TempDir temp;
  const std::string dir = temp.path() + "/model";
  const MemoryWeights weights(MixedPaperSpec());
  const auto result = Export(MixedPaperSpec(), weights, SlstmBackend::kCuda,
                             {.out_dir = dir,
                              .dtype = DType::kBF16,
                              .max_shard_bytes = 20'000,
                              .extra_files = {{"README.md", "read me"}}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->total_bytes, 2 * NumParameters(MixedPaperSpec()));
  EXPECT_FALSE(fs::exists(dir + "/model.safetensors"));
  EXPECT_TRUE(fs::exists(dir + "/model.safetensors.index.json"));
  int num_shards = 0;
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++num_shards;
    const auto reader = SafetensorsReader::Open(entry.path().string());
    ASSERT_TRUE(reader.ok()) << reader.status();
    EXPECT_EQ(reader->metadata().at("slstm_backend"), "cuda");
  }
  EXPECT_GT(num_shards, 2);
  EXPECT_EQ(Read(dir + "/README.md"), "read me");
  const auto model = PackageModel::Open(dir);
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights, DType::kBF16);
}

TEST(ExportPackage, RefusesWhatThePackageCannotComputeAndWritesNothing) {
  const TempDir temp;
  ModelSpec spec = MixedPaperSpec();
  spec.norm_eps = 1e-3;
  const std::string dir = temp.path() + "/model";
  const auto result = Export(spec, MemoryWeights(spec), SlstmBackend::kVanilla, {.out_dir = dir});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Contains(result.status(), "norm_eps")) << result.status();
  EXPECT_TRUE(fs::is_empty(temp.path()));
}

TEST(ExportPackage, ReplacesAModelOnlyIfAsked) {
  const TempDir temp;
  const MemoryWeights weights(MixedPaperSpec());
  const std::string dir = temp.path() + "/model";
  const auto write = [&](SlstmBackend backend, bool overwrite) {
    return Export(MixedPaperSpec(), weights, backend, {.out_dir = dir, .overwrite = overwrite}).status();
  };
  ASSERT_TRUE(write(SlstmBackend::kVanilla, false).ok());
  EXPECT_EQ(write(SlstmBackend::kCuda, false).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(PackageModel::Open(dir).value()->config().backend, SlstmBackend::kVanilla);
  ASSERT_TRUE(write(SlstmBackend::kCuda, true).ok());
  EXPECT_EQ(PackageModel::Open(dir).value()->config().backend, SlstmBackend::kCuda);
}

TEST(ExportHf, RefusesThePaperFamilyAndSlstmBlocks) {
  const TempDir temp;
  PosixFileSystem files;
  ModelSpec large = testing::ExportableSpec();
  large.slstm_at = {1};
  large.slstm_num_heads = 4;
  for (const ModelSpec& spec : {MixedPaperSpec(), large}) {
    const absl::Status status = CheckExpressibleInTransformers(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(Contains(status, spec.family == Family::kLarge ? "slstm_at" : "XLSTM_PAPER")) << status;
  }
}
}  // namespace
}  // namespace carousel
