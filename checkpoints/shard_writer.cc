#include "checkpoints/shard_writer.h"

#include <algorithm>

#include "checkpoints/crc32c.h"
#include "checkpoints/manifest.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
// The size of writes. Fits into a core's cache, where the checksums find it.
constexpr int64_t kBufferBytes = int64_t{1} << 20;
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
    const int64_t room = kBufferBytes - static_cast<int64_t>(buffer_.size());
    const int64_t n = std::min(num_bytes, room);
    if (n == kBufferBytes) {
      CAROUSEL_RETURN_IF_ERROR(Write(p, n));
    } else {
      buffer_.insert(buffer_.end(), p, p + n);
      if (n == room) CAROUSEL_RETURN_IF_ERROR(Flush());
    }
    p += n;
    num_bytes -= n;
  }
  return absl::OkStatus();
}

absl::Status ShardWriter::Flush() {
  if (buffer_.empty()) return absl::OkStatus();
  CAROUSEL_RETURN_IF_ERROR(Write(buffer_.data(), static_cast<int64_t>(buffer_.size())));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status ShardWriter::Write(const char* data, int64_t num_bytes) {
  // The checksums first: a write may hang so long that nobody keeps `data` for it any more.
  const char* const begin = data;
  const int64_t whole = num_bytes;
  while (num_bytes > 0) {
    const int64_t n = std::min(num_bytes, kBlockBytes - block_bytes_);
    block_crc_ = UpdateCrc32c(block_crc_, data, n);
    block_bytes_ += n;
    data += n;
    num_bytes -= n;
    if (block_bytes_ == kBlockBytes) EndBlock();
  }
  entry_.set_size(entry_.size() + whole);
  return file_->Append(begin, whole);
}

void ShardWriter::EndBlock() {
  entry_.add_block_crc32c(block_crc_);
  entry_.set_crc32c(CombineCrc32c(entry_.crc32c(), block_crc_, block_bytes_));
  block_crc_ = 0;
  block_bytes_ = 0;
}

absl::StatusOr<checkpoint::FileEntry> ShardWriter::Finish() {
  CAROUSEL_RETURN_IF_ERROR(Flush());
  if (block_bytes_ > 0) EndBlock();
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
