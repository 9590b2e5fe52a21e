// `carousel verify` as a library: the dumps of the public implementation pass, damaged ones do not.
#include "launcher/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "tests/hf_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::CpuDevice;
using testing::RawTensor;
using testing::WriteSafetensors;
using Json = nlohmann::json;

std::string Golden(const std::string& name) {
  return std::string(CAROUSEL_SOURCE_DIR) + "/tests/golden/" + name + ".safetensors";
}
absl::StatusOr<DumpReport> VerifyFile(const std::string& path, DType dtype, int64_t chunk_length = 0) {
  const auto dump = ReferenceDump::Open(path);
  if (!dump.ok()) return dump.status();
  const auto device = CpuDevice();
  return Verify(*dump, {.dtype = dtype, .chunk_length = chunk_length}, *device);
}
void ExpectPasses(const std::string& name, DType dtype, int64_t chunk_length = 0) {
  const auto report = VerifyFile(Golden(name), dtype, chunk_length);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->ok()) << report->ToText();
}

const char* const kCells[] = {"mlstm_zero_state",  "mlstm_with_state",  "mlstm_tiny_igate",
                              "mlstm_large_gates", "mlstm_siging_norm", "mlstm_siging_nonorm"};
const char* const kModels[] = {"large_a", "large_fused", "large_nosoftcap"};

TEST(Verify, CellsPassInEveryDtype) {
  for (const char* cell : kCells) {
    for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) ExpectPasses(cell, dtype);
  }
}
TEST(Verify, CellsPassWithEveryChunkLength) {
  for (const int64_t chunk_length : {1, 7, 32, 200})
    ExpectPasses("mlstm_with_state", DType::kF64, chunk_length);
}
TEST(Verify, GateGradientsAgreeToRoundingOnceTheStabiliserPathIsAdded) {
  // Without that path they agree to 3e-6 only.
  for (const char* cell : kCells) {
    const auto report = VerifyFile(Golden(cell), DType::kF64);
    ASSERT_TRUE(report.ok()) << report.status();
    for (const char* gate : {"grad.i", "grad.f"})
      EXPECT_LT(report->Find(gate)->error, 1e-11) << cell << " " << gate;
  }
}
TEST(Verify, ModelsPassInEveryDtype) {
  for (const char* model : kModels) {
    for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) ExpectPasses(model, dtype);
  }
}
TEST(Verify, AnExplainedFailureIsStillAFailure) {
  std::vector<Comparison> rows = {{"near", 3e-4, 2e-4}, {"far", 1.0, 2e-4}, {"good", 1e-5, 2e-4}};
  ExplainFailures({{"near", 1e-4}, {"far", 1e-4}, {"good", 1e-4}}, /*factor=*/16, /*cap=*/50, &rows);
  EXPECT_TRUE(rows[0].explained);
  EXPECT_FALSE(rows[0].ok());
  EXPECT_EQ(rows[0].bound, 2e-4);
  EXPECT_FALSE(rows[1].explained);
  EXPECT_FALSE(rows[2].explained);
  DumpReport report;
  report.sections.push_back({"", rows});
  EXPECT_FALSE(report.ok());
}

TEST(Verify, ModelsHoldTheStatedBounds) {
  for (const char* model : kModels) {
    const auto report = VerifyFile(Golden(model), DType::kF32);
    ASSERT_TRUE(report.ok()) << report.status();
    for (const Comparison& row : report->sections[0].rows) {
      EXPECT_FALSE(row.explained) << row.name;
      EXPECT_LE(row.bound, 2e-4) << row.name;
    }
    EXPECT_LE(report->Find("logits")->bound, 2e-5);
  }
}
TEST(Verify, TrainingCurvePassesInF64AndF32) {
  ExpectPasses("curve_large", DType::kF64);
  ExpectPasses("curve_large", DType::kF32);
}

// A dump that can be changed.
struct EditableDump {
  std::map<std::string, std::string> metadata;
  std::vector<RawTensor> tensors;

