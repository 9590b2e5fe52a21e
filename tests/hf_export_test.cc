// Writing Hugging Face directories, and reading them back.
#include "checkpoints/hf_export.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/hf_import.h"
#include "tests/hf_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {
namespace fs = std::filesystem;
using testing::Contains;
using testing::ExpectEqualWeights;
using testing::ExportableSpec;
using testing::MemoryWeights;
using Json = nlohmann::json;

HfExportOptions To(const std::string& out_dir, bool overwrite = false) {
  HfExportOptions options;
  options.out_dir = out_dir;
  options.overwrite = overwrite;
  return options;
}
absl::StatusOr<ModelDirectoryResult> Export(const ModelSpec& spec, const WeightSource& weights,
                                      const HfExportOptions& options) {
  PosixFileSystem files;
  return ExportHf(spec, weights, options, files);
}
std::string Read(const std::string& path) {
  PosixFileSystem files;
  const auto text = ReadFile(files, path, int64_t{1} << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}
std::set<std::string> Names(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.insert(entry.path().filename().string());
  return names;
}

TEST(ExportHf, ReadsBackBitForBit) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  HfExportOptions options = To(temp.path() + "/model");
  options.extra_files = {{"README.md", "hello"}};
  const auto result = Export(ExportableSpec(), weights, options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->total_bytes, 4 * NumParameters(ExportableSpec()));
  EXPECT_EQ(Names(temp.path()), std::set<std::string>{"model"});
  EXPECT_EQ(
      Names(temp.path() + "/model"),
      (std::set<std::string>{"README.md", "config.json", "generation_config.json", "model.safetensors"}));
  const auto model = HfModel::Open(temp.path() + "/model");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(NumParameters((*model)->config().spec), NumParameters(ExportableSpec()));
  ExpectEqualWeights(**model, weights);
}

TEST(ExportHf, UsesTheNamesOfTransformers) {
  const TempDir temp;
  ASSERT_TRUE(Export(ExportableSpec(), MemoryWeights(ExportableSpec()), To(temp.path() + "/model")).ok());
  const auto reader = SafetensorsReader::Open(temp.path() + "/model/model.safetensors");
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->metadata().at("format"), "pt");
  EXPECT_NE(reader->Find("backbone.embeddings.weight"), nullptr);
  EXPECT_EQ(reader->Find("embedding.weight"), nullptr);
  EXPECT_NE(reader->Find("backbone.blocks.1.mlstm_layer.igate_preact.bias"), nullptr);
  EXPECT_NE(reader->Find("backbone.out_norm.weight"), nullptr);
  EXPECT_NE(reader->Find("lm_head.weight"), nullptr);
  EXPECT_EQ(reader->tensors().size(), 2 * 15u + 3u);
}

TEST(ExportHf, SplitsIntoShardsWithAnIndex) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  const int64_t limit = 150'000;
  HfExportOptions options = To(temp.path() + "/model");
  options.dtype = DType::kBF16;
  options.max_shard_bytes = limit;
  const auto result = Export(ExportableSpec(), weights, options);
  ASSERT_TRUE(result.ok()) << result.status();
  const Json index = Json::parse(Read(temp.path() + "/model/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 2 * NumParameters(ExportableSpec()));
  std::set<std::string> shards;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    shards.insert(file.get<std::string>());
    const auto reader = SafetensorsReader::Open(temp.path() + "/model/" + file.get<std::string>());
    ASSERT_TRUE(reader.ok()) << reader.status();
    ASSERT_NE(reader->Find(tensor), nullptr) << tensor;
    EXPECT_EQ(reader->Find(tensor)->dtype, SafetensorsDType::kBF16);
  }
  EXPECT_GT(shards.size(), 2u);
  EXPECT_EQ(*shards.begin(), "model-00001-of-0000" + std::to_string(shards.size()) + ".safetensors");
  for (const std::string& shard : shards) {
    const auto reader = SafetensorsReader::Open(temp.path() + "/model/" + shard);
    ASSERT_TRUE(reader.ok());
    int64_t bytes = 0;
    for (const SafetensorsEntry& entry : reader->tensors()) bytes += entry.num_bytes();
    EXPECT_TRUE(bytes <= limit || reader->tensors().size() == 1) << shard << " has " << bytes;
  }
  const auto model = HfModel::Open(temp.path() + "/model");
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights, DType::kBF16);
}

