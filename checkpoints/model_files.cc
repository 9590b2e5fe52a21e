#include "checkpoints/model_files.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "checkpoints/weight_source.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

constexpr int64_t kMaxJsonBytes = int64_t{64} << 20;
constexpr int64_t kPieceBytes = int64_t{1} << 20;  // read and converted at once
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool IsWeightDType(SafetensorsDType dtype) {
  return dtype == SafetensorsDType::kF32 || dtype == SafetensorsDType::kBF16 ||
         dtype == SafetensorsDType::kF16 || dtype == SafetensorsDType::kF64;
}

// Each on its own line; at most so many.
std::string JoinProblems(std::vector<std::string> problems) {
  constexpr size_t kMost = 20;
  const size_t total = problems.size();
  if (total > kMost) {
    problems.resize(kMost);
    problems.push_back(absl::StrCat("... ", total - kMost, " more"));
  }
  return absl::StrCat("\n  ", absl::StrJoin(problems, "\n  "));
}
}  // namespace

absl::StatusOr<std::unique_ptr<ModelFiles>> ModelFiles::Open(const std::string& dir, ShardNames names,
                                                             FileSystem& files) {
  auto result = std::make_unique<ModelFiles>();
  result->file_system_ = &files;
  const std::string single = JoinPath(dir, kSingleFile), index = JoinPath(dir, kIndexFile);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo single_info, files.Stat(single));
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo index_info, files.Stat(index));
  if (single_info.exists) {
    CAROUSEL_RETURN_IF_ERROR(result->OpenFile(single));
  } else if (index_info.exists) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, index, kMaxJsonBytes));
    CAROUSEL_RETURN_IF_ERROR(result->OpenIndexed(dir, text));
  } else if (names == ShardNames::kNumberedFromZero) {
    CAROUSEL_RETURN_IF_ERROR(result->OpenNumbered(dir));
  } else {
    return absl::NotFoundError(absl::StrCat(dir, " has neither ", kSingleFile, " nor ", kIndexFile,
                                            "; save the model in the safetensors format"));
  }
  CAROUSEL_RETURN_IF_ERROR(result->Index(dir));
  return result;
}

absl::Status ModelFiles::OpenFile(const std::string& path) {
  auto file = std::make_unique<File>();
  CAROUSEL_ASSIGN_OR_RETURN(file->bytes, file_system_->OpenFile(path));
  CAROUSEL_ASSIGN_OR_RETURN(file->header, ReadSafetensorsHeader(*file->bytes, path));
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status ModelFiles::OpenNumbered(const std::string& dir) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, file_system_->ListDirectory(dir));
  const std::set<std::string> there(names.begin(), names.end());
  size_t num_shards = 0;
  for (const std::string& name : names) {
    absl::string_view number = name;
    num_shards +=
        absl::ConsumePrefix(&number, "model_") && absl::ConsumeSuffix(&number, ".safetensors") &&
        !number.empty() &&
        std::all_of(number.begin(), number.end(), [](unsigned char c) { return absl::ascii_isdigit(c); });
  }
  for (size_t i = 0; i < num_shards; ++i) {
    const std::string name = absl::StrCat("model_", i, ".safetensors");
    if (there.count(name) == 0) {
      return absl::NotFoundError(absl::StrCat(JoinPath(dir, name), " is missing: there are ", num_shards,
                                              " files model_N.safetensors, numbered from 0 on"));
    }
    CAROUSEL_RETURN_IF_ERROR(OpenFile(JoinPath(dir, name)));
  }
  if (num_shards > 0) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat(dir, " has neither ", kSingleFile, " nor ", kIndexFile,
                   " nor model_0.safetensors; save the model in the safetensors format"));
}

absl::Status ModelFiles::OpenIndexed(const std::string& dir, const std::string& index_text) {
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
  std::vector<std::string> problems;
  for (const auto& [file, tensors] : tensors_of) {
    const absl::Status opened = OpenFile(JoinPath(dir, file));
    if (!opened.ok() && !absl::IsNotFound(opened) && !absl::IsInvalidArgument(opened)) return opened;
    if (!opened.ok()) {
      problems.push_back(
          absl::StrCat(opened.message(), " (it should hold \"", tensors[0], "\"",
                       tensors.size() > 1 ? absl::StrCat(" and ", tensors.size() - 1, " more") : "", ")"));
      continue;
    }
    for (const std::string& tensor : tensors) {
      if (files_.back()->header.Find(tensor) == nullptr) {
        problems.push_back(absl::StrCat("\"", tensor, "\" is not in ", file));
      }
    }
  }
  return problems.empty() ? absl::OkStatus() : invalid(JoinProblems(std::move(problems)));
}

absl::Status ModelFiles::Index(const std::string& dir) {
  std::vector<std::string> problems;
  for (size_t f = 0; f < files_.size(); ++f) {
    for (const SafetensorsEntry& entry : files_[f]->header.tensors) {
      if (!tensors_.insert({entry.name, {&entry, f}}).second) {
        problems.push_back(absl::StrCat("tensor \"", entry.name, "\" is in two files"));
      }
      if (!IsWeightDType(entry.dtype)) {
        problems.push_back(absl::StrCat("tensor \"", entry.name, "\" has dtype ", NameOf(entry.dtype),
                                        "; weights must be F32, BF16, F16 or F64"));
      }
    }
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(dir, ":", JoinProblems(std::move(problems))));
}

const ModelFiles::Tensor* ModelFiles::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

absl::Status ModelFiles::ReadStored(const Tensor& tensor, int64_t begin, int64_t count, void* data) const {
  const int64_t elem_bytes = tensor.elem_bytes(), num_bytes = count * elem_bytes;
  CAROUSEL_CHECK(begin >= 0 && count >= 0 && num_bytes <= tensor.entry->num_bytes() - begin * elem_bytes);
  const File& file = *files_[tensor.file];
  const int64_t offset = file.header.data_begin + tensor.entry->begin + begin * elem_bytes;
  const absl::Status status = file.bytes->ReadAt(offset, data, num_bytes);
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("reading tensor \"", tensor.entry->name, "\": ", status.message()));
}

absl::Status ModelFiles::Read(const Tensor& tensor, int64_t begin, int64_t count, DType dtype,
                              void* data) const {
  if (tensor.entry->dtype == ToSafetensors(dtype)) return ReadStored(tensor, begin, count, data);
  const int64_t piece_elems = std::min(count, kPieceBytes / tensor.elem_bytes());
  std::vector<std::byte> piece(static_cast<size_t>(piece_elems * tensor.elem_bytes()));
  std::byte* out = static_cast<std::byte*>(data);
  for (int64_t done = 0; done < count; done += piece_elems) {
    const int64_t n = std::min(piece_elems, count - done);
    CAROUSEL_RETURN_IF_ERROR(ReadStored(tensor, begin + done, n, piece.data()));
    ConvertStored(dtype, out + done * SizeOf(dtype), tensor.entry->dtype, piece.data(), n);
  }
  return absl::OkStatus();
}

std::vector<NamedShape> ModelFiles::shapes() const {
  std::vector<NamedShape> shapes;
  for (const auto& file : files_) {
    for (const SafetensorsEntry& entry : file->header.tensors) shapes.push_back({entry.name, entry.shape});
  }
  return shapes;
}

std::set<std::string> ModelFiles::Metadata(const std::string& key) const {
  std::set<std::string> values;
  for (const auto& file : files_) {
    const auto found = file->header.metadata.find(key);
    if (found != file->header.metadata.end()) values.insert(found->second);
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
