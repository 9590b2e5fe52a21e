// Reading Hugging Face directories, good and bad, and starting a run from one.
#include "checkpoints/hf_import.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "configs/load.h"
#include "launcher/models/imported_run.h"
#include "launcher/models/model_source.h"
#include "tests/hf_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {
namespace fs = std::filesystem;
using testing::Contains;
using testing::ExpectEqualWeights;
using testing::ExportableSpec;
using testing::MemoryWeights;
using testing::RawTensor;
using testing::TensorsOf;
using testing::WriteSafetensors;
using Json = nlohmann::json;

void WriteConfig(const std::string& dir, const Json& changes = Json::object()) {
  Json config = Json::parse(TransformersConfigJson(ExportableSpec(), SpecialTokens{}, DType::kF32));
  config.update(changes);
  std::ofstream(dir + "/config.json") << config;
}
// A directory as another program writes it.
void WriteModel(const std::string& dir, const std::vector<RawTensor>& tensors,
                const Json& changes = Json::object()) {
  WriteConfig(dir, changes);
  WriteSafetensors(dir + "/model.safetensors", tensors);
}

class HfModelStoredAs : public ::testing::TestWithParam<std::pair<SafetensorsDType, bool>> {};

TEST_P(HfModelStoredAs, GivesTheStoredValues) {
  const auto [dtype, fused] = GetParam();
  const TempDir temp;
  MemoryWeights weights(ExportableSpec());
  // Values that are exact in every type.
  for (const Param& param : weights.params()) {
    for (float& value : weights.values(param.name)) value = std::round(value * 64) / 64;
  }
  WriteModel(temp.path(), TensorsOf(weights, ConfigDialect::kTransformers, fused, dtype),
             {{"weight_mode", fused ? "fused" : "single"}});
  const auto model = HfModel::Open(temp.path());
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights);
  // In pieces, in another type.
  std::vector<double> piece(5);
  ASSERT_TRUE(
      (*model)->Read("backbone.blocks.1.mlstm_layer.v.weight", 1000, 5, DType::kF64, piece.data()).ok());
  for (size_t i = 0; i < piece.size(); ++i) {
    EXPECT_EQ(piece[i], weights.values("backbone.blocks.1.mlstm_layer.v.weight")[1000 + i]);
  }
  EXPECT_FALSE((*model)->Read("lm_head.weight", 320 * 128 - 1, 2, DType::kF64, piece.data()).ok());
  EXPECT_FALSE((*model)->Read("lm_tail.weight", 0, 1, DType::kF64, piece.data()).ok());
}
INSTANTIATE_TEST_SUITE_P(Types, HfModelStoredAs,
                         ::testing::Values(std::pair(SafetensorsDType::kF32, false),
                                           std::pair(SafetensorsDType::kF32, true),
                                           std::pair(SafetensorsDType::kBF16, false),
                                           std::pair(SafetensorsDType::kF16, true),
                                           std::pair(SafetensorsDType::kF64, false)));

TEST(FusedWeights, HaveTheQueriesFirstAndTheOutputGateLast) {
  const MemoryWeights weights(ExportableSpec());
  size_t num_params = 0;  // every parameter stands in one tensor
  for (const FileTensor& tensor : FileTensors(weights.params(), ConfigDialect::kReference, /*fused=*/true)) {
    std::vector<std::string> parts;
    for (const FileTensor::Part& part : tensor.parts)
      parts.push_back(part.param.substr(part.param.rfind('.', part.param.rfind('.') - 1) + 1));
    if (tensor.name == "backbone.blocks.1.mlstm_layer.qkv_opreact.weight") {
      EXPECT_EQ(parts, (std::vector<std::string>{"q.weight", "k.weight", "v.weight", "ogate_preact.weight"}));
      EXPECT_EQ(tensor.shape, (std::vector<int64_t>{64 + 64 + 128 + 128, 128}));
    } else if (tensor.name == "backbone.blocks.0.mlstm_layer.ifgate_preact.bias") {
      EXPECT_EQ(parts, (std::vector<std::string>{"igate_preact.bias", "fgate_preact.bias"}));
      EXPECT_EQ(tensor.shape, std::vector<int64_t>{8});
    } else if (tensor.name == "backbone.blocks.0.ffn.proj_up_gate_z.weight") {
      EXPECT_EQ(parts, (std::vector<std::string>{"proj_up_gate.weight", "proj_up.weight"}));
    } else if (tensor.name.find(".blocks.1.") == std::string::npos &&
               tensor.name.find(".blocks.0.") == std::string::npos) {
      EXPECT_EQ(parts.size(), 1u) << tensor.name;
    }
    num_params += parts.size();
  }
  EXPECT_EQ(num_params, weights.params().size());
}

