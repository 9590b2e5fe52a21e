#include "checkpoints/hf_import.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/safetensors.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

constexpr int64_t kMaxJsonBytes = int64_t{64} << 20;
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

class HfModelImpl final : public HfModel {
 public:
  absl::Status Load(const std::string& dir);

  const ModelFileConfig& config() const override { return config_; }
  const std::vector<Param>& params() const override { return params_; }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override;

 private:
  // Where a parameter's elements are.
  struct Place {
    int64_t num_elems = 0;
    const SafetensorsReader* file = nullptr;  // null: it is not in the files and reads as zeros
    const SafetensorsEntry* entry = nullptr;
    int64_t begin = 0;  // its first element within the tensor
  };
  absl::Status OpenFiles(const std::string& dir);
  absl::Status OpenShards(const std::string& dir, const std::string& index_text);
  absl::Status PlaceParams(const std::string& dir);

  std::string dir_;
  ModelFileConfig config_;
  std::vector<Param> params_;
  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, Place> places_;
};

bool IsWeightDType(SafetensorsDType dtype) {
  return dtype == SafetensorsDType::kF32 || dtype == SafetensorsDType::kBF16 ||
         dtype == SafetensorsDType::kF16 || dtype == SafetensorsDType::kF64;
}

absl::Status HfModelImpl::Load(const std::string& dir) {
  dir_ = dir;
  PosixFileSystem files;
  const std::string config_path = JoinPath(dir, "config.json");
  CAROUSEL_ASSIGN_OR_RETURN(const std::string config_text, ReadFile(files, config_path, kMaxJsonBytes));
  CAROUSEL_ASSIGN_OR_RETURN(config_,
                            ParseModelConfig(ConfigDialect::kTransformers, config_text, config_path));
  params_ = ModelParams(config_.spec);
  CAROUSEL_RETURN_IF_ERROR(OpenFiles(dir));
  return PlaceParams(dir);
}

absl::Status HfModelImpl::OpenFiles(const std::string& dir) {
  PosixFileSystem files;
  const std::string single = JoinPath(dir, kSingleFile), index = JoinPath(dir, kIndexFile);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo single_info, files.Stat(single));
  if (single_info.exists) {
    CAROUSEL_ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(single));
    files_.push_back(std::make_unique<SafetensorsReader>(std::move(reader)));
    return absl::OkStatus();
  }
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo index_info, files.Stat(index));
  if (!index_info.exists) {
    return absl::NotFoundError(absl::StrCat(dir, " has neither ", kSingleFile, " nor ", kIndexFile,
                                            "; save the model in the safetensors format"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, index, kMaxJsonBytes));
  return OpenShards(dir, text);
}

absl::Status HfModelImpl::OpenShards(const std::string& dir, const std::string& index_text) {
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

absl::Status HfModelImpl::PlaceParams(const std::string& dir) {
  std::map<std::string, Place> tensors;
  std::vector<NamedShape> present;
  std::vector<std::string> problems;
  for (const auto& file : files_) {
    for (const SafetensorsEntry& entry : file->tensors()) {
      if (!tensors.insert({entry.name, {entry.num_elems(), file.get(), &entry, 0}}).second) {
        problems.push_back(absl::StrCat("tensor \"", entry.name, "\" is in two files"));
      }
      if (!IsWeightDType(entry.dtype)) {
        problems.push_back(absl::StrCat("tensor \"", entry.name, "\" has dtype ", NameOf(entry.dtype),
                                        "; weights must be F32, BF16, F16 or F64"));
      }
      present.push_back({entry.name, entry.shape});
    }
  }
  if (!problems.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(dir, ":\n  ", absl::StrJoin(problems, "\n  ")));
  }
  const std::vector<FileTensor> expected =
      FileTensors(params_, ConfigDialect::kTransformers, config_.fused_weights);
  CAROUSEL_RETURN_IF_ERROR(CheckFileTensors(expected, present, dir));
  for (const Param& param : params_) places_[param.name].num_elems = param.num_elems;
  for (const FileTensor& tensor : expected) {
    for (const FileTensor::Part& part : tensor.parts) {
      Place place = tensors.at(tensor.name);
      place.num_elems = part.count;
      place.begin = part.begin;
      places_[part.param] = place;
    }
  }
  return absl::OkStatus();
}

absl::Status HfModelImpl::Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                               void* data) const {
  const auto found = places_.find(name);
  if (found == places_.end()) {
    return absl::NotFoundError(absl::StrCat(dir_, " has no parameter \"", name, "\""));
  }
  const Place& place = found->second;
  if (begin < 0 || count < 0 || count > place.num_elems - begin) {
    return absl::OutOfRangeError(absl::StrCat("elements [", begin, ", ", begin, " + ", count, ") of \"", name,
                                              "\", which has ", place.num_elems));
  }
  if (place.file == nullptr) {
    std::memset(data, 0, static_cast<size_t>(count * SizeOf(dtype)));
    return absl::OkStatus();
  }
  const int64_t elem_bytes = BitsOf(place.entry->dtype) / 8;
  const std::byte* source =
      static_cast<const std::byte*>(place.file->data(*place.entry)) + (place.begin + begin) * elem_bytes;
  if (place.entry->dtype != SafetensorsDType::kF16) {
    CAROUSEL_ASSIGN_OR_RETURN(const DType from, FromSafetensors(place.entry->dtype));
    ConvertElems(dtype, data, from, source, count);
    return absl::OkStatus();
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, source + 2 * i, sizeof(half));
    const float value = HalfToFloat(half);
    ConvertElems(dtype, static_cast<std::byte*>(data) + i * SizeOf(dtype), DType::kF32, &value, 1);
  }
  return absl::OkStatus();
}
}  // namespace

bool IsHfDirectory(const std::string& dir) {
  PosixFileSystem files;
  const absl::StatusOr<FileInfo> info = files.Stat(JoinPath(dir, "config.json"));
  return info.ok() && info->exists && !info->is_directory;
}

absl::StatusOr<std::unique_ptr<HfModel>> HfModel::Open(const std::string& dir) {
  if (!IsHfDirectory(dir)) {
    return absl::NotFoundError(absl::StrCat(dir, " is not a Hugging Face directory: it has no config.json"));
  }
  auto model = std::make_unique<HfModelImpl>();
  CAROUSEL_RETURN_IF_ERROR(model->Load(dir));
  return std::unique_ptr<HfModel>(std::move(model));
}
}  // namespace carousel
