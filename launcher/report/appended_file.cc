#include "launcher/report/appended_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"

namespace carousel {
namespace {

std::string SystemError(int error) { return std::generic_category().message(error); }

absl::Status Failed(int error, const std::string& what) {
  const std::string message = absl::StrCat(what, ": ", SystemError(error));
  return error == ENOSPC || error == EDQUOT || error == EFBIG ? absl::ResourceExhaustedError(message)
                                                              : absl::UnavailableError(message);
}

// 0, or the error.
int WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : ENOSPC;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}
}  // namespace

absl::StatusOr<std::unique_ptr<AppendedFile>> AppendedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return Failed(errno, absl::StrCat("cannot open ", path, " for appending"));
  return std::unique_ptr<AppendedFile>(new AppendedFile(path, fd));
}

AppendedFile::~AppendedFile() { close(fd_); }

absl::Status AppendedFile::Append(std::string_view record) {
  struct stat before {};
  if (fstat(fd_, &before) != 0) return Failed(errno, absl::StrCat("cannot append to ", path_));
  const int error = WriteAll(fd_, record);
  if (error == 0) return absl::OkStatus();
  const bool taken_back = ftruncate(fd_, before.st_size) == 0;
  return Failed(
      error, absl::StrCat("cannot append to ", path_, taken_back ? "" : " (its last record is incomplete)"));
}

void RemoveOldTemporaries(const std::string& path) {
  const std::filesystem::path file(path);
  const std::string prefix = file.filename().string() + ".tmp.";
  const std::filesystem::path dir = file.has_parent_path() ? file.parent_path() : ".";
  const auto now = std::filesystem::file_time_type::clock::now();
  std::error_code error;
  std::vector<std::filesystem::path> old;
  for (std::filesystem::directory_iterator entry(dir, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(prefix) || name.size() == prefix.size()) continue;
    if (name.find_first_not_of("0123456789", prefix.size()) != std::string::npos) continue;
    std::error_code unknown;
    const auto written = entry->last_write_time(unknown);
    if (!unknown && now - written > std::chrono::minutes(10)) old.push_back(entry->path());
  }
  for (const std::filesystem::path& temporary : old) std::filesystem::remove(temporary, error);
}

absl::Status ReplaceFileQuickly(const std::string& path, std::string_view text) {
  // Two processes may write the same file: each its own temporary.
  const std::string temporary = absl::StrCat(path, ".tmp.", getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return Failed(errno, absl::StrCat("cannot write ", path));
  int error = WriteAll(fd, text);
  if (close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return absl::OkStatus();
  unlink(temporary.c_str());
  return Failed(error, absl::StrCat("cannot write ", path));
}
}  // namespace carousel
