// AppendedFile: a file that grows by whole records, each visible to readers at once.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace carousel {

class AppendedFile {
 public:
  // Opens the file for appending, or makes it (mode 0644).
  static absl::StatusOr<std::unique_ptr<AppendedFile>> Open(const std::string& path);
  ~AppendedFile();
  AppendedFile(const AppendedFile&) = delete;
  AppendedFile& operator=(const AppendedFile&) = delete;

  // Appends all of it. If that fails (a full disk), the part that was written is taken back, so that the file
  // stays whole and later records can be read.
  absl::Status Append(std::string_view record);
  const std::string& path() const { return path_; }

 private:
  AppendedFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  const int fd_;
};

// Puts `text` in the place of the file in one step (a temporary file beside it is renamed), for readers that
// come at any time. Not synced: after a power failure it may be the old text or empty.
absl::Status ReplaceFileQuickly(const std::string& path, std::string_view text);
// Removes temporary files that processes which were killed while they did that have left, ten minutes ago or
// more.
void RemoveOldTemporaries(const std::string& path);
}  // namespace carousel