  explicit EditableDump(const std::string& name) {
    const auto reader = SafetensorsReader::Open(Golden(name));
    CAROUSEL_CHECK(reader.ok());
    metadata = reader->metadata();
    for (const SafetensorsEntry& entry : reader->tensors()) {
      const std::byte* bytes = static_cast<const std::byte*>(reader->data(entry));
      tensors.push_back({{entry.name, entry.dtype, entry.shape}, {bytes, bytes + entry.num_bytes()}});
    }
  }
  RawTensor& tensor(const std::string& name) {
    for (RawTensor& t : tensors) {
      if (t.spec.name == name) return t;
    }
    CAROUSEL_CHECK_MSG(false, name);
    return tensors[0];
  }
  template <class T>
  T* values(const std::string& name) {
    return reinterpret_cast<T*>(tensor(name).bytes.data());
  }
  template <class T>
  void Scale(const std::string& name, double factor) {
    RawTensor& t = tensor(name);
    for (size_t i = 0; i < t.bytes.size() / sizeof(T); ++i) values<T>(name)[i] *= static_cast<T>(factor);
  }
  void Remove(const std::string& name) {
    std::erase_if(tensors, [&](const RawTensor& t) { return t.spec.name == name; });
  }
  void SetConfig(const std::string& field, const Json& value) {
    Json config = Json::parse(metadata["config"]);
    config[field] = value;
    metadata["config"] = config.dump();
  }
  absl::StatusOr<DumpReport> Verify(DType dtype) const {
    const TempDir temp;
    const std::string path = temp.path() + "/dump.safetensors";
    WriteSafetensors(path, tensors, metadata);
    return VerifyFile(path, dtype);
  }
};

TEST(Verify, FailsOnWrongNumbersOfACell) {
  for (const char* name : {"h", "c_last", "loss", "grad.q", "grad.v", "grad.c0"}) {
    EditableDump dump("mlstm_with_state");
    dump.Scale<double>(name, 1 + 1e-7);
    const auto report = dump.Verify(DType::kF64);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_FALSE(report->ok()) << name;
  }
  for (const char* name : {"grad.i", "grad.f", "grad.m0"}) {
    EditableDump dump("mlstm_with_state");
    dump.Scale<double>(name, 1 + 1e-3);
    EXPECT_FALSE(dump.Verify(DType::kF64)->ok()) << name;
    EXPECT_FALSE(dump.Verify(DType::kF32)->ok()) << name;
  }
}
TEST(Verify, FailsOnWrongNumbersOfAModel) {
  for (const char* name :
       {"logits", "loss", "grad.embedding.weight", "grad.backbone.blocks.1.mlstm_layer.v.weight",
        "grad.backbone.blocks.0.mlstm_layer.igate_preact.weight"}) {
    EditableDump dump("large_a");
    dump.Scale<float>(name, 1.001);
    const auto report = dump.Verify(DType::kF32);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_FALSE(report->ok()) << name << "\n" << report->ToText();
    EXPECT_FALSE(report->Find(name)->ok());
  }
}
TEST(Verify, FailsOnWrongNumbersOfACurve) {
  EditableDump dump("curve_large");
  dump.values<double>("losses")[39] *= 1.0005;
  EXPECT_FALSE(dump.Verify(DType::kF64)->ok());
  EditableDump weights("curve_large");
  weights.Scale<float>("final.lm_head.weight", 1.02);
  EXPECT_FALSE(weights.Verify(DType::kF64)->ok());
}
TEST(Verify, UsesTheOptimizerThatTheCurveNames) {
  for (const auto& [from, to] : std::map<std::string, std::string>{{"weight decay 0.1", "weight decay 0.5"},
                                                                   {"betas 0.9 0.95", "betas 0.5 0.95"},
                                                                   {"clip 1.0", "clip 0.01"}}) {
    EditableDump dump("curve_large");
    std::string& text = dump.metadata["optimizer"];
    ASSERT_NE(text.find(from), std::string::npos);
    text.replace(text.find(from), from.size(), to);
    const auto report = dump.Verify(DType::kF64);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_FALSE(report->ok()) << to;
  }
}

// Each change makes a dump that cannot be computed; the message must hold the text.
template <class Fn>
void ExpectRefused(const char* golden, const char* text, const Fn& change) {
  EditableDump dump(golden);
  change(dump);
  const auto report = dump.Verify(DType::kF64);
  ASSERT_FALSE(report.ok()) << text;
  EXPECT_TRUE(Contains(report.status(), text)) << report.status();
}