TEST(ExportHf, ATensorAboveTheLimitGetsItsOwnShard) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  HfExportOptions options = To(temp.path() + "/model");
  options.max_shard_bytes = 1;
  ASSERT_TRUE(Export(ExportableSpec(), weights, options).ok());
  const auto model = HfModel::Open(temp.path() + "/model");
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights);
}

TEST(ExportHf, ReplacesOnlyAnExportedModelAndOnlyIfAsked) {
  const TempDir temp;
  const std::string out = temp.path() + "/model";
  const MemoryWeights weights(ExportableSpec());
  ASSERT_TRUE(Export(ExportableSpec(), weights, To(out)).ok());
  const auto again = Export(ExportableSpec(), weights, To(out));
  EXPECT_EQ(again.status().code(), absl::StatusCode::kAlreadyExists) << again.status();
  HfExportOptions replace = To(out + "/", /*overwrite=*/true);
  replace.dtype = DType::kBF16;
  ASSERT_TRUE(Export(ExportableSpec(), weights, replace).ok());
  EXPECT_EQ(Names(temp.path()), std::set<std::string>{"model"});
  // Something else stays.
  fs::create_directory(temp.path() + "/letters");
  PosixFileSystem files;
  ASSERT_TRUE(WriteFile(files, temp.path() + "/letters/a.txt", "dear").ok());
  const auto other = Export(ExportableSpec(), weights, To(temp.path() + "/letters", /*overwrite=*/true));
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Read(temp.path() + "/letters/a.txt"), "dear");
}

// Weights that cannot be read to their end.
class FailingWeights final : public WeightSource {
 public:
  explicit FailingWeights(const WeightSource& source) : source_(source) {}
  const std::vector<Param>& params() const override { return source_.params(); }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override {
    if (name == "lm_head.weight") return absl::DataLossError("lm_head.weight is damaged");
    return source_.Read(name, begin, count, dtype, data);
  }

 private:
  const WeightSource& source_;
};

TEST(ExportHf, LeavesNothingBehindWhenItFails) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  const std::string out = temp.path() + "/model";
  ASSERT_TRUE(Export(ExportableSpec(), weights, To(out)).ok());
  const auto result = Export(ExportableSpec(), FailingWeights(weights), To(out, /*overwrite=*/true));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Names(temp.path()), std::set<std::string>{"model"});
  const auto model = HfModel::Open(out);  // the old one
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights);
}

TEST(ExportHf, RefusesWhatTransformersCannotExpress) {
  const TempDir temp;
  ModelSpec spec = ExportableSpec();
  spec.add_out_norm = false;
  const auto no_norm = Export(spec, MemoryWeights(spec), To(temp.path() + "/model"));
  EXPECT_TRUE(Contains(no_norm.status(), "add_out_norm")) << no_norm.status();

  spec = ExportableSpec();
  spec.use_bias = true;
  MemoryWeights weights(spec);  // its final norm has a bias
  const auto bias = Export(spec, weights, To(temp.path() + "/model"));
  EXPECT_TRUE(Contains(bias.status(), kOutNormBias)) << bias.status();
  EXPECT_TRUE(Names(temp.path()).empty());
  for (float& value : weights.values(kOutNormBias)) value = 0;
  ASSERT_TRUE(Export(spec, weights, To(temp.path() + "/model")).ok());
  const auto model = HfModel::Open(temp.path() + "/model");
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights);
}

TEST(ExportHf, RefusesNamesThatAreNoDirectory) {
  for (const char* out : {"", ".", "..", "/"}) {
    const auto result =
        Export(ExportableSpec(), MemoryWeights(ExportableSpec()), To(out, /*overwrite=*/true));
    EXPECT_FALSE(result.ok()) << out;
  }
}
}  // namespace
}  // namespace carousel
