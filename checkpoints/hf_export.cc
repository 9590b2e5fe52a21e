#include "checkpoints/hf_export.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/safetensors.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using OrderedJson = nlohmann::ordered_json;

constexpr int64_t kPieceElems = int64_t{1} << 20;  // read, converted and written at once

struct Shard {
  std::string file;
  std::vector<const FileTensor*> tensors;
};

int64_t NumElems(const FileTensor& tensor) {
  int64_t count = 0;
  for (const FileTensor::Part& part : tensor.parts) count += part.count;
  return count;
}

// In order, as many tensors per shard as fit; one file without a number if everything fits.
std::vector<Shard> AssignShards(const std::vector<FileTensor>& tensors, int64_t elem_bytes,
                                int64_t max_shard_bytes) {
  std::vector<Shard> shards(1);
  int64_t shard_bytes = 0;
  for (const FileTensor& tensor : tensors) {
    const int64_t num_bytes = NumElems(tensor) * elem_bytes;
    if (!shards.back().tensors.empty() && num_bytes > max_shard_bytes - shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().tensors.push_back(&tensor);
    shard_bytes += num_bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = shards.size() == 1
                         ? "model.safetensors"
                         : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
  }
  return shards;
}

// The final norm of Transformers has no bias: ours must do nothing.
absl::Status CheckOutNormBiasIsZero(const WeightSource& weights) {
  for (const Param& param : weights.params()) {
    if (param.name != kOutNormBias) continue;
    const int64_t count = param.shape[0];
    std::vector<float> bias(static_cast<size_t>(count));
    CAROUSEL_RETURN_IF_ERROR(weights.Read(param.name, 0, count, DType::kF32, bias.data()));
    if (std::all_of(bias.begin(), bias.end(), [](float b) { return b == 0; })) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "Hugging Face Transformers cannot express this model:\n  use_bias = true: its final norm "
        "has no bias, and \"",
        kOutNormBias, "\" is not zero"));
  }
  return absl::OkStatus();
}

absl::Status WriteTensor(const FileTensor& tensor, const WeightSource& weights, DType dtype,
                         SafetensorsWriter& writer) {
  std::vector<std::byte> piece(static_cast<size_t>(std::min(kPieceElems, NumElems(tensor)) * SizeOf(dtype)));
  for (const FileTensor::Part& part : tensor.parts) {
    for (int64_t begin = 0; begin < part.count; begin += kPieceElems) {
      const int64_t count = std::min(kPieceElems, part.count - begin);
      CAROUSEL_RETURN_IF_ERROR(weights.Read(part.param, begin, count, dtype, piece.data()));
      CAROUSEL_RETURN_IF_ERROR(writer.Append(tensor.name, piece.data(), count * SizeOf(dtype)));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteShard(const std::string& dir, const Shard& shard, const WeightSource& weights, DType dtype,
                        FileSystem& files) {
  std::vector<SafetensorsSpec> specs;
  std::map<std::string, const FileTensor*> by_name;
  for (const FileTensor* tensor : shard.tensors) {
    specs.push_back({tensor->name, ToSafetensors(dtype), tensor->shape});
    by_name[tensor->name] = tensor;
  }
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsLayout layout, PlanSafetensors(specs, {{"format", "pt"}}));
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                            SafetensorsWriter::Create(JoinPath(dir, shard.file), layout, files));
  for (const SafetensorsEntry& entry : layout.tensors) {
    CAROUSEL_RETURN_IF_ERROR(WriteTensor(*by_name.at(entry.name), weights, dtype, *writer));
  }
  return writer->Finish();
}

std::string IndexJson(const std::vector<Shard>& shards, int64_t total_bytes) {
  OrderedJson index;
  index["metadata"]["total_size"] = total_bytes;
  std::map<std::string, std::string> file_of;
  for (const Shard& shard : shards) {
    for (const FileTensor* tensor : shard.tensors) file_of[tensor->name] = shard.file;
  }
  for (const auto& [name, file] : file_of) index["weight_map"][name] = file;
  return index.dump(2) + "\n";
}

// Everything but the renaming.
absl::StatusOr<HfExportResult> WriteDirectory(const std::string& dir, const ModelSpec& spec,
                                              const WeightSource& weights, const HfExportOptions& options,
                                              FileSystem& files) {
  HfExportResult result;
  const std::vector<FileTensor> tensors =
      FileTensors(ModelParams(spec), ConfigDialect::kTransformers, /*fused=*/false);
  for (const FileTensor& tensor : tensors) result.total_bytes += NumElems(tensor) * SizeOf(options.dtype);
  const std::vector<Shard> shards = AssignShards(tensors, SizeOf(options.dtype), options.max_shard_bytes);

  CAROUSEL_RETURN_IF_ERROR(CreateDirectories(files, dir));
  CAROUSEL_ASSIGN_OR_RETURN(const int64_t free_bytes, files.FreeBytes(dir));
  if (free_bytes < result.total_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(dir, ": the model takes ", result.total_bytes,
                                                     " bytes, the disk has ", free_bytes, " left"));
  }
  const auto write = [&](const std::string& name, const std::string& content) {
    result.files.push_back(name);
    return WriteFile(files, JoinPath(dir, name), content);
  };
  for (const Shard& shard : shards) {
    CAROUSEL_RETURN_IF_ERROR(WriteShard(dir, shard, weights, options.dtype, files));
    result.files.push_back(shard.file);
  }
  if (shards.size() > 1) {
    CAROUSEL_RETURN_IF_ERROR(write("model.safetensors.index.json", IndexJson(shards, result.total_bytes)));
  }
  CAROUSEL_RETURN_IF_ERROR(write("config.json", TransformersConfigJson(spec, options.tokens, options.dtype)));
  CAROUSEL_RETURN_IF_ERROR(write("generation_config.json", TransformersGenerationConfigJson(options.tokens)));
  for (const HfExportOptions::File& file : options.extra_files) {
    CAROUSEL_RETURN_IF_ERROR(write(file.name, file.content));
  }
  CAROUSEL_RETURN_IF_ERROR(files.SyncDirectory(dir));
  return result;
}

