#include "checkpoints/shard_writer.h"

#include <algorithm>

#include "checkpoints/crc32c.h"
#include "checkpoints/manifest.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
// The size of writes. Divides a block; fits into a core's cache, where the checksums find it.
constexpr int64_t kBufferBytes = int64_t{1} << 20;
static_assert(kBlockBytes % kBufferBytes == 0);
}  // namespace

absl::StatusOr<ShardWriter> ShardWriter::Create(FileSystem& files, const std::string& dir,
                                                const std::string& name) {
  ShardWriter writer;
  CAROUSEL_ASSIGN_OR_RETURN(writer.file_, files.CreateFile(JoinPath(dir, name)));
  writer.entry_.set_name(name);
  return writer;
}

absl::Status ShardWriter::Append(const void* data, int64_t num_bytes) {
  const char* p = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const int64_t n = std::min(num_bytes, kBufferBytes - static_cast<int64_t>(buffer_.size()));
    buffer_.insert(buffer_.end(), p, p + n);
    p += n;
    num_bytes -= n;
    if (static_cast<int64_t>(buffer_.size()) == kBufferBytes) CAROUSEL_RETURN_IF_ERROR(Flush());
  }
  return absl::OkStatus();
}

absl::Status ShardWriter::Flush() {
  const int64_t n = static_cast<int64_t>(buffer_.size());
  CAROUSEL_RETURN_IF_ERROR(file_->Append(buffer_.data(), n));
  entry_.set_crc32c(UpdateCrc32c(entry_.crc32c(), buffer_.data(), n));
  block_crc_ = UpdateCrc32c(block_crc_, buffer_.data(), n);
  block_bytes_ += n;
  entry_.set_size(entry_.size() + n);
  buffer_.clear();
  if (block_bytes_ == kBlockBytes) {
    entry_.add_block_crc32c(block_crc_);
    block_crc_ = 0;
    block_bytes_ = 0;
  }
  return absl::OkStatus();
}

absl::StatusOr<checkpoint::FileEntry> ShardWriter::Finish() {
  if (!buffer_.empty()) CAROUSEL_RETURN_IF_ERROR(Flush());
  if (block_bytes_ > 0) entry_.add_block_crc32c(block_crc_);
  CAROUSEL_RETURN_IF_ERROR(file_->Sync());
  CAROUSEL_RETURN_IF_ERROR(file_->Close());
  return entry_;
}

absl::StatusOr<checkpoint::FileEntry> WriteChecksummed(FileSystem& files, const std::string& dir,
                                                       const std::string& name, const std::string& contents) {
  CAROUSEL_ASSIGN_OR_RETURN(ShardWriter writer, ShardWriter::Create(files, dir, name));
  CAROUSEL_RETURN_IF_ERROR(writer.Append(contents.data(), static_cast<int64_t>(contents.size())));
  return writer.Finish();
}
}  // namespace carousel