TEST(HfModel, NamesEveryTensorThatIsWrong) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  std::vector<RawTensor> tensors =
      TensorsOf(weights, ConfigDialect::kTransformers, false, SafetensorsDType::kF32);
  for (RawTensor& tensor : tensors) {
    if (tensor.spec.name == "backbone.blocks.0.mlstm_layer.q.weight") {
      tensor.spec.name = "backbone.blocks.0.mlstm_layer.query.weight";
    } else if (tensor.spec.name == "lm_head.weight") {
      tensor.spec.shape = {128, 320};
    }
  }
  tensors.push_back({{"extra", SafetensorsDType::kF32, {1}}, std::vector<std::byte>(4)});
  WriteModel(temp.path(), tensors);
  const auto model = HfModel::Open(temp.path());
  ASSERT_FALSE(model.ok());
  for (const char* text :
       {"\"backbone.blocks.0.mlstm_layer.q.weight\" (64, 128) is missing",
        "the nearest is \"backbone.blocks.0.mlstm_layer.query.weight\"",
        "\"lm_head.weight\" has shape (128, 320); the config makes it (320, 128)", "\"extra\""}) {
    EXPECT_TRUE(Contains(model.status(), text)) << text << "\n" << model.status();
  }
}

TEST(HfModel, RefusesIntegerWeights) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  std::vector<RawTensor> tensors =
      TensorsOf(weights, ConfigDialect::kTransformers, false, SafetensorsDType::kF32);
  tensors[3].spec.dtype = SafetensorsDType::kI32;
  WriteModel(temp.path(), tensors);
  const auto model = HfModel::Open(temp.path());
  EXPECT_TRUE(Contains(model.status(), "I32") && Contains(model.status(), tensors[3].spec.name))
      << model.status();
}

TEST(HfModel, NamesTheConfigFieldItCannotHonour) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  WriteModel(temp.path(), TensorsOf(weights, ConfigDialect::kTransformers, false, SafetensorsDType::kF32));
  for (const Json& change : {Json{{"tie_word_embeddings", true}}, Json{{"model_type", "llama"}},
                             Json{{"quantization_config", {{"bits", 4}}}}, Json{{"weight_mode", "triple"}}}) {
    WriteConfig(temp.path(), change);
    const auto model = HfModel::Open(temp.path());
    EXPECT_TRUE(Contains(model.status(), "\"" + change.begin().key() + "\"")) << model.status();
  }
}

TEST(HfModel, SaysWhatIsMissing) {
  const TempDir temp;
  EXPECT_TRUE(Contains(HfModel::Open(temp.path()).status(), "config.json"));
  WriteConfig(temp.path());
  EXPECT_TRUE(Contains(HfModel::Open(temp.path()).status(), "model.safetensors"));
}

TEST(HfModel, RefusesATruncatedFile) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  WriteModel(temp.path(), TensorsOf(weights, ConfigDialect::kTransformers, false, SafetensorsDType::kBF16));
  const std::string file = temp.path() + "/model.safetensors";
  fs::resize_file(file, fs::file_size(file) - 1);
  EXPECT_TRUE(Contains(HfModel::Open(temp.path()).status(), file));
}

TEST(HfModel, RefusesAnIndexThatPointsElsewhere) {
  const TempDir temp;
  const MemoryWeights weights(ExportableSpec());
  WriteConfig(temp.path());
  WriteSafetensors(temp.path() + "/a.safetensors",
                   TensorsOf(weights, ConfigDialect::kTransformers, false, SafetensorsDType::kF32));
  const auto open = [&](const Json& index) {
    std::ofstream(temp.path() + "/model.safetensors.index.json") << index;
    return HfModel::Open(temp.path()).status();
  };
  EXPECT_TRUE(open({{"weight_map", {{"lm_head.weight", "a.safetensors"}}}}).ok());
  EXPECT_TRUE(Contains(open({{"weight_map", {{"lm_head.weight", "../a.safetensors"}}}}), "same directory"));
  EXPECT_TRUE(Contains(open({{"weight_map", {{"lm_head.weight", "b.safetensors"}}}}), "b.safetensors"));
  EXPECT_TRUE(Contains(open({{"weight_map", {{"lm_tail.weight", "a.safetensors"}}}}), "lm_tail.weight"));
  EXPECT_TRUE(Contains(open({{"weight_map", 3}}), "weight_map"));
  EXPECT_TRUE(Contains(open(Json::array()), "weight_map"));
}

