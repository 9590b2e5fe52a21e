#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

// "writing /a/b: No space left on device", with the code the callers decide by.
absl::Status ErrnoStatus(int error, const char* what, const std::string& path) {
  std::string message = absl::StrCat(what, " ", path, ": ", strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EEXIST:
    case ENOTEMPTY:
      return absl::AlreadyExistsError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(message);
    case ENOTDIR:
    case EISDIR:
      return absl::FailedPreconditionError(message);
    default:
      return absl::UnavailableError(message);
  }
}

// An open file descriptor, closed once.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// A call that a signal interrupts is made again.
template <class Call>
auto Retrying(Call&& call) {
  while (true) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

int OpenRetrying(const std::string& path, int flags, mode_t mode = 0) {
  return Retrying([&] { return open(path.c_str(), flags | O_CLOEXEC, mode); });
}

// Linux moves at most 0x7ffff000 bytes per call; 1 GiB keeps the calls aligned.
constexpr int64_t kMaxTransferBytes = int64_t{1} << 30;

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  absl::Status Append(const void* data, int64_t num_bytes) override {
    const char* p = static_cast<const char*>(data);
    while (num_bytes > 0) {
      const size_t wanted = static_cast<size_t>(std::min(num_bytes, kMaxTransferBytes));
      const ssize_t n = Retrying([&] { return write(fd_.get(), p, wanted); });
      if (n < 0) return ErrnoStatus(errno, "writing", path_);
      if (n == 0) return ErrnoStatus(EIO, "writing", path_);
      p += n;
      num_bytes -= n;
      written_ += n;
    }
    // The disk begins while the rest is made, so that Sync has less to wait for. A hint: Sync tells of
    // errors.
    if (written_ - begun_ >= kWriteOutBytes) {
      static_cast<void>(sync_file_range(fd_.get(), begun_, written_ - begun_, SYNC_FILE_RANGE_WRITE));
      begun_ = written_;
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override {
    if (Retrying([&] { return fdatasync(fd_.get()); }) != 0) return ErrnoStatus(errno, "syncing", path_);
    return absl::OkStatus();
  }
  absl::Status Close() override {
    // Network file systems report late write errors here.
    if (close(fd_.Release()) != 0 && errno != EINTR) return ErrnoStatus(errno, "closing", path_);
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kWriteOutBytes = int64_t{8} << 20;

  std::string path_;
  Descriptor fd_;
  int64_t written_ = 0, begun_ = 0;  // bytes from the file's beginning
};

class PosixReadableFile final : public ReadableFile {
 public:
  PosixReadableFile(std::string path, int fd, int64_t size) : path_(std::move(path)), fd_(fd), size_(size) {}

  int64_t size() const override { return size_; }
  absl::Status ReadAt(int64_t offset, void* data, int64_t num_bytes) const override {
    char* p = static_cast<char*>(data);
    while (num_bytes > 0) {
      const size_t wanted = static_cast<size_t>(std::min(num_bytes, kMaxTransferBytes));
      const ssize_t n = Retrying([&] { return pread(fd_.get(), p, wanted, offset); });
      if (n < 0) return ErrnoStatus(errno, "reading", path_);
      if (n == 0) {
        return absl::DataLossError(
            absl::StrCat(path_, " ends at byte ", offset, ", ", num_bytes, " bytes too early"));
      }
      p += n;
      offset += n;
      num_bytes -= n;
    }
    return absl::OkStatus();
  }

 private:
  std::string path_;
  Descriptor fd_;
  int64_t size_;
};

class PosixFileLock final : public FileLock {
 public:
  PosixFileLock(int fd, std::string domain) : fd_(fd), domain_(std::move(domain)) {}
  std::string domain() const override { return domain_; }

 private:
  const Descriptor fd_;  // closing it releases the lock
  const std::string domain_;
};
}  // namespace

absl::StatusOr<std::unique_ptr<WritableFile>> PosixFileSystem::CreateFile(const std::string& path) {
  const int fd = OpenRetrying(path, O_WRONLY | O_CREAT | O_EXCL, 0666);
  if (fd < 0) return ErrnoStatus(errno, "creating", path);
  return std::unique_ptr<WritableFile>(std::make_unique<PosixWritableFile>(path, fd));
}

absl::StatusOr<std::unique_ptr<ReadableFile>> PosixFileSystem::OpenFile(const std::string& path) {
  // Not to wait for somebody who writes to a pipe.
  Descriptor fd(OpenRetrying(path, O_RDONLY | O_NONBLOCK));
  if (fd.get() < 0) return ErrnoStatus(errno, "opening", path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "inspecting", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("opening ", path, ": it is not a regular file; move away what stands there"));
  }
  return std::unique_ptr<ReadableFile>(
      std::make_unique<PosixReadableFile>(path, fd.Release(), int64_t{info.st_size}));
}

absl::StatusOr<FileInfo> PosixFileSystem::Stat(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return FileInfo{};
    return ErrnoStatus(errno, "inspecting", path);
  }
  return FileInfo{.exists = true, .is_directory = S_ISDIR(info.st_mode), .size = int64_t{info.st_size}};
}

