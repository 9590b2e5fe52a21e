// What the tests of `carousel verify` share: golden dumps, and copies of them that can be changed.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/models/verify.h"
#include "tests/hf_testing.h"
#include "tests/temp_dir.h"

namespace carousel::testing {
using Json = nlohmann::json;

inline std::string Golden(const std::string& name) {
  return std::string(CAROUSEL_SOURCE_DIR) + "/tests/golden/" + name + ".safetensors";
}
inline absl::StatusOr<DumpReport> VerifyFile(const std::string& path, DType dtype, int64_t chunk_length = 0) {
  const auto dump = ReferenceDump::Open(path);
  if (!dump.ok()) return dump.status();
  const auto device = CpuDevice();
  return Verify(*dump, {.dtype = dtype, .chunk_length = chunk_length}, *device);
}
inline void ExpectPasses(const std::string& name, DType dtype, int64_t chunk_length = 0) {
  const auto report = VerifyFile(Golden(name), dtype, chunk_length);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->ok()) << report->ToText();
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
  // Writes it to a file and calls read(the dump).
  template <class Fn>
  auto Read(const Fn& read) const {
    const TempDir temp;
    const std::string path = temp.path() + "/dump.safetensors";
    WriteSafetensors(path, tensors, metadata);
    const auto dump = ReferenceDump::Open(path);
    CAROUSEL_CHECK_MSG(dump.ok(), dump.status().ToString());
    return read(*dump);
  }
  absl::StatusOr<DumpReport> Verify(DType dtype) const {
    return Read([&](const ReferenceDump& dump) {
      const auto device = CpuDevice();
      return carousel::Verify(dump, {.dtype = dtype}, *device);
    });
  }
};
}  // namespace carousel::testing
