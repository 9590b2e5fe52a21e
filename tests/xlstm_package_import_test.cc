// Reading directories of the Python package xlstm, and making runs from them.
#include "checkpoints/xlstm_package_import.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "checkpoints/xlstm_package_export.h"
#include "configs/load.h"
#include "launcher/models/imported_run.h"
#include "launcher/models/model_source.h"
#include "tests/temp_dir.h"
#include "tests/xlstm_package_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::ExpectEqualWeights;
using testing::MemoryWeights;
using testing::MixedPaperSpec;
using testing::PaperSpecs;
using testing::RawTensor;
using testing::ReadFloats;
using testing::WriteSafetensors;

using Metadata = std::map<std::string, std::string>;

// The state dict with these weights, each element stored as `dtype`.
std::vector<RawTensor> StateDict(const ModelSpec& spec, SlstmBackend backend, const WeightSource& weights,
                                 SafetensorsDType dtype = SafetensorsDType::kF32) {
  std::map<std::string, std::vector<float>> params;
  for (const Param& param : weights.params())
    params[param.name] = ReadFloats(weights, param.name, param.num_elems);
  std::vector<RawTensor> result;
  for (const PackageTensor& tensor : PackageTensors(spec, backend)) {
    std::vector<float> values(static_cast<size_t>(tensor.num_elems()));
    GatherPackageTensor(
        tensor, sizeof(float), [&](const std::string& param) { return params.at(param).data(); },
        values.data());
    RawTensor raw{{tensor.name, dtype, tensor.shape}, {}};
    for (const float value : values) {
      const auto append = [&](auto stored) {
        const std::byte* bytes = reinterpret_cast<const std::byte*>(&stored);
        raw.bytes.insert(raw.bytes.end(), bytes, bytes + sizeof(stored));
      };
      if (dtype == SafetensorsDType::kF16) append(FloatToHalf(value));
      if (dtype == SafetensorsDType::kBF16) append(bfloat16(value));
      if (dtype == SafetensorsDType::kF32) append(value);
      if (dtype == SafetensorsDType::kF64) append(static_cast<double>(value));
    }
    result.push_back(std::move(raw));
  }
  return result;
}

class PackageDirectory {
 public:
  PackageDirectory(const ModelSpec& spec, SlstmBackend backend)
      : tensors(StateDict(spec, backend, MemoryWeights(spec))),
        config(PackageConfigJson({.spec = spec, .backend = backend, .context_length = 48})) {}
  RawTensor& Find(const std::string& name) {
    for (RawTensor& tensor : tensors) {
      if (tensor.spec.name == name) return tensor;
    }
    CheckFailed(__FILE__, __LINE__, name);
  }
  void Remove(const std::string& name) {
    std::erase_if(tensors, [&](const RawTensor& tensor) { return tensor.spec.name == name; });
  }
  void Write() {
    PosixFileSystem files;
    std::filesystem::remove(path() + "/model.safetensors");
    std::filesystem::remove(path() + "/config.json");
    ASSERT_TRUE(WriteFile(files, path() + "/config.json", config).ok());
    WriteSafetensors(path() + "/model.safetensors", tensors, metadata);
  }
  absl::StatusOr<std::unique_ptr<PackageModel>> Open() {
    Write();
    return PackageModel::Open(path());
  }
  const std::string& path() const { return temp_.path(); }

  std::vector<RawTensor> tensors;
  std::string config;
  Metadata metadata = {};

 private:
  TempDir temp_;
};

TEST(PackageModel, ReadsEveryDType) {
  const ModelSpec spec = MixedPaperSpec();
  const MemoryWeights weights(spec);
  for (const SafetensorsDType dtype :
       {SafetensorsDType::kF32, SafetensorsDType::kF64, SafetensorsDType::kBF16, SafetensorsDType::kF16}) {
    PackageDirectory dir(spec, SlstmBackend::kVanilla);
    dir.tensors = StateDict(spec, SlstmBackend::kVanilla, weights, dtype);
    const auto model = dir.Open();
    ASSERT_TRUE(model.ok()) << model.status();
    for (const Param& param : weights.params()) {
      std::vector<float> expected = ReadFloats(weights, param.name, param.num_elems);
      for (float& value : expected) {
        if (dtype == SafetensorsDType::kBF16) value = static_cast<float>(bfloat16(value));
        if (dtype == SafetensorsDType::kF16) value = HalfToFloat(FloatToHalf(value));
      }
      EXPECT_EQ(ReadFloats(**model, param.name, param.num_elems), expected) << param.name;
    }
  }
}

TEST(PackageModel, ReadsPiecesOfAParameter) {
  PackageDirectory dir(MixedPaperSpec(), SlstmBackend::kCuda);
  const auto model = dir.Open();
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string name = "backbone.blocks.1.slstm_layer.zgate.recurrent_weight";
  const std::vector<float> whole = ReadFloats(**model, name, 288);
  std::vector<float> piece(31);
  ASSERT_TRUE((*model)->Read(name, 140, 31, DType::kF32, piece.data()).ok());
  EXPECT_EQ(piece, std::vector<float>(whole.begin() + 140, whole.begin() + 171));
  EXPECT_EQ((*model)->Read(name, 280, 9, DType::kF32, piece.data()).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*model)->Read("nothing", 0, 1, DType::kF32, piece.data()).code(), absl::StatusCode::kNotFound);
}

