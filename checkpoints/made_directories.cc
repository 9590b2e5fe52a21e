#include "checkpoints/made_directories.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint_store.h"
#include "core/base/status_macros.h"

namespace carousel {

absl::StatusOr<MadeDirectories> MadeDirectories::Note(const std::string& run_dir, FileSystem& files) {
  MadeDirectories made;
  made.files_ = &files;
  made.run_dir_ = run_dir;
  for (std::string path = StoreDir(run_dir);; path = ParentPath(path)) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
    if (info.exists) return made;
    made.missing_.push_back(path);
    if (ParentPath(path) == path) return made;
  }
}

void MadeDirectories::RemoveAgain() const {
  const std::string lock = absl::StrCat(kLeaseFile, kLeaseLockSuffix);
  for (const std::string& path : missing_) {
    const absl::StatusOr<std::vector<std::string>> names = files_->ListDirectory(path);
    if (absl::IsNotFound(names.status())) continue;  // it came to nothing
    if (!names.ok()) return;
    for (const std::string& name : *names) {
      if (path != StoreDir(run_dir_) || name != lock) return;
    }
    if (!names->empty() && !files_->RemoveFile(JoinPath(path, lock)).ok()) return;
    if (!files_->RemoveDirectory(path).ok()) return;
  }
}
}  // namespace carousel
