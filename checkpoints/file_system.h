// FileSystem: every access of this folder to files, so that tests can let any single call fail or be the last
// one before a crash. PosixFileSystem is the real one; it has no state.
//
// Errors are absl::Status with the path, what was attempted and the system's reason: NotFound (ENOENT),
// AlreadyExists, FailedPrecondition (a file where a directory is needed, or the reverse), PermissionDenied
// (EACCES, EROFS), ResourceExhausted (ENOSPC, EDQUOT: the disk is full; EMFILE: too many open files),
// DataLoss (a file that ends too early), Unavailable for everything else (EIO, ESTALE). Interrupted calls and
// calls that moved only some of the bytes go on where they were.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace carousel {

// A new file, written from its beginning to its end. Without Close() nothing is promised about its contents.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual absl::Status Append(const void* data, int64_t num_bytes) = 0;
  // Everything appended so far is on stable storage (fdatasync).
  virtual absl::Status Sync() = 0;
  virtual absl::Status Close() = 0;
};

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual int64_t size() const = 0;  // when it was opened
  // Exactly num_bytes from offset on; a file that ends before is an error (DataLoss).
  virtual absl::Status ReadAt(int64_t offset, void* data, int64_t num_bytes) const = 0;
};

// Held until destroyed, or until the process dies in any way.
class FileLock {
 public:
  virtual ~FileLock() = default;
  // One word. Processes of one machine that got a lock on the same path in the same domain exclude each
  // other; two containers that mounted the same directory each for itself may not.
  virtual std::string domain() const = 0;
};

struct FileInfo {
  bool exists = false;
  bool is_directory = false;
  int64_t size = 0;  // bytes; of a file
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // A file that does not exist yet.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) = 0;
  virtual absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(const std::string& path) = 0;
  // exists == false is not an error.
  virtual absl::StatusOr<FileInfo> Stat(const std::string& path) = 0;
  // Names in the directory, sorted, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) = 0;
  virtual absl::Status CreateDirectory(const std::string& path) = 0;  // its parent exists, it does not
  // Renames a file or a directory. An existing file at `to` is replaced; an existing directory is an error.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // A second name for a file. AlreadyExists if `to` exists: of several processes that try, one succeeds.
  // Unimplemented: this file system has only one name for a file.
  virtual absl::Status LinkFile(const std::string& from, const std::string& to) = 0;
  // Of a directory: FailedPrecondition.
  virtual absl::Status RemoveFile(const std::string& path) = 0;
  virtual absl::Status RemoveDirectory(const std::string& path) = 0;  // it is empty
  // The names in the directory are on stable storage.
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  // What anybody wrote to the file so far is on stable storage (fdatasync); of its name SyncDirectory says
  // so.
  virtual absl::Status SyncFile(const std::string& path) = 0;
  // Asks that what is read from the file next comes from where it is stored and not from this machine's
  // memory. What is not synced stays in memory, and so does everything where there is nothing to ask
  // (tmpfs): that is no error. Says nothing about caches of disks and servers.
  virtual absl::Status DropCached(const std::string& path) = 0;
  // Bytes that this user may still write on the file system of `path`.
  virtual absl::StatusOr<int64_t> FreeBytes(const std::string& path) = 0;
  // Takes an exclusive lock on the file (created if need be) and writes `owner` into it. If another process
  // holds it: FailedPrecondition whose message is the owner's text. Unimplemented: this file system has no
  // locks.
  virtual absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path,
                                                         const std::string& owner) = 0;
};

class PosixFileSystem final : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(const std::string& path) override;
  absl::StatusOr<FileInfo> Stat(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status LinkFile(const std::string& from, const std::string& to) override;
  absl::Status RemoveFile(const std::string& path) override;
  absl::Status RemoveDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status SyncFile(const std::string& path) override;
  absl::Status DropCached(const std::string& path) override;
  absl::StatusOr<int64_t> FreeBytes(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, const std::string& owner) override;
};

// ---- what is made of them

// "dir/name"; dir may end with '/'.
std::string JoinPath(const std::string& dir, const std::string& name);
// The directory that holds the path: "a/b" -> "a", "a" -> ".", "/a" -> "/".
std::string ParentPath(const std::string& path);
// Creates the directory and those above it that are missing; each new name is on stable storage.
absl::Status CreateDirectories(FileSystem& files, const std::string& path);
// Writes a file, synced; the name is durable after SyncDirectory of its parent.
absl::Status WriteFile(FileSystem& files, const std::string& path, const std::string& contents);
// The same under a temporary name first, so that readers see the old file or the new one; durable on return.
absl::Status ReplaceFile(FileSystem& files, const std::string& path, const std::string& contents);
// A whole file of at most max_bytes.
absl::StatusOr<std::string> ReadFile(FileSystem& files, const std::string& path, int64_t max_bytes);
// Removes a file or a directory with all it holds (links are not followed). Nothing there is not an error.
absl::Status RemoveTree(FileSystem& files, const std::string& path);
}  // namespace carousel