TEST(Verify, NamesTheFieldItCannotHonour) {
  ExpectRefused("large_a", "\"tie_weights\"", [](EditableDump& d) { d.SetConfig("tie_weights", true); });
  ExpectRefused("large_a", "\"qk_norm\"", [](EditableDump& d) { d.SetConfig("qk_norm", true); });
  ExpectRefused("large_a", "\"num_heads\"", [](EditableDump& d) { d.SetConfig("num_heads", 3); });
  ExpectRefused("large_a", "\"chunkwise_kernel\"",
                [](EditableDump& d) { d.SetConfig("chunkwise_kernel", "x"); });
  ExpectRefused("large_a", "\"family\"", [](EditableDump& d) { d.metadata["family"] = "xlstm_v1"; });
  ExpectRefused("large_a", "\"config\"", [](EditableDump& d) { d.metadata.erase("config"); });
  ExpectRefused("large_a", "\"precision\"", [](EditableDump& d) { d.metadata["precision"] = "tf32"; });
  ExpectRefused("mlstm_zero_state", "slstm", [](EditableDump& d) { d.metadata["cell"] = "slstm"; });
  ExpectRefused("mlstm_zero_state", "\"input_gate\"",
                [](EditableDump& d) { d.metadata["input_gate"] = "relu"; });
  ExpectRefused("mlstm_zero_state", "\"normalize\"",
                [](EditableDump& d) { d.metadata["normalize"] = "False"; });
  ExpectRefused("mlstm_zero_state", "\"qk_scale\"", [](EditableDump& d) { d.metadata["qk_scale"] = "1"; });
  ExpectRefused("mlstm_zero_state", "\"eps\"", [](EditableDump& d) { d.metadata["eps"] = "-1"; });
  ExpectRefused("mlstm_zero_state", "\"shape\"",
                [](EditableDump& d) { d.metadata["shape"] = "(1, 2, 3, 4, 5)"; });
  ExpectRefused("mlstm_zero_state", "\"forget_gate\"",
                [](EditableDump& d) { d.metadata["forget_gate"] = "exp"; });
  ExpectRefused("curve_large", "\"optimizer\"",
                [](EditableDump& d) { d.metadata["optimizer"] = "SGD lr 1"; });
  ExpectRefused("curve_large", "dropout", [](EditableDump& d) {
    d.metadata["optimizer"] = "AdamW betas 0.9 0.95 eps 1e-8 dropout 0.1";
  });
}
TEST(Verify, NamesTheTensorThatIsMissingOrWrong) {
  ExpectRefused("large_a", "param.lm_head.weight", [](EditableDump& d) { d.Remove("param.lm_head.weight"); });
  ExpectRefused("large_a", "grad.lm_head.weight", [](EditableDump& d) { d.Remove("grad.lm_head.weight"); });
  ExpectRefused("large_a", "logits", [](EditableDump& d) { d.Remove("logits"); });
  ExpectRefused("large_a", "input_ids", [](EditableDump& d) { d.values<int32_t>("input_ids")[5] = 96; });
  ExpectRefused("large_a", "targets", [](EditableDump& d) { d.values<int32_t>("targets")[5] = -1; });
  ExpectRefused("large_a", "logits", [](EditableDump& d) { d.values<float>("logits")[0] = NAN; });
  ExpectRefused("large_a", "input_ids",
                [](EditableDump& d) { d.tensor("input_ids").spec.dtype = SafetensorsDType::kF32; });
  ExpectRefused("mlstm_with_state", "\"grad.k\"", [](EditableDump& d) { d.Remove("grad.k"); });
  ExpectRefused("mlstm_with_state", "\"n0\"", [](EditableDump& d) { d.Remove("n0"); });
  ExpectRefused("mlstm_with_state", "\"k\"", [](EditableDump& d) {
    d.tensor("k").spec.shape = {1, 2, 32, 96};
  });
  ExpectRefused("mlstm_with_state", "\"w\"", [](EditableDump& d) {
    d.tensors.push_back({{"w", SafetensorsDType::kF32, {0}}, {}});
  });
  ExpectRefused("curve_large", "lrs", [](EditableDump& d) { d.Remove("lrs"); });
}

TEST(RelativeError, IsInfiniteForWhatIsNotFinite) {
  EXPECT_EQ(RelativeError({1, 2}, {1, 2}), 0);
  EXPECT_DOUBLE_EQ(RelativeError({3, 0}, {0, 4}), 1.25);
  EXPECT_DOUBLE_EQ(RelativeError({1}, {0}, 10), 0.1);
  EXPECT_TRUE(std::isinf(RelativeError({NAN}, {1})));
  EXPECT_TRUE(std::isinf(RelativeError({1}, {0})));
  EXPECT_TRUE(std::isinf(RelativeError({1}, {1, 1})));
  EXPECT_DOUBLE_EQ(Norm({3e200, 4e200}), 5e200);
}
}  // namespace
}  // namespace carousel
