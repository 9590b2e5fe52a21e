#include "checkpoints/checkpoint_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/damage.h"
#include "checkpoints/manifest.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/shard_reader.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

// Names in run_dir/checkpoints; none if there is no such directory.
absl::StatusOr<std::vector<std::string>> ListStore(FileSystem& files, const std::string& run_dir) {
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(StoreDir(run_dir)));
  if (!info.is_directory) return std::vector<std::string>();
  return files.ListDirectory(StoreDir(run_dir));
}

// Names in a directory that are those of checkpoints.
std::vector<std::string> ListStepNames(FileSystem& files, const std::string& dir) {
  const absl::StatusOr<std::vector<std::string>> names = files.ListDirectory(dir);
  std::vector<std::string> steps;
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (StepOfName(name) >= 0) steps.push_back(name);
  }
  return steps;
}

// Files in a checkpoint that the manifest lists by name.
absl::StatusOr<std::string> ReadListedFile(FileSystem& files, const std::string& dir,
                                           const checkpoint::Manifest& manifest, const std::string& name) {
  for (int f = 0; f < manifest.files_size(); ++f) {
    if (manifest.files(f).name() != name) continue;
    if (manifest.files(f).size() > kMaxManifestBytes) {
      return absl::DataLossError(absl::StrCat(JoinPath(dir, name), " is too large"));
    }
    std::string contents;
    ShardReader reader(files, dir, manifest);
    CAROUSEL_RETURN_IF_ERROR(reader.Read(f, 0, manifest.files(f).size(), [&](const char* data, int64_t n) {
      contents.append(data, static_cast<size_t>(n));
    }));
    return contents;
  }
  return absl::DataLossError(absl::StrCat(dir, " is damaged: its manifest does not list ", name));
}
}  // namespace

std::string StoreDir(const std::string& run_dir) { return JoinPath(run_dir, "checkpoints"); }
std::string NameAtEnd(const std::string& path) {
  const size_t end = path.find_last_not_of('/') + 1;
  const size_t slash = path.rfind('/', end == 0 ? 0 : end - 1);
  return slash == std::string::npos ? path.substr(0, end) : path.substr(slash + 1, end - slash - 1);
}
std::string DirectoryAbove(const std::string& path) {
  const std::string name = NameAtEnd(path);
  return name == "." || name == ".." ? JoinPath(path, "..") : ParentPath(path);
}
std::string StepName(int64_t step) { return absl::StrFormat("step-%09d", step); }

int64_t StepOfName(const std::string& name) {
  int64_t step;
  if (!StartsWith(name, "step-") || !absl::SimpleAtoi(name.substr(5), &step) || step < 0) return -1;
  return StepName(step) == name ? step : -1;
}

absl::StatusOr<OpenedCheckpoint> OpenAndCheck(FileSystem& files, const std::string& dir) {
  OpenedCheckpoint opened;
  CAROUSEL_ASSIGN_OR_RETURN(opened.manifest_payload, ReadManifestPayload(files, dir));
  CAROUSEL_ASSIGN_OR_RETURN(opened.manifest,
                            ParseManifest(opened.manifest_payload, JoinPath(dir, kManifestFile)));
  CAROUSEL_RETURN_IF_ERROR(CheckBelongs(dir, opened.manifest.run_id(), files));
  // All missing files in one message.
  std::string missing;
  for (int file = 0; file < opened.manifest.files_size(); ++file) {
    const checkpoint::FileEntry& entry = opened.manifest.files(file);
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(JoinPath(dir, entry.name())));
    if (info.exists && !info.is_directory && info.size == entry.size()) continue;
    absl::StrAppend(&missing, missing.empty() ? "" : "; ", entry.name(),
                    !info.exists ? " is missing"
                    : info.is_directory
                        ? " is a directory"
                        : absl::StrCat(" has ", info.size, " bytes instead of ", entry.size()),
                    HeldBy(opened.manifest, file));
  }
  if (!missing.empty()) return absl::DataLossError(absl::StrCat(dir, " is damaged: ", missing));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string framed,
                            ReadListedFile(files, dir, opened.manifest, kStateFile));
  const std::string path = JoinPath(dir, kStateFile);
  CAROUSEL_ASSIGN_OR_RETURN(opened.state_payload, Unframe(kStateMagic, framed, path));
  CAROUSEL_ASSIGN_OR_RETURN(opened.state, ParseState(opened.state_payload, path));
  if (opened.state.step != opened.manifest.step()) {
    return absl::DataLossError(absl::StrCat(path, " is of step ", opened.state.step,
                                            " and the manifest of step ", opened.manifest.step()));
  }
  return opened;
}