TEST(FillWeights, FillsSlicesAndZeroesMoments) {
  const MemoryWeights weights(ExportableSpec());
  std::vector<double> part(7, -1);
  std::vector<float> moment(3, -1);
  const std::vector<StateSlice> slices = {
      {"lm_head.weight", StateKind::kWeight, DType::kF64, {320, 128}, {1, 36}, {1, 7}, part.data()},
      {"lm_head.weight", StateKind::kAdamV, DType::kF32, {320, 128}, {0, 0}, {1, 3}, moment.data()}};
  ASSERT_TRUE(FillWeights(weights, slices).ok());
  for (size_t i = 0; i < part.size(); ++i) {
    EXPECT_EQ(part[i], ReadFloats(weights, "lm_head.weight", 320 * 128)[128 + 36 + i]);
  }
  EXPECT_EQ(moment, std::vector<float>(3, 0));
}

TEST(FillWeights, NamesWhatDoesNotFitAndChangesNothing) {
  const MemoryWeights weights(ExportableSpec());
  std::vector<float> data(4, 5);
  const std::vector<StateSlice> slices = {
      {"lm_head.weight", StateKind::kWeight, DType::kF32, {320, 64}, {0, 0}, {1, 4}, data.data()},
      {"backbone.blocks.7.norm_ffn.weight", StateKind::kWeight, DType::kF32, {128}, {0}, {4}, data.data()}};
  const absl::Status status = FillWeights(weights, slices);
  EXPECT_TRUE(Contains(status, "\"lm_head.weight\" is (320, 128) there and (320, 64) in this run")) << status;
  EXPECT_TRUE(Contains(status, "\"backbone.blocks.7.norm_ffn.weight\"")) << status;
  EXPECT_EQ(data, std::vector<float>(4, 5));
}

TEST(ImportedRun, HoldsTheWeightsAndItsConfigDescribesTheModel) {
  const TempDir temp;
  ModelSpec spec = ExportableSpec();
  spec.ffn_dim = 256;
  spec.norm_eps = 1e-5;
  spec.gate_soft_cap = 7.25;
  spec.qk_dim = 192;
  const MemoryWeights weights(spec);
  const std::string run_dir = temp.path() + "/run";
  const auto run = LoadRunFromText(ConfigForModel(spec, true), "test", {.sets = {}, .run_dir = run_dir});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_TRUE(CheckSameModel(spec, *run).ok());
  const auto checkpoint = WriteImportedRun(weights, *run, "test");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();

  const auto source = OpenModel(run_dir);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->checkpoint.state.step, 0);
  EXPECT_EQ(source->spec.qk_dim, 192);
  EXPECT_EQ(source->spec.gate_soft_cap, 7.25);
  ExpectEqualWeights(*source->weights, weights);
  auto tensors = CheckpointTensors::Open(*checkpoint);
  ASSERT_TRUE(tensors.ok());
  const CheckpointTensor* moment = tensors->Find("lm_head.weight", StateKind::kAdamM);
  ASSERT_NE(moment, nullptr);
  std::vector<float> zeros(10, 1);
  ASSERT_TRUE(tensors->Read(*moment, 50, 10, zeros.data()).ok());
  EXPECT_EQ(zeros, std::vector<float>(10, 0));

  const auto again = WriteImportedRun(weights, *run, "test");
  EXPECT_EQ(again.status().code(), absl::StatusCode::kAlreadyExists) << again.status();
}

TEST(ImportedRun, RefusesAConfigOfAnotherModel) {
  const ModelSpec spec = ExportableSpec();
  const auto run = LoadRunFromText(ConfigForModel(spec, true), "test", {.sets = {"model.num_blocks=3"}});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_TRUE(Contains(CheckSameModel(spec, *run), "model.num_blocks"));
}

TEST(OpenModel, SaysWhatItLookedFor) {
  const TempDir temp;
  EXPECT_EQ(OpenModel(temp.path() + "/nothing").status().code(), absl::StatusCode::kNotFound);
  const auto empty = OpenModel(temp.path());
  EXPECT_EQ(empty.status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Contains(empty.status(), "config.json") && Contains(empty.status(), "checkpoint"))
      << empty.status();
}
}  // namespace
}  // namespace carousel
