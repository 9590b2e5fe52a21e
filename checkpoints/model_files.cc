#include "checkpoints/model_files.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/file_system.h"
#include "checkpoints/weight_source.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

constexpr int64_t kMaxJsonBytes = int64_t{64} << 20;
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool IsWeightDType(SafetensorsDType dtype) {
  return dtype == SafetensorsDType::kF32 || dtype == SafetensorsDType::kBF16 ||
         dtype == SafetensorsDType::kF16 || dtype == SafetensorsDType::kF64;
}
}  // namespace

absl::StatusOr<std::unique_ptr<ModelFiles>> ModelFiles::Open(const std::string& dir) {
  auto result = std::make_unique<ModelFiles>();
  PosixFileSystem files;
  const std::string single = JoinPath(dir, kSingleFile), index = JoinPath(dir, kIndexFile);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo single_info, files.Stat(single));
  if (single_info.exists) {
    CAROUSEL_ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(single));
    result->files_.push_back(std::make_unique<SafetensorsReader>(std::move(reader)));
  } else {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo index_info, files.Stat(index));
    if (!index_info.exists) {
      return absl::NotFoundError(absl::StrCat(dir, " has neither ", kSingleFile, " nor ", kIndexFile,
                                              "; save the model in the safetensors format"));
    }
    CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, index, kMaxJsonBytes));
    CAROUSEL_RETURN_IF_ERROR(result->OpenShards(dir, text));
  }
  CAROUSEL_RETURN_IF_ERROR(result->Index(dir));
  return result;
}

absl::Status ModelFiles::OpenShards(const std::string& dir, const std::string& index_text) {
  const std::string index = JoinPath(dir, kIndexFile);
  const auto invalid = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(index, ": ", what));
  };
  const Json root = Json::parse(index_text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object()) {
    return invalid("no object \"weight_map\"");
  }
  std::map<std::string, std::vector<std::string>> tensors_of;  // file -> its tensors
  for (const auto& [tensor, file] : root["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || name[0] == '.') {
      return invalid(absl::StrCat("the file of \"", tensor, "\" must be a name in the same directory"));
    }
    tensors_of[name].push_back(tensor);
  }
  for (const auto& [file, tensors] : tensors_of) {
    CAROUSEL_ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(JoinPath(dir, file)));
    for (const std::string& tensor : tensors) {
      if (reader.Find(tensor) == nullptr) {
        return invalid(absl::StrCat("\"", tensor, "\" is not in ", file));
      }
    }
    files_.push_back(std::make_unique<SafetensorsReader>(std::move(reader)));
  }
  return absl::OkStatus();
}

absl::Status ModelFiles::Index(const std::string& dir) {
  std::vector<std::string> problems;
  for (const auto& file : files_) {
    for (const SafetensorsEntry& entry : file->tensors()) {
      if (!tensors_.insert({entry.name, {&entry, file->data(entry)}}).second) {
        problems.push_back(absl::StrCat("tensor \"", entry.name, "\" is in two files"));
      }
      if (!IsWeightDType(entry.dtype)) {
        problems.push_back(absl::StrCat("tensor \"", entry.name, "\" has dtype ", NameOf(entry.dtype),
                                        "; weights must be F32, BF16, F16 or F64"));
      }
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(dir, ":\n  ", absl::StrJoin(problems, "\n  ")));
}

const ModelFiles::Tensor* ModelFiles::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::vector<NamedShape> ModelFiles::shapes() const {
  std::vector<NamedShape> shapes;
  for (const auto& file : files_) {
    for (const SafetensorsEntry& entry : file->tensors()) shapes.push_back({entry.name, entry.shape});
  }
  return shapes;
}

std::set<std::string> ModelFiles::Metadata(const std::string& key) const {
  std::set<std::string> values;
  for (const auto& file : files_) {
    const auto found = file->metadata().find(key);
    if (found != file->metadata().end()) values.insert(found->second);
  }
  return values;
}

void ConvertStored(DType to, void* out, SafetensorsDType from, const void* in, int64_t count) {
  const std::byte* source = static_cast<const std::byte*>(in);
  if (from != SafetensorsDType::kF16) {
    const absl::StatusOr<DType> dtype = FromSafetensors(from);
    CAROUSEL_CHECK(dtype.ok());
    ConvertElems(to, out, *dtype, source, count);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, source + 2 * i, sizeof(half));
    const float value = HalfToFloat(half);
    ConvertElems(to, static_cast<std::byte*>(out) + i * SizeOf(to), DType::kF32, &value, 1);
  }
}
}  // namespace carousel