TEST(PackageModel, TellsTheBackendFromTheShapesWhateverTheConfigSays) {
  const ModelSpec spec = MixedPaperSpec();
  for (const SlstmBackend stored : {SlstmBackend::kVanilla, SlstmBackend::kCuda}) {
    for (const SlstmBackend stated : {SlstmBackend::kVanilla, SlstmBackend::kCuda}) {
      PackageDirectory dir(spec, stored);
      dir.config = PackageConfigJson({.spec = spec, .backend = stated, .context_length = 1});
      const auto model = dir.Open();
      ASSERT_TRUE(model.ok()) << model.status();
      EXPECT_EQ((*model)->config().backend, stored);
      ExpectEqualWeights(**model, MemoryWeights(spec));
      dir.metadata = {{"slstm_backend", NameOf(stated)}};
      const auto checked = dir.Open();
      EXPECT_EQ(checked.ok(), stored == stated);
      if (stored != stated) {
        EXPECT_TRUE(Contains(checked.status(), "slstm_backend")) << checked.status();
      }
    }
  }
}

TEST(PackageModel, AcceptsATiedHeadThatIsMissingOrEqual) {
  ModelSpec spec = MixedPaperSpec();
  spec.tie_embeddings = true;
  PackageDirectory dir(spec, SlstmBackend::kVanilla);
  EXPECT_TRUE(dir.Open().ok()) << dir.Open().status();
  RawTensor& head = dir.Find("lm_head.weight");
  head.bytes[5] ^= std::byte{1};
  EXPECT_TRUE(Contains(dir.Open().status(), "\"lm_head.weight\" is not equal")) << dir.Open().status();
  dir.Remove("lm_head.weight");
  const auto model = dir.Open();
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualWeights(**model, MemoryWeights(spec));
}

TEST(PackageModel, NamesEveryTensorThatIsWrong) {
  PackageDirectory dir(MixedPaperSpec(), SlstmBackend::kVanilla);
  dir.Remove("xlstm_block_stack.blocks.0.xlstm.learnable_skip");
  dir.Find("token_embedding.weight").spec.name = "embedding.weight";
  RawTensor& norm = dir.Find("xlstm_block_stack.post_blocks_norm.weight");
  norm.spec.shape = {23};
  norm.bytes.resize(23 * 4);
  const absl::Status status = dir.Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  for (const char* text : {"\"xlstm_block_stack.blocks.0.xlstm.learnable_skip\" (64) is missing",
                           "\"token_embedding.weight\" (320, 24) is missing",
                           "\"xlstm_block_stack.post_blocks_norm.weight\" has shape (23)",
                           "\"embedding.weight\" does not belong"}) {
    EXPECT_TRUE(Contains(status, text)) << text << "\n" << status;
  }
}

TEST(PackageModel, RefusesRecurrentWeightsThatFitNeitherBackend) {
  PackageDirectory dir(MixedPaperSpec(), SlstmBackend::kVanilla);
  const std::string name = "xlstm_block_stack.blocks.1.xlstm.slstm_cell._recurrent_kernel_";
  dir.Find(name).spec.shape = {2, 24, 24};
  EXPECT_TRUE(Contains(dir.Open().status(), name + "\" has shape (2, 24, 24)")) << dir.Open().status();
}

TEST(OpenModel, TellsThePackageFromTransformers) {
  PackageDirectory dir(MixedPaperSpec(), SlstmBackend::kCuda);
  dir.Write();
  const auto source = OpenModel(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->kind, ModelSource::Kind::kPackage);
  EXPECT_EQ(source->spec.family, Family::kPaper);
  EXPECT_EQ(source->hints.sequence_length, 48);
  EXPECT_NE(source->description.find("cuda"), std::string::npos);
  EXPECT_FALSE(source->text_is_bytes.ok());  // nothing says so
  ExpectEqualWeights(*source->weights, MemoryWeights(MixedPaperSpec()));
}

TEST(OpenModel, ReadsAConfigOfThePackageInYaml) {
  PackageDirectory dir(MixedPaperSpec(), SlstmBackend::kCuda);
  dir.Write();
  std::filesystem::remove(dir.path() + "/config.json");
  PosixFileSystem files;
  ASSERT_TRUE(WriteFile(files, dir.path() + "/config.yaml", "# JSON is YAML\n---\n" + dir.config).ok());
  const auto source = OpenModel(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->kind, ModelSource::Kind::kPackage);
  ExpectEqualWeights(*source->weights, MemoryWeights(MixedPaperSpec()));
}

TEST(ImportedRun, HoldsAModelOfThePackageAndItsConfigDescribesIt) {
  for (auto [name, spec] : PaperSpecs()) {
    spec.dropout = 0.125;
    if (spec.ffn_dim > 0) spec.ffn_dropout = 0.25;
    const TempDir temp;
    const MemoryWeights weights(spec);
    const std::string text = ConfigForModel(spec, true, {.sequence_length = 48, .decay_embedding = true});
    const auto run = LoadRunFromText(text, "test", {.sets = {}, .run_dir = temp.path() + "/run"});
    ASSERT_TRUE(run.ok()) << name << ": " << run.status() << "\n" << text;
    EXPECT_TRUE(CheckSameModel(spec, *run).ok()) << name << ": " << CheckSameModel(spec, *run);
    EXPECT_EQ(run->sequence_length, 48);
    EXPECT_TRUE(run->decay_embedding);
    const auto checkpoint = WriteImportedRun(weights, *run, "test");
    ASSERT_TRUE(checkpoint.ok()) << name << ": " << checkpoint.status();
    const auto source = OpenModel(temp.path() + "/run");
    ASSERT_TRUE(source.ok()) << source.status();
    ExpectEqualWeights(*source->weights, weights);
    // What is exported from the run is what the package would have written.
    PosixFileSystem files;
    const PackageConfig config = {.spec = source->spec, .context_length = 48, .decay_embedding = true};
    PackageConfig original = config;
    original.spec = spec;
    EXPECT_EQ(PackageConfigJson(config), PackageConfigJson(original)) << name;
  }
}
}  // namespace
}  // namespace carousel
