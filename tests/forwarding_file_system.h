// A FileSystem that passes every call on to another one, for those that change a few calls.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/file_system.h"

namespace carousel {

class ForwardingFileSystem : public FileSystem {
 public:
  explicit ForwardingFileSystem(FileSystem& files) : files_(files) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override {
    return files_.CreateFile(path);
  }
  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(const std::string& path) override {
    return files_.OpenFile(path);
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override { return files_.Stat(path); }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    return files_.ListDirectory(path);
  }
  absl::Status CreateDirectory(const std::string& path) override { return files_.CreateDirectory(path); }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return files_.Rename(from, to);
  }
  absl::Status LinkFile(const std::string& from, const std::string& to) override {
    return files_.LinkFile(from, to);
  }
  absl::Status RemoveFile(const std::string& path) override { return files_.RemoveFile(path); }
  absl::Status RemoveDirectory(const std::string& path) override { return files_.RemoveDirectory(path); }
  absl::Status SyncDirectory(const std::string& path) override { return files_.SyncDirectory(path); }
  absl::Status SyncFile(const std::string& path) override { return files_.SyncFile(path); }
  absl::Status DropCached(const std::string& path) override { return files_.DropCached(path); }
  absl::StatusOr<int64_t> FreeBytes(const std::string& path) override { return files_.FreeBytes(path); }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, const std::string& owner) override {
    return files_.Lock(path, owner);
  }

 protected:
  FileSystem& files_;
};
}  // namespace carousel
