// Reads the files of a checkpoint block by block: no byte is handed out before the checksum of its block was
// found to be the manifest's. Internal to this folder.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/manifest.pb.h"

namespace carousel {

class ShardReader {
 public:
  // References must outlive the reader.
  ShardReader(FileSystem& files, std::string dir, const checkpoint::Manifest& manifest)
      : files_(&files), dir_(std::move(dir)), manifest_(&manifest) {}

  // The contents of a whole block: kBlockBytes, fewer for the last one of a file. Valid until the next call.
  // Errors as of Read.
  absl::StatusOr<const char*> Block(int64_t file, int64_t block);

  // Calls use(data, n) for consecutive pieces of bytes [offset, offset + num_bytes) of file number `file`.
  // Keeps the last block, so that reads by rising offset read every block once. DataLoss: the file is
  // missing, has another size, or the block is damaged.
  absl::Status Read(int64_t file, int64_t offset, int64_t num_bytes,
                    const std::function<void(const char* data, int64_t n)>& use);

 private:
  absl::Status Open(int64_t file);
  absl::Status Load(int64_t file, int64_t block);

  FileSystem* files_;
  std::string dir_;
  const checkpoint::Manifest* manifest_;
  std::unique_ptr<ReadableFile> open_;
  int64_t open_file_ = -1;
  std::vector<char> block_;  // contents of block number block_number_ of open_file_
  int64_t block_number_ = -1;
};
}  // namespace carousel
