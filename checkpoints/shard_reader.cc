#include "checkpoints/shard_reader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/damage.h"
#include "checkpoints/manifest.h"
#include "core/base/status_macros.h"

namespace carousel {

absl::Status ShardReader::Open(int64_t file) {
  if (open_file_ == file) return absl::OkStatus();
  open_file_ = -1;
  block_number_ = -1;
  const checkpoint::FileEntry& entry = manifest_->files(static_cast<int>(file));
  const std::string path = JoinPath(dir_, entry.name());
  absl::StatusOr<std::unique_ptr<ReadableFile>> opened = files_->OpenFile(path);
  if (absl::IsNotFound(opened.status())) {
    return absl::DataLossError(absl::StrCat(path, " is missing", HeldBy(*manifest_, file)));
  }
  if (absl::IsFailedPrecondition(opened.status())) {
    return absl::DataLossError(absl::StrCat(path, " is no file", HeldBy(*manifest_, file)));
  }
  CAROUSEL_RETURN_IF_ERROR(opened.status());
  if ((*opened)->size() != entry.size()) {
    return absl::DataLossError(absl::StrCat(path, " has ", (*opened)->size(), " bytes and should have ",
                                            entry.size(), HeldBy(*manifest_, file)));
  }
  open_ = std::move(*opened);
  open_file_ = file;
  return absl::OkStatus();
}

absl::Status ShardReader::Load(int64_t file, int64_t block) {
  CAROUSEL_RETURN_IF_ERROR(Open(file));
  if (block_number_ == block) return absl::OkStatus();
  block_number_ = -1;
  const checkpoint::FileEntry& entry = manifest_->files(static_cast<int>(file));
  const int64_t begin = block * kBlockBytes, n = std::min(kBlockBytes, entry.size() - begin);
  block_.resize(static_cast<size_t>(n));
  const absl::Status read = open_->ReadAt(begin, block_.data(), n);
  if (!read.ok()) {
    return absl::Status(
        read.code(),
        absl::StrCat(read.message(), "; block ", block, " holds ",
                     NameTensors(*manifest_, TensorsInBytes(*manifest_, file, begin, begin + n))));
  }
  const uint32_t actual = UpdateCrc32c(0, block_.data(), n);
  const uint32_t expected = entry.block_crc32c(static_cast<int>(block));
  if (actual != expected) {
    return DamagedBlock(
        dir_, *manifest_, file, block,
        absl::StrFormat("its checksum is %08x and should be %08x", actual, expected),
        ChangedTensors(*files_, dir_, *manifest_, TensorsInBytes(*manifest_, file, begin, begin + n)));
  }
  block_number_ = block;
  return absl::OkStatus();
}

absl::StatusOr<const char*> ShardReader::Block(int64_t file, int64_t block) {
  CAROUSEL_RETURN_IF_ERROR(Load(file, block));
  return block_.data();
}

absl::Status ShardReader::Read(int64_t file, int64_t offset, int64_t num_bytes,
                               const std::function<void(const char* data, int64_t n)>& use) {
  while (num_bytes > 0) {
    const int64_t block = offset / kBlockBytes;
    CAROUSEL_RETURN_IF_ERROR(Load(file, block));
    const int64_t within = offset - block * kBlockBytes;
    const int64_t n = std::min(num_bytes, static_cast<int64_t>(block_.size()) - within);
    use(block_.data() + within, n);
    offset += n;
    num_bytes -= n;
  }
  return absl::OkStatus();
}
}  // namespace carousel