absl::StatusOr<std::vector<std::string>> PosixFileSystem::ListDirectory(const std::string& path) {
  DIR* const dir = opendir(path.c_str());
  if (dir == nullptr) return ErrnoStatus(errno, "listing", path);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* const entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  const int error = errno;
  closedir(dir);
  if (error != 0) return ErrnoStatus(error, "listing", path);
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status PosixFileSystem::CreateDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0777) != 0) return ErrnoStatus(errno, "creating directory", path);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::Rename(const std::string& from, const std::string& to) {
  // rename() would replace an empty directory.
  struct stat info;
  if (stat(to.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return ErrnoStatus(EEXIST, "renaming to", to);
  }
  if (rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("renaming ", from, " to").c_str(), to);
  }
  return absl::OkStatus();
}

absl::Status PosixFileSystem::LinkFile(const std::string& from, const std::string& to) {
  if (link(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  if (error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EMLINK) {
    return absl::UnimplementedError(absl::StrCat("linking ", from, " to ", to, ": ", strerror(error)));
  }
  // Over a network the answer may be lost and the link made: then the file has two names.
  struct stat info;
  if (error != EEXIST && stat(from.c_str(), &info) == 0 && info.st_nlink == 2) {
    struct stat made;
    if (stat(to.c_str(), &made) == 0 && made.st_ino == info.st_ino) return absl::OkStatus();
  }
  return ErrnoStatus(error, absl::StrCat("linking ", from, " to").c_str(), to);
}

absl::Status PosixFileSystem::RemoveFile(const std::string& path) {
  if (unlink(path.c_str()) != 0) return ErrnoStatus(errno, "removing", path);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::RemoveDirectory(const std::string& path) {
  if (rmdir(path.c_str()) != 0) return ErrnoStatus(errno, "removing directory", path);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::SyncDirectory(const std::string& path) {
  const Descriptor fd(OpenRetrying(path, O_RDONLY | O_DIRECTORY));
  if (fd.get() < 0) return ErrnoStatus(errno, "opening directory", path);
  // Some network file systems cannot sync a directory: their renames are durable at once.
  if (Retrying([&] { return fsync(fd.get()); }) != 0 && errno != EINVAL)
    return ErrnoStatus(errno, "syncing directory", path);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::SyncFile(const std::string& path) {
  const Descriptor fd(OpenRetrying(path, O_RDONLY));
  if (fd.get() < 0) return ErrnoStatus(errno, "opening", path);
  if (Retrying([&] { return fdatasync(fd.get()); }) != 0) return ErrnoStatus(errno, "syncing", path);
  return absl::OkStatus();
}

absl::Status PosixFileSystem::DropCached(const std::string& path) {
  const Descriptor fd(OpenRetrying(path, O_RDONLY));
  if (fd.get() < 0) return ErrnoStatus(errno, "opening", path);
  // A hint: where it means nothing, nothing is lost.
  static_cast<void>(posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED));
  return absl::OkStatus();
}

absl::StatusOr<int64_t> PosixFileSystem::FreeBytes(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, "asking for the free space of", path);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

absl::StatusOr<std::unique_ptr<FileLock>> PosixFileSystem::Lock(const std::string& path,
                                                                const std::string& owner) {
  Descriptor fd(OpenRetrying(path, O_RDWR | O_CREAT, 0666));
  if (fd.get() < 0) return ErrnoStatus(errno, "opening", path);
  if (Retrying([&] { return flock(fd.get(), LOCK_EX | LOCK_NB); }) != 0) {
    if (errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP || errno == EINVAL) {
      return absl::UnimplementedError(absl::StrCat("locking ", path, ": ", strerror(errno)));
    }
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "locking", path);
    char text[1024] = {};
    const ssize_t n = pread(fd.get(), text, sizeof(text) - 1, 0);
    return absl::FailedPreconditionError(n > 0 ? std::string(text, static_cast<size_t>(n))
                                               : std::string("an unknown process"));
  }
  // Who holds it is for messages only: the lock is what counts.
  if (ftruncate(fd.get(), 0) != 0 ||
      pwrite(fd.get(), owner.data(), owner.size(), 0) != static_cast<ssize_t>(owner.size())) {
    return ErrnoStatus(errno, "writing", path);
  }
  // A kernel keeps the locks of a file with the mounted file system, which has one number.
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "inspecting", path);
  return std::unique_ptr<FileLock>(std::make_unique<PosixFileLock>(
      fd.Release(), absl::StrCat(major(info.st_dev), ":", minor(info.st_dev))));
}
}  // namespace carousel
