// What the tests of import and export share: a small model that Transformers can express, random weights in
// memory, and directories written by hand.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/weight_source.h"
#include "tests/model_testing.h"

namespace carousel::testing {

inline ModelSpec ExportableSpec() {
  ModelSpec spec;
  spec.vocab_size = 320;
  spec.embedding_dim = 128;
  spec.num_blocks = 2;
  spec.num_heads = 4;
  spec.qk_dim = 64;
  spec.v_dim = 128;
  spec.ffn_dim = 192;
  return spec;
}

// Weights in memory: RandomParameter of every parameter, as floats.
class MemoryWeights final : public WeightSource {
 public:
  explicit MemoryWeights(const ModelSpec& spec) : params_(ModelParams(spec)) {
    for (const Param& param : params_) {
      std::vector<float>& values = values_[param.name];
      for (int64_t j = 0; j < param.num_elems; ++j)
        values.push_back(static_cast<float>(RandomParameter(param, j)));
    }
  }
  const std::vector<Param>& params() const override { return params_; }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override {
    const std::vector<float>& values = values_.at(name);
    CAROUSEL_CHECK(begin >= 0 && begin + count <= static_cast<int64_t>(values.size()));
    ConvertElems(dtype, data, DType::kF32, values.data() + begin, count);
    return absl::OkStatus();
  }
  std::vector<float>& values(const std::string& name) { return values_.at(name); }

 private:
  std::vector<Param> params_;
  std::map<std::string, std::vector<float>> values_;
};

inline std::vector<float> ReadFloats(const WeightSource& source, const std::string& name, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  const absl::Status status = source.Read(name, 0, count, DType::kF32, values.data());
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

// Every parameter of both, converted to `dtype` and back.
inline void ExpectEqualWeights(const WeightSource& a, const WeightSource& b, DType dtype = DType::kF32) {
  for (const Param& param : b.params()) {
    std::vector<float> x = ReadFloats(a, param.name, param.num_elems),
                       y = ReadFloats(b, param.name, param.num_elems);
    if (dtype == DType::kBF16) {
      for (float& value : y) value = static_cast<float>(bfloat16(value));
    }
    EXPECT_EQ(x, y) << param.name;
  }
}

// Writes a safetensors file with the given bytes of every tensor.
struct RawTensor {
  SafetensorsSpec spec;
  std::vector<std::byte> bytes;
};
inline void WriteSafetensors(const std::string& path, const std::vector<RawTensor>& tensors,
                             const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
  PosixFileSystem files;
  std::vector<SafetensorsSpec> specs;
  for (const RawTensor& tensor : tensors) specs.push_back(tensor.spec);
  const auto layout = PlanSafetensors(specs, metadata);
  ASSERT_TRUE(layout.ok()) << layout.status();
  auto writer = SafetensorsWriter::Create(path, *layout, files);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const SafetensorsEntry& entry : layout->tensors) {
    for (const RawTensor& tensor : tensors) {
      if (tensor.spec.name != entry.name) continue;
      ASSERT_EQ(static_cast<int64_t>(tensor.bytes.size()), entry.num_bytes()) << entry.name;
      ASSERT_TRUE((*writer)->Append(entry.name, tensor.bytes.data(), entry.num_bytes()).ok());
    }
  }
  const absl::Status finished = (*writer)->Finish();
  ASSERT_TRUE(finished.ok()) << finished;
}

// The tensors of a file with these weights, stored as `dtype`.
inline std::vector<RawTensor> TensorsOf(const WeightSource& weights, ConfigDialect dialect, bool fused,
                                        SafetensorsDType dtype) {
  std::vector<RawTensor> result;
  for (const FileTensor& tensor : FileTensors(weights.params(), dialect, fused)) {
    RawTensor raw{{tensor.name, dtype, tensor.shape}, {}};
    for (const FileTensor::Part& part : tensor.parts) {
      for (const float value : ReadFloats(weights, part.param, part.count)) {
        const auto append = [&](auto stored) {
          const std::byte* bytes = reinterpret_cast<const std::byte*>(&stored);
          raw.bytes.insert(raw.bytes.end(), bytes, bytes + sizeof(stored));
        };
        if (dtype == SafetensorsDType::kF16) append(FloatToHalf(value));
        if (dtype == SafetensorsDType::kBF16) append(bfloat16(value));
        if (dtype == SafetensorsDType::kF32) append(value);
        if (dtype == SafetensorsDType::kF64) append(static_cast<double>(value));
      }
    }
    result.push_back(std::move(raw));
  }
  return result;
}

inline bool Contains(const absl::Status& status, const std::string& text) {
  return std::string(status.message()).find(text) != std::string::npos;
}
}  // namespace carousel::testing
