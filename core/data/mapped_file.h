// MappedFile: a whole file, read-only, in memory by mmap.
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace carousel {

// Owns the mapping. Movable. An empty file has size 0 and no mapping.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // NotFound, PermissionDenied or Unavailable, naming the path; a directory or device is InvalidArgument.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const unsigned char* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  absl::string_view text() const {
    return {reinterpret_cast<const char*>(data_), static_cast<size_t>(size_bytes_)};
  }

 private:
  void Unmap();
  std::string path_;
  const unsigned char* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

// "NAME: reason of errno", with the absl code that fits (NotFound, PermissionDenied, ResourceExhausted for a
// full disk, Unavailable). `action` completes "cannot ACTION PATH".
absl::Status ErrnoStatus(int error, const std::string& action, const std::string& path);
}  // namespace carousel
