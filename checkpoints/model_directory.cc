#include "checkpoints/model_directory.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/safetensors.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using OrderedJson = nlohmann::ordered_json;

struct Shard {
  std::string file;
  std::vector<size_t> tensors;  // indices
};

int64_t NumBytes(const NamedShape& tensor, DType dtype) {
  int64_t count = 1;
  for (const int64_t size : tensor.shape) count *= size;
  return count * SizeOf(dtype);
}

// In order, as many tensors per shard as fit; one file without a number if everything fits.
std::vector<Shard> AssignShards(const ModelDirectory& directory) {
  std::vector<Shard> shards(1);
  int64_t shard_bytes = 0;
  for (size_t i = 0; i < directory.tensors.size(); ++i) {
    const int64_t num_bytes = NumBytes(directory.tensors[i], directory.dtype);
    if (!shards.back().tensors.empty() && num_bytes > directory.max_shard_bytes - shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().tensors.push_back(i);
    shard_bytes += num_bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = shards.size() == 1 ? "model.safetensors"
                     : directory.shard_names == ShardNames::kNumberedFromZero
                         ? absl::StrCat("model_", i, ".safetensors")
                         : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
  }
  return shards;
}

absl::Status WriteShard(const std::string& dir, const Shard& shard, const ModelDirectory& directory,
                        FileSystem& files, const std::function<void(int64_t)>& wrote) {
  std::vector<SafetensorsSpec> specs;
  std::map<std::string, size_t> by_name;
  for (const size_t i : shard.tensors) {
    const NamedShape& tensor = directory.tensors[i];
    specs.push_back({tensor.name, ToSafetensors(directory.dtype), tensor.shape});
    by_name[tensor.name] = i;
  }
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsLayout layout, PlanSafetensors(specs, directory.metadata));
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                            SafetensorsWriter::Create(JoinPath(dir, shard.file), layout, files));
  for (const SafetensorsEntry& entry : layout.tensors) {
    const auto append = [&](const void* values, int64_t count) -> absl::Status {
      const int64_t num_bytes = count * SizeOf(directory.dtype);
      CAROUSEL_RETURN_IF_ERROR(writer->Append(entry.name, values, num_bytes));
      wrote(num_bytes);
      return absl::OkStatus();
    };
    CAROUSEL_RETURN_IF_ERROR(directory.write(by_name.at(entry.name), append));
  }
  return writer->Finish();
}

std::string IndexJson(const ModelDirectory& directory, const std::vector<Shard>& shards,
                      int64_t total_bytes) {
  OrderedJson index;
  index["metadata"]["total_size"] = total_bytes;
  std::map<std::string, std::string> file_of;
  for (const Shard& shard : shards) {
    for (const size_t i : shard.tensors) file_of[directory.tensors[i].name] = shard.file;
  }
  for (const auto& [name, file] : file_of) index["weight_map"][name] = file;
  return index.dump(2) + "\n";
}

// Everything but the renaming.
absl::StatusOr<ModelDirectoryResult> WriteInto(const std::string& dir, const ModelDirectory& directory,
                                               FileSystem& files) {
  ModelDirectoryResult result;
  for (const NamedShape& tensor : directory.tensors) result.total_bytes += NumBytes(tensor, directory.dtype);
  const std::vector<Shard> shards = AssignShards(directory);

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
  int64_t written = 0;
  const auto report = [&](int64_t done) {
    if (directory.progress) directory.progress(done, 2 * result.total_bytes);
  };
  const auto wrote = [&](int64_t num_bytes) { report(written += num_bytes); };
  for (const Shard& shard : shards) {
    CAROUSEL_RETURN_IF_ERROR(WriteShard(dir, shard, directory, files, wrote));
    result.files.push_back(shard.file);
  }
  if (shards.size() > 1) {
    CAROUSEL_RETURN_IF_ERROR(
        write("model.safetensors.index.json", IndexJson(directory, shards, result.total_bytes)));
  }
  for (const ModelDirectoryFile& file : directory.files) {
    CAROUSEL_RETURN_IF_ERROR(write(file.name, file.content));
  }
  CAROUSEL_RETURN_IF_ERROR(files.SyncDirectory(dir));
  CAROUSEL_ASSIGN_OR_RETURN(result.num_compared,
                            directory.check(dir, [&](int64_t bytes) { report(result.total_bytes + bytes); }));
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
    const bool has_config = std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return name == "config.json" || name == "config.yaml";
    });
    const bool has_run = std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return name == "checkpoints" || name == kRunIdFile;
    });
    if (has_run) {
      return absl::AlreadyExistsError(absl::StrCat(out, " is a run directory: it will not be replaced"));
    }
    if (names.empty() || has_config) return absl::OkStatus();
  }
  return absl::AlreadyExistsError(absl::StrCat(
      out, " is not an exported model (no config.json or config.yaml): it will not be replaced"));
}
}  // namespace

namespace {
// Renames `partial` to `out`; what is there goes to `old`, if that is not empty, and comes back after an
// error.
absl::Status TakePlace(const std::string& partial, const std::string& out, const std::string& old,
                       FileSystem& files) {
  if (!old.empty()) {
    CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, old));
    CAROUSEL_RETURN_IF_ERROR(files.Rename(out, old));
  }
  const absl::Status renamed = files.Rename(partial, out);
  if (renamed.ok() || old.empty()) return renamed;
  const absl::Status back = files.Rename(old, out);
  if (back.ok()) return renamed;
  return absl::Status(renamed.code(), absl::StrCat(renamed.message(), "; what was there is now ", old, " (",
                                                   back.message(), ")"));
}
}  // namespace

absl::StatusOr<ModelDirectoryResult> WriteModelDirectory(const ModelDirectory& directory, FileSystem& files) {
  if (directory.max_shard_bytes <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_shard_bytes = ", directory.max_shard_bytes, "; it must be > 0"));
  }
  // "a/b/" -> "a/b": siblings of the name are needed.
  std::string out = std::filesystem::path(directory.out_dir).lexically_normal().string();
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  const std::string name = std::filesystem::path(out).filename().string();
  if (name.empty() || name == "." || name == "..") {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot create a directory named \"", directory.out_dir, "\""));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo parent, files.Stat(ParentPath(out)));
  if (parent.exists && !parent.is_directory) {
    return absl::FailedPreconditionError(absl::StrCat(ParentPath(out), " is a file; a directory is needed"));
  }
  CAROUSEL_RETURN_IF_ERROR(CheckOutsideCheckpoints(out, files));
  bool replaces = false;
  CAROUSEL_RETURN_IF_ERROR(CheckDestination(out, directory.overwrite, files, &replaces));

  const std::string partial = out + ".incomplete", old = out + ".replaced";
  CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, partial));
  const absl::StatusOr<ModelDirectoryResult> result = WriteInto(partial, directory, files);
  if (!result.ok()) {
    RemoveTree(files, partial).IgnoreError();  // the first error is the one to report
    const std::string why(result.status().message());
    if (!absl::StrContains(why, partial)) return result.status();
    return absl::Status(result.status().code(),
                        absl::StrCat(why, "; choose another place to write to, or make room there"));
  }
  const absl::Status renamed = TakePlace(partial, out, replaces ? old : "", files);
  if (!renamed.ok()) {
    RemoveTree(files, partial).IgnoreError();
    return renamed;
  }
  CAROUSEL_RETURN_IF_ERROR(files.SyncDirectory(ParentPath(out)));
  if (replaces) CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, old));
  return result;
}
}  // namespace carousel
