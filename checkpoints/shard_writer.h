// Writes one file of a checkpoint and takes its checksums on the way. Internal to this folder.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/manifest.pb.h"

namespace carousel {

class ShardWriter {
 public:
  // dir/name must not exist. `files` must outlive the writer.
  static absl::StatusOr<ShardWriter> Create(FileSystem& files, const std::string& dir,
                                            const std::string& name);

  // Small pieces are gathered; what is large goes to the file from where it is.
  absl::Status Append(const void* data, int64_t num_bytes);
  // Writes what was gathered. To be called where a part ends after which large pieces follow.
  absl::Status Flush();
  // Everything is on stable storage and the file is closed. Its name, size and checksums.
  absl::StatusOr<checkpoint::FileEntry> Finish();

 private:
  ShardWriter() = default;
  absl::Status Write(const char* data, int64_t num_bytes);
  void EndBlock();

  std::unique_ptr<WritableFile> file_;
  checkpoint::FileEntry entry_;
  std::vector<char> buffer_;  // what was appended and not written yet
  uint32_t block_crc_ = 0;
  int64_t block_bytes_ = 0;  // of the current block, written so far
};

// A whole small file.
absl::StatusOr<checkpoint::FileEntry> WriteChecksummed(FileSystem& files, const std::string& dir,
                                                       const std::string& name, const std::string& contents);
}  // namespace carousel
