#include "launcher/train/drop_lines.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

absl::Status Failure(const char* what, const std::string& path) {
  const int error = errno;
  const std::string text =
      absl::StrCat("cannot ", what, " ", path, ": ", std::generic_category().message(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(text)
                                            : absl::UnavailableError(text);
}

// kept[from, end) to the same place of the file, which ends there then.
absl::Status WriteInPlace(const std::string& path, const std::string& kept, size_t from) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return Failure("open", path);
  absl::Status status;
  for (size_t at = from; at < kept.size() && status.ok();) {
    const ssize_t n = pwrite(fd, kept.data() + at, kept.size() - at, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      status = Failure("write", path);
    } else {
      at += static_cast<size_t>(n);
    }
  }
  // First what is kept, then the end: a crash between them repeats lines and loses none.
  if (status.ok() && from < kept.size() && fsync(fd) != 0) status = Failure("sync", path);
  if (status.ok() && ftruncate(fd, static_cast<off_t>(kept.size())) != 0) status = Failure("cut", path);
  if (status.ok() && fsync(fd) != 0) status = Failure("sync", path);
  close(fd);
  return status;
}
}  // namespace

absl::Status CutFile(const std::string& path, int64_t num_bytes) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return Failure("open", path);
  absl::Status status;
  if (ftruncate(fd, static_cast<off_t>(num_bytes)) != 0) status = Failure("cut", path);
  if (status.ok() && fsync(fd) != 0) status = Failure("sync", path);
  close(fd);
  return status;
}

absl::Status DropLines(const std::string& path, const std::string& old, const std::string& kept) {
  const size_t shorter = std::min(old.size(), kept.size());
  size_t from = static_cast<size_t>(
      std::mismatch(old.begin(), old.begin() + static_cast<std::ptrdiff_t>(shorter), kept.begin()).first -
      old.begin());
  PosixFileSystem files;
  absl::Status status;
  bool in_place = true;
  if (from < kept.size()) {
    status = ReplaceFile(files, path, kept);
    if (status.ok() || !absl::IsResourceExhausted(status)) return status;
    if (from < old.size()) {
      // Whole lines; they must not be written over one of themselves before that one has moved.
      from = from == 0 ? 0 : kept.rfind('\n', from - 1) + 1;
      const size_t first = old.find(kept.substr(from, kept.find('\n', from) + 1 - from), from);
      in_place = first != std::string::npos && kept.size() <= first;
    }
  }
  if (in_place) {
    // Line feeds first: what is written half must not become a line together with what was there.
    const std::string cleared = kept.substr(0, from) +
                                std::string(std::min(old.size(), kept.size()) - from, '\n') +
                                old.substr(shorter);
    status = from < shorter ? WriteInPlace(path, cleared, from) : absl::OkStatus();
    if (status.ok()) status = WriteInPlace(path, kept, from);
    if (!absl::IsResourceExhausted(status)) return status;
  }
  const absl::StatusOr<int64_t> available = files.FreeBytes(ParentPath(path));
  return absl::ResourceExhaustedError(absl::StrCat(
      status.message(), "; ", kept.size() + 4096, " bytes are needed in ", ParentPath(path),
      available.ok() ? absl::StrCat(" and ", *available, " are free") : "", ": remove something there"));
}
}  // namespace carousel
