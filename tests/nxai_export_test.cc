// The directory of xLSTMLarge (Python package xlstm), written and read.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/hf_export.h"
#include "checkpoints/hf_import.h"
#include "checkpoints/yaml_fields.h"
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
using testing::ReadFloats;
using testing::TensorsOf;
using testing::WriteSafetensors;
using Json = nlohmann::json;

HfExportOptions To(const std::string& out_dir) {
  HfExportOptions options;
  options.dialect = ConfigDialect::kReference;
  options.out_dir = out_dir;
  return options;
}
absl::Status Export(const ModelSpec& spec, const WeightSource& weights, const HfExportOptions& options) {
  PosixFileSystem files;
  return ExportHf(spec, weights, options, files).status();
}
absl::StatusOr<std::unique_ptr<HfModel>> Open(const std::string& dir) {
  return HfModel::Open(dir, nullptr, ConfigDialect::kReference);
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

// One of each kind of model that the package can describe; the last four are none of Transformers'.
std::vector<std::pair<std::string, ModelSpec>> Specs() {
  std::vector<std::pair<std::string, ModelSpec>> specs = {{"published", ExportableSpec()}};
  ModelSpec biases = ExportableSpec();
  biases.use_bias = true;
  biases.norm_eps = 1e-5;
  biases.cell_eps = 3e-7;
  specs.emplace_back("biases", biases);
  ModelSpec widths = ExportableSpec();
  widths.embedding_dim = 48;
  widths.num_heads = 3;
  widths.qk_dim = 12;
  widths.v_dim = 36;
  widths.ffn_dim = 136;
  specs.emplace_back("widths", widths);
  ModelSpec bare = widths;
  bare.add_out_norm = false;
  bare.gate_soft_cap = bare.logit_soft_cap = 0;
  bare.normalizer_gradient = NormalizerGradient::kFrozen;
  specs.emplace_back("bare", bare);
  ModelSpec tied = ExportableSpec();
  tied.tie_embeddings = true;
  specs.emplace_back("tied", tied);
  return specs;
}

TEST(NxaiConfig, SpecsSurviveConfigYaml) {
  for (const auto& [name, spec] : Specs()) {
    const std::string text = ReferenceConfigYaml(spec);
    const auto config = ParseReferenceYaml(text, "config.yaml");
    ASSERT_TRUE(config.ok()) << name << ": " << config.status();
    const ModelSpec& read = config->spec;
    EXPECT_EQ(read.embedding_dim, spec.embedding_dim) << name;
    EXPECT_EQ(read.num_blocks, spec.num_blocks) << name;
    EXPECT_EQ(read.num_heads, spec.num_heads) << name;
    EXPECT_EQ(read.vocab_size, spec.vocab_size) << name;
    EXPECT_EQ(read.qk_dim, spec.qk_dim) << name;
    EXPECT_EQ(read.v_dim, spec.v_dim) << name;
    EXPECT_EQ(read.ffn_dim, spec.ffn_dim) << name;
    EXPECT_EQ(read.use_bias, spec.use_bias) << name;
    EXPECT_EQ(read.add_out_norm, spec.add_out_norm) << name;
    EXPECT_EQ(read.norm_eps, spec.norm_eps) << name;
    EXPECT_EQ(read.cell_eps, spec.cell_eps) << name;
    EXPECT_EQ(read.gate_soft_cap, spec.gate_soft_cap) << name;
    EXPECT_EQ(read.logit_soft_cap, spec.logit_soft_cap) << name;
    EXPECT_EQ(read.normalizer_gradient, spec.normalizer_gradient) << name;
    EXPECT_EQ(ReferenceConfigYaml(read), text) << name;
  }
}

TEST(NxaiConfig, HasEveryFieldOfTheLoaderAndNoOther) {
  const auto object = ParseYamlObject(ReferenceConfigYaml(ExportableSpec()), "config.yaml");
  ASSERT_TRUE(object.ok()) << object.status();
  // The fields of xLSTMLargeConfig, whose constructor takes no others.
  const std::set<std::string> expected = {"embedding_dim",
                                          "num_heads",
                                          "num_blocks",
                                          "vocab_size",
                                          "use_bias",
                                          "norm_eps",
                                          "norm_reduction_force_float32",
                                          "add_out_norm",
                                          "qk_dim_factor",
                                          "v_dim_factor",
                                          "chunkwise_kernel",
                                          "sequence_kernel",
                                          "step_kernel",
                                          "mode",
                                          "chunk_size",
                                          "return_last_states",
                                          "autocast_kernel_dtype",
                                          "eps",
                                          "inference_state_dtype",
                                          "ffn_proj_factor",
                                          "ffn_round_up_to_multiple_of",
                                          "gate_soft_cap",
                                          "output_logit_soft_cap",
                                          "weight_mode"};
  std::set<std::string> fields;
  for (const auto& [name, value] : object->items()) fields.insert(name);
  EXPECT_EQ(fields, expected);
  EXPECT_EQ((*object)["weight_mode"], "single");  // the loader's
}

TEST(NxaiExport, ReadsBackBitForBitUnderThePackagesNames) {
  for (const auto& [name, spec] : Specs()) {
    const TempDir temp;
    const std::string out = temp.path() + "/model";
    const MemoryWeights weights(spec);
    const absl::Status exported = Export(spec, weights, To(out));
    ASSERT_TRUE(exported.ok()) << name << ": " << exported;
    EXPECT_EQ(Names(out), (std::set<std::string>{"config.yaml", "model.safetensors"}));
    const auto reader = SafetensorsReader::Open(out + "/model.safetensors");
    ASSERT_TRUE(reader.ok()) << reader.status();
    EXPECT_NE(reader->Find("embedding.weight"), nullptr);
    EXPECT_EQ(reader->Find("backbone.embeddings.weight"), nullptr);
    EXPECT_NE(reader->Find("lm_head.weight"), nullptr) << name;
    EXPECT_EQ(reader->Find("backbone.out_norm.weight") != nullptr, spec.add_out_norm) << name;
    const auto model = Open(out);
    ASSERT_TRUE(model.ok()) << name << ": " << model.status();
    ExpectEqualWeights(**model, weights);
    if (spec.tie_embeddings) {  // the package has two matrices
      EXPECT_EQ(ReadFloats(**model, "lm_head.weight", spec.vocab_size * spec.embedding_dim),
                ReadFloats(weights, "embedding.weight", spec.vocab_size * spec.embedding_dim));
    }
  }
}

TEST(NxaiExport, ShardsAreNumberedFromZeroAndReadWithOrWithoutTheIndex) {
  const TempDir temp;
  const std::string out = temp.path() + "/model";
  const MemoryWeights weights(ExportableSpec());
  HfExportOptions options = To(out);
  options.dtype = DType::kBF16;
  options.max_shard_bytes = 100'000;
  ASSERT_TRUE(Export(ExportableSpec(), weights, options).ok());
  const Json index = Json::parse(Read(out + "/model.safetensors.index.json"));
  std::set<std::string> shards;
  for (const auto& [tensor, file] : index["weight_map"].items()) shards.insert(file.get<std::string>());
  ASSERT_GT(shards.size(), 3u);
  for (size_t i = 0; i < shards.size(); ++i) {
    EXPECT_EQ(shards.count("model_" + std::to_string(i) + ".safetensors"), 1u) << i;
  }
  std::set<std::string> expected = shards;
  expected.insert({"config.yaml", "model.safetensors.index.json"});
  EXPECT_EQ(Names(out), expected);
  auto model = Open(out);
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights, DType::kBF16);

  fs::remove(out + "/model.safetensors.index.json");
  model = Open(out);
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, weights, DType::kBF16);
  // A gap: the package would silently stop before it.
  fs::remove(out + "/model_1.safetensors");
  EXPECT_TRUE(Contains(Open(out).status(), "model_1.safetensors is missing")) << Open(out).status();
  // The last one: its tensors are missing.
  const TempDir other;
  ASSERT_TRUE(Export(ExportableSpec(), weights,
                     [&] {
                       HfExportOptions again = options;
                       again.out_dir = other.path() + "/model";
                       return again;
                     }())
                  .ok());
  fs::remove(other.path() + "/model/model.safetensors.index.json");
  fs::remove(other.path() + "/model/model_" + std::to_string(shards.size() - 1) + ".safetensors");
  EXPECT_TRUE(Contains(Open(other.path() + "/model").status(), "is missing"));
}