CheckpointInfo InfoOf(const OpenedCheckpoint& opened, const std::string& dir) {
  const checkpoint::Manifest& manifest = opened.manifest;
  CheckpointInfo info{
      .dir = dir,
      .run_id = manifest.run_id(),
      .writer = manifest.writer(),
      .state = opened.state,
      .unix_nanos = manifest.unix_nanos(),
      .attempt = manifest.attempt(),
      .mesh = MeshOf(manifest),
      .config_digest = manifest.config_digest(),
      .world_size = manifest.world_size(),
      .num_files = manifest.files_size() + 1,
      .num_bytes = static_cast<int64_t>(Frame(kManifestMagic, "").size() + opened.manifest_payload.size()),
      .num_tensors = manifest.tensors_size()};
  for (const checkpoint::FileEntry& entry : manifest.files()) info.num_bytes += entry.size();
  for (const checkpoint::TensorEntry& tensor : manifest.tensors()) {
    if (tensor.kind() == checkpoint::WEIGHT) info.num_parameters += NumElems(ShapeOf(tensor));
  }
  return info;
}

absl::StatusOr<CheckpointInfo> OpenCheckpoint(const std::string& dir, FileSystem* files) {
  PosixFileSystem posix;
  CAROUSEL_ASSIGN_OR_RETURN(const OpenedCheckpoint opened,
                            OpenAndCheck(files != nullptr ? *files : posix, dir));
  return InfoOf(opened, dir);
}

absl::StatusOr<std::string> ReadCheckpointConfig(const std::string& dir, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const OpenedCheckpoint opened, OpenAndCheck(fs, dir));
  return ReadListedFile(fs, dir, opened.manifest, kConfigFile);
}

absl::StatusOr<std::vector<std::string>> ListStepDirectories(FileSystem& files, const std::string& run_dir) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListStore(files, run_dir));
  std::vector<std::pair<int64_t, std::string>> found;
  for (const std::string& name : names) {
    const int64_t step = StepOfName(name);
    const std::string dir = JoinPath(StoreDir(run_dir), name);
    if (step < 0) continue;
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(dir));
    if (info.is_directory) found.emplace_back(step, dir);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> dirs;
  for (auto& [step, dir] : found) dirs.push_back(std::move(dir));
  return dirs;
}

absl::StatusOr<std::vector<std::string>> ListCheckpoints(const std::string& run_dir, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> dirs, ListStepDirectories(fs, run_dir));
  std::vector<std::string> committed;
  for (const std::string& dir : dirs) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo manifest, fs.Stat(JoinPath(dir, kManifestFile)));
    if (manifest.exists) committed.push_back(dir);
  }
  return committed;
}

std::string RunDirOf(const std::string& path, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  const auto is_directory = [&](const std::string& dir) {
    const absl::StatusOr<FileInfo> info = fs.Stat(dir);
    return info.ok() && info->is_directory;
  };
  if (path.empty() || is_directory(StoreDir(path))) return path;
  const std::string name = NameAtEnd(path);
  if (name == "checkpoints") return DirectoryAbove(path);
  // "." and ".." do not say how they are called.
  if (name != "." && name != "..") return path;
  const std::string above = JoinPath(path, "..");
  return is_directory(StoreDir(above)) && !ListStepNames(fs, path).empty() ? above : path;
}

absl::StatusOr<std::string> FindCheckpoint(const std::string& path, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo manifest, fs.Stat(JoinPath(path, kManifestFile)));
  if (manifest.exists) return path;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> dirs, ListCheckpoints(RunDirOf(path, &fs), &fs));
  if (!dirs.empty()) return dirs.back();
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, fs.Stat(path));
  if (info.exists && !info.is_directory) {
    return absl::NotFoundError(
        absl::StrCat(path, " is a file; a checkpoint is a directory, as is that of a run"));
  }
  if (!info.exists)
    return absl::NotFoundError(absl::StrCat(path, " does not exist; give a run directory or one checkpoint"));
  return absl::NotFoundError(absl::StrCat(path, " is neither a checkpoint (it has no ", kManifestFile,
                                          ") nor a run directory with one (there is no ", StoreDir(path),
                                          "/step-*/", kManifestFile, ")"));
}

absl::Status MoveAside(FileSystem& files, const std::string& run_dir, const std::string& name,
                       const std::string& prefix, std::string* to) {
  const std::string store = StoreDir(run_dir);
  std::string target = JoinPath(store, prefix + name);
  for (int i = 2;; ++i) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(target));
    if (!info.exists) break;
    target = JoinPath(store, absl::StrCat(prefix, name, "-", i));
  }
  CAROUSEL_RETURN_IF_ERROR(files.Rename(JoinPath(store, name), target));
  if (to != nullptr) *to = target;
  return files.SyncDirectory(store);
}

absl::Status WriteLatest(FileSystem& files, const std::string& run_dir, const std::string& name) {
  const uint32_t crc = UpdateCrc32c(0, name.data(), static_cast<int64_t>(name.size()));
  return ReplaceFile(files, JoinPath(StoreDir(run_dir), kLatestFile),
                     absl::StrFormat("%s %08x\n", name, crc));
}

absl::Status SweepLeftovers(const std::string& run_dir, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListStore(fs, run_dir));
  for (const std::string& name : names) {
    if (!StartsWith(name, kTemporaryPrefix) && !StartsWith(name, kTrashPrefix) &&
        !StartsWith(name, kProbePrefix)) {
      continue;
    }
    CAROUSEL_RETURN_IF_ERROR(RemoveTree(fs, JoinPath(StoreDir(run_dir), name)));
  }
  return absl::OkStatus();
}

}  // namespace carousel