// OK if `out` is free, or may be replaced.
absl::Status CheckDestination(const std::string& out, bool overwrite, FileSystem& files, bool* exists) {
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(out));
  *exists = info.exists;
  if (!info.exists) return absl::OkStatus();
  if (!overwrite) {
    return absl::AlreadyExistsError(
        absl::StrCat(out, " exists; give another --out, or --force to replace it"));
  }
  if (info.is_directory) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.ListDirectory(out));
    const bool has_config = std::find(names.begin(), names.end(), "config.json") != names.end();
    if (names.empty() || has_config) return absl::OkStatus();
  }
  return absl::AlreadyExistsError(
      absl::StrCat(out, " is not an exported model (no config.json): it will not be replaced"));
}
}  // namespace

absl::StatusOr<HfExportResult> ExportHf(const ModelSpec& spec, const WeightSource& weights,
                                        const HfExportOptions& options, FileSystem& files) {
  CAROUSEL_CHECK(options.dtype == DType::kF32 || options.dtype == DType::kBF16);
  CAROUSEL_RETURN_IF_ERROR(CheckExpressibleInTransformers(spec));
  CAROUSEL_RETURN_IF_ERROR(CheckOutNormBiasIsZero(weights));
  if (options.max_shard_bytes <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_shard_bytes = ", options.max_shard_bytes, "; it must be > 0"));
  }
  // "a/b/" -> "a/b": siblings of the name are needed.
  std::string out = std::filesystem::path(options.out_dir).lexically_normal().string();
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  const std::string name = std::filesystem::path(out).filename().string();
  if (name.empty() || name == "." || name == "..") {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot create a directory named \"", options.out_dir, "\""));
  }
  bool replaces = false;
  CAROUSEL_RETURN_IF_ERROR(CheckDestination(out, options.overwrite, files, &replaces));

  const std::string partial = out + ".incomplete", old = out + ".replaced";
  CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, partial));
  const absl::StatusOr<HfExportResult> result = WriteDirectory(partial, spec, weights, options, files);
  if (!result.ok()) {
    RemoveTree(files, partial).IgnoreError();  // the first error is the one to report
    return result.status();
  }
  if (replaces) {
    CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, old));
    CAROUSEL_RETURN_IF_ERROR(files.Rename(out, old));
  }
  CAROUSEL_RETURN_IF_ERROR(files.Rename(partial, out));
  CAROUSEL_RETURN_IF_ERROR(files.SyncDirectory(ParentPath(out)));
  if (replaces) CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, old));
  return result;
}
}  // namespace carousel
