#include "checkpoints/file_system.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace carousel {

std::string JoinPath(const std::string& dir, const std::string& name) {
  if (dir.empty()) return name;
  return dir.back() == '/' ? dir + name : dir + "/" + name;
}

std::string ParentPath(const std::string& path) {
  size_t end = path.size();
  while (end > 1 && path[end - 1] == '/') --end;
  const size_t slash = path.rfind('/', end == 0 ? 0 : end - 1);
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status CreateDirectories(FileSystem& files, const std::string& path) {
  // The missing ones, the deepest first.
  std::vector<std::string> missing;
  for (std::string p = path;; p = ParentPath(p)) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(p));
    if (info.exists && !info.is_directory) {
      return absl::FailedPreconditionError(absl::StrCat(p, " is a file; a directory is needed"));
    }
    if (info.exists) break;
    missing.push_back(p);
    if (ParentPath(p) == p) break;
  }
  for (auto p = missing.rbegin(); p != missing.rend(); ++p) {
    const absl::Status created = files.CreateDirectory(*p);
    // Another process may have been faster.
    if (!created.ok() && !absl::IsAlreadyExists(created)) return created;
    CAROUSEL_RETURN_IF_ERROR(files.SyncDirectory(ParentPath(*p)));
  }
  return absl::OkStatus();
}

absl::Status WriteFile(FileSystem& files, const std::string& path, const std::string& contents) {
  CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, files.CreateFile(path));
  CAROUSEL_RETURN_IF_ERROR(file->Append(contents.data(), static_cast<int64_t>(contents.size())));
  CAROUSEL_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

absl::Status ReplaceFile(FileSystem& files, const std::string& path, const std::string& contents) {
  const std::string temporary = path + ".tmp";
  CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, temporary));  // of an attempt that died
  absl::Status status = WriteFile(files, temporary, contents);
  if (status.ok()) status = files.Rename(temporary, path);
  if (!status.ok()) {
    (void)RemoveTree(files, temporary);  // the first error is the one to report
    return status;
  }
  return files.SyncDirectory(ParentPath(path));
}

absl::StatusOr<std::string> ReadFile(FileSystem& files, const std::string& path, int64_t max_bytes) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file, files.OpenFile(path));
  if (file->size() > max_bytes) {
    return absl::DataLossError(
        absl::StrCat(path, " has ", file->size(), " bytes; more than ", max_bytes, " cannot be right"));
  }
  std::string contents(static_cast<size_t>(file->size()), '\0');
  CAROUSEL_RETURN_IF_ERROR(file->ReadAt(0, contents.data(), file->size()));
  return contents;
}

absl::Status RemoveTree(FileSystem& files, const std::string& path) {
  const absl::Status removed = files.RemoveFile(path);
  if (removed.ok() || absl::IsNotFound(removed)) return absl::OkStatus();
  if (!absl::IsFailedPrecondition(removed)) return removed;
  // It is a directory.
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.ListDirectory(path));
  for (const std::string& name : names) CAROUSEL_RETURN_IF_ERROR(RemoveTree(files, JoinPath(path, name)));
  return files.RemoveDirectory(path);
}
}  // namespace carousel