TEST(NxaiExport, RefusesWhatThePackageCannotExpress) {
  const TempDir temp;
  ModelSpec spec = ExportableSpec();
  spec.input_gate = InputGate::kSigmoid;
  const absl::Status sigmoid = Export(spec, MemoryWeights(spec), To(temp.path() + "/model"));
  EXPECT_EQ(sigmoid.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Contains(sigmoid, "input_gate")) << sigmoid;
  spec = ExportableSpec();
  spec.family = Family::kPaper;
  EXPECT_TRUE(Contains(CheckExpressibleInReference(spec), "--format xlstm"));
  EXPECT_TRUE(Names(temp.path()).empty());
}

TEST(NxaiModel, NamesEverythingThatIsWrong) {
  const TempDir temp;
  PosixFileSystem files;
  const std::string config = temp.path() + "/config.yaml";
  const MemoryWeights weights(ExportableSpec());
  auto tensors = TensorsOf(weights, ConfigDialect::kReference, false, SafetensorsDType::kF32);
  for (auto& tensor : tensors) {
    if (tensor.spec.name == "embedding.weight") tensor.spec.name = "backbone.embeddings.weight";
    if (tensor.spec.name == "lm_head.weight") tensor.spec.shape = {128, 320};
  }
  WriteSafetensors(temp.path() + "/model.safetensors", tensors);
  ASSERT_TRUE(WriteFile(files, config, ReferenceConfigYaml(ExportableSpec())).ok());
  const absl::Status names = Open(temp.path()).status();
  for (const char* text : {"\"embedding.weight\" (320, 128) is missing", "\"backbone.embeddings.weight\"",
                           "\"lm_head.weight\" has shape (128, 320)"}) {
    EXPECT_TRUE(Contains(names, text)) << text << "\n" << names;
  }

  fs::remove(config);
  ASSERT_TRUE(WriteFile(files, config, "embedding_dim: 128\nnum_heads: 0\nslstm_at: [1]\nrope: true\n").ok());
  const absl::Status fields = Open(temp.path()).status();
  EXPECT_EQ(fields.code(), absl::StatusCode::kInvalidArgument);
  for (const char* text : {"\"num_blocks\" is missing", "\"vocab_size\" is missing", "\"num_heads\" is 0",
                           "\"slstm_at\" is [1]", "\"rope\" is not known"}) {
    EXPECT_TRUE(Contains(fields, text)) << text << "\n" << fields;
  }

  fs::remove(config);
  ASSERT_TRUE(WriteFile(files, config, ReferenceConfigYaml(ExportableSpec())).ok());
  fs::resize_file(temp.path() + "/model.safetensors", 1000);
  EXPECT_TRUE(Contains(Open(temp.path()).status(), temp.path() + "/model.safetensors"));
  fs::remove(temp.path() + "/model.safetensors");
  EXPECT_TRUE(Contains(Open(temp.path()).status(), "model_0.safetensors"));
}

TEST(NxaiModel, AFileThatShrinksAfterwardsIsAnErrorAndNoCrash) {
  const TempDir temp;
  const std::string out = temp.path() + "/model";
  ASSERT_TRUE(Export(ExportableSpec(), MemoryWeights(ExportableSpec()), To(out)).ok());
  const auto model = Open(out);
  ASSERT_TRUE(model.ok()) << model.status();
  fs::resize_file(out + "/model.safetensors", fs::file_size(out + "/model.safetensors") / 2);
  std::vector<float> values(320 * 128);
  int failed = 0;
  for (const Param& param : (*model)->params()) {
    values.resize(static_cast<size_t>(param.num_elems));
    const absl::Status status = (*model)->Read(param.name, 0, param.num_elems, DType::kF32, values.data());
    if (status.ok()) continue;
    ++failed;
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_TRUE(Contains(status, "model.safetensors") && Contains(status, "tensor")) << status;
  }
  EXPECT_GT(failed, 3);
}

TEST(OpenModel, TellsDirectoriesApartByTheirConfig) {
  const TempDir temp;
  const std::string out = temp.path() + "/model";
  HfExportOptions options = To(out);
  ASSERT_TRUE(Export(ExportableSpec(), MemoryWeights(ExportableSpec()), options).ok());
  const auto nxai = OpenModel(out);
  ASSERT_TRUE(nxai.ok()) << nxai.status();
  EXPECT_EQ(nxai->kind, ModelSource::Kind::kNxai);
  EXPECT_FALSE(nxai->text_is_bytes.ok());  // nothing says so
  EXPECT_TRUE(Contains(nxai->text_is_bytes, "tokenizer.json"));
  const auto file = OpenModel(out + "/model.safetensors");
  EXPECT_TRUE(Contains(file.status(), ": give " + out)) << file.status();
  // A config.json goes before it.
  options.dialect = ConfigDialect::kTransformers;
  options.out_dir = temp.path() + "/hf";
  ASSERT_TRUE(Export(ExportableSpec(), MemoryWeights(ExportableSpec()), options).ok());
  fs::copy_file(out + "/config.yaml", temp.path() + "/hf/config.yaml");
  const auto both = OpenModel(temp.path() + "/hf");
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->kind, ModelSource::Kind::kHuggingFace);
}
}  // namespace
}  // namespace carousel
