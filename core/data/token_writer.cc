#include "core/data/token_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"
#include "core/data/crc32c.h"
#include "core/data/label_file.h"

namespace carousel {
namespace {
constexpr size_t kBufferBytes = 1 << 20;

template <class T>
void Put(std::vector<unsigned char>* bytes, T value) {
  const size_t begin = bytes->size();
  bytes->resize(begin + sizeof(T));
  std::memcpy(bytes->data() + begin, &value, sizeof(T));
}

template <class T>
void PutIds(std::span<const int32_t> ids, int32_t limit, std::vector<unsigned char>* bytes) {
  const size_t begin = bytes->size();
  bytes->resize(begin + ids.size() * sizeof(T));
  unsigned char* out = bytes->data() + begin;
  bool valid = true;
  for (const int32_t id : ids) {
    valid &= id >= 0 && id < limit;
    const T narrow = static_cast<T>(id);
    std::memcpy(out, &narrow, sizeof(T));
    out += sizeof(T);
  }
  CAROUSEL_CHECK_MSG(valid, "a token id outside the tokenizer's range");
}

// Makes the renames of a folder durable. Some file systems cannot sync a folder; that is no error.
void SyncFolder(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const int fd = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}
}  // namespace

// A file under a temporary name, removed unless renamed.
class TokenFileWriter::OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path), temporary_(absl::StrCat(path, ".tmp.", getpid())) {}
  ~OutputFile() {
    if (fd_ >= 0) close(fd_);
    if (created_) unlink(temporary_.c_str());
  }
  absl::Status Create() {
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0) return ErrnoStatus(errno, "create", temporary_);
    created_ = true;
    return absl::OkStatus();
  }
  absl::Status Write(const void* data, size_t num_bytes) {
    crc_ = ExtendCrc32c(crc_, data, static_cast<int64_t>(num_bytes));
    const char* p = static_cast<const char*>(data);
    while (num_bytes > 0) {
      const ssize_t written = write(fd_, p, num_bytes);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return ErrnoStatus(errno, "write", path_);
      p += written;
      num_bytes -= static_cast<size_t>(written);
    }
    return absl::OkStatus();
  }
  absl::Status Close() {
    const int fd = fd_;
    fd_ = -1;
    if (fsync(fd) != 0) {
      const int error = errno;
      close(fd);
      return ErrnoStatus(error, "sync", path_);
    }
    if (close(fd) != 0) return ErrnoStatus(errno, "close", path_);
    return absl::OkStatus();
  }
  absl::Status Rename() {
    if (rename(temporary_.c_str(), path_.c_str()) != 0) return ErrnoStatus(errno, "rename to", path_);
    created_ = false;
    return absl::OkStatus();
  }
  const std::string& path() const { return path_; }
  uint32_t crc() const { return crc_; }

 private:
  std::string path_, temporary_;
  int fd_ = -1;
  bool created_ = false;
  uint32_t crc_ = 0;
};

TokenFileWriter::~TokenFileWriter() = default;

std::vector<TokenFileWriter::OutputFile*> TokenFileWriter::Files() const {
  std::vector<OutputFile*> files = {bin_.get()};
  if (labels_ != nullptr) files.push_back(labels_.get());
  files.push_back(metadata_.get());
  files.push_back(idx_.get());
  return files;
}

absl::StatusOr<std::unique_ptr<TokenFileWriter>> TokenFileWriter::Create(const std::string& prefix,
                                                                         const Tokenizer& tokenizer,
                                                                         const Options& options) {
  return Create(
      prefix,
      Ids{.tokenizer = tokenizer.name(), .vocab_size = tokenizer.size(), .eod_id = tokenizer.eod_id()},
      options);
}

absl::StatusOr<std::unique_ptr<TokenFileWriter>> TokenFileWriter::Create(const std::string& prefix,
                                                                         const Ids& ids,
                                                                         const Options& options) {
  CAROUSEL_CHECK(options.max_sequence_tokens >= 1 && options.max_sequence_tokens <= INT32_MAX);
  if (prefix.empty() || prefix.back() == '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("the output \"", prefix, "\" is no PREFIX of file names; use e.g. ", prefix, "tokens"));
  }
  std::unique_ptr<TokenFileWriter> writer(new TokenFileWriter());
  writer->options_ = options;
  writer->dtype_ = TokenDTypeFor(ids.vocab_size);
  writer->meta_.tokenizer = ids.tokenizer;
  writer->meta_.vocab_size = ids.vocab_size;
  writer->meta_.eod_id = ids.eod_id;
  writer->labels_path_ = LabelFile::PathOf(prefix);
  writer->bin_ = std::make_unique<OutputFile>(prefix + ".bin");
  if (options.labels) writer->labels_ = std::make_unique<OutputFile>(writer->labels_path_);
  writer->metadata_ = std::make_unique<OutputFile>(prefix + ".meta");
  writer->idx_ = std::make_unique<OutputFile>(prefix + ".idx");
  std::error_code error;
  // Labels too where none are written: Commit removes them.
  for (const char* end : {".bin", ".labels", ".meta", ".idx"}) {
    const std::string path = prefix + end;
    if (!options.overwrite && std::filesystem::exists(path, error)) {
      return absl::AlreadyExistsError(
          absl::StrCat(path, " exists already; choose another output, or give --force to replace it"));
    }
  }
  const std::filesystem::path folder = std::filesystem::path(prefix).parent_path();
  if (!folder.empty()) {
    std::filesystem::create_directories(folder, error);
    if (error) {
      const absl::Status status = ErrnoStatus(error.value(), "create the folder", folder.string());
      return absl::Status(status.code(), absl::StrCat(status.message(), "; choose another --output"));
    }
  }
  for (OutputFile* file : writer->Files()) CAROUSEL_RETURN_IF_ERROR(file->Create());
  return writer;
}

absl::Status TokenFileWriter::Append(std::span<const int32_t> ids, int64_t text_bytes) {
  CAROUSEL_CHECK(labels_ == nullptr);
  meta_.text_bytes += text_bytes;
  return AppendIds(ids);
}

absl::Status TokenFileWriter::AppendLabelled(std::span<const int32_t> ids, std::span<const uint16_t> labels) {
  CAROUSEL_CHECK(labels_ != nullptr && ids.size() == labels.size());
  CAROUSEL_RETURN_IF_ERROR(AppendIds(ids));
  return labels_->Write(labels.data(), labels.size_bytes());
}

absl::Status TokenFileWriter::AppendIds(std::span<const int32_t> ids) {
  if (!document_open_) {
    document_open_ = true;
    document_first_.push_back(static_cast<int64_t>(sequence_tokens_.size()));
    ++meta_.num_documents;
  }
  const int32_t limit = static_cast<int32_t>(meta_.vocab_size);
  while (!ids.empty()) {
    if (open_sequence_tokens_ == options_.max_sequence_tokens) CloseSequence();
    const size_t room = static_cast<size_t>(options_.max_sequence_tokens - open_sequence_tokens_);
    const std::span<const int32_t> part = ids.first(std::min({room, ids.size(), kBufferBytes / 4}));
    if (dtype_ == TokenDType::kU16) {
      PutIds<uint16_t>(part, limit, &buffer_);
    } else {
      PutIds<int32_t>(part, limit, &buffer_);
    }
    open_sequence_tokens_ += static_cast<int64_t>(part.size());
    meta_.num_tokens += static_cast<int64_t>(part.size());
    ids = ids.subspan(part.size());
    if (buffer_.size() >= kBufferBytes) CAROUSEL_RETURN_IF_ERROR(Flush());
  }
  return absl::OkStatus();
}

absl::Status TokenFileWriter::EndDocument() {
  CAROUSEL_CHECK(document_open_);
  CAROUSEL_RETURN_IF_ERROR(Append(std::span<const int32_t>(&meta_.eod_id, 1), 0));
  CloseDocument();
  return absl::OkStatus();
}

void TokenFileWriter::CloseDocument() {
  CAROUSEL_CHECK(document_open_);
  CloseSequence();
  document_open_ = false;
}

void TokenFileWriter::CloseSequence() {
  sequence_tokens_.push_back(static_cast<int32_t>(open_sequence_tokens_));
  open_sequence_tokens_ = 0;
}

absl::Status TokenFileWriter::Flush() {
  CAROUSEL_RETURN_IF_ERROR(bin_->Write(buffer_.data(), buffer_.size()));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status TokenFileWriter::WriteIndex() {
  const int64_t num_sequences = static_cast<int64_t>(sequence_tokens_.size());
  std::vector<unsigned char> bytes;
  const auto flush = [&](size_t at_least) -> absl::Status {
    if (bytes.size() < at_least) return absl::OkStatus();
    const absl::Status status = idx_->Write(bytes.data(), bytes.size());
    bytes.clear();
    return status;
  };
  for (const char c : {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'}) Put(&bytes, c);
  Put<uint64_t>(&bytes, 1);
  Put<uint8_t>(&bytes, static_cast<uint8_t>(dtype_));
  Put<uint64_t>(&bytes, static_cast<uint64_t>(num_sequences));
  Put<uint64_t>(&bytes, document_first_.size() + 1);
  for (const int32_t length : sequence_tokens_) {
    Put<int32_t>(&bytes, length);
    CAROUSEL_RETURN_IF_ERROR(flush(kBufferBytes));
  }
  int64_t pointer = 0;
  for (const int32_t length : sequence_tokens_) {
    Put<int64_t>(&bytes, pointer);
    pointer += length * BytesPerToken(dtype_);
    CAROUSEL_RETURN_IF_ERROR(flush(kBufferBytes));
  }
  for (const int64_t first : document_first_) {
    Put<int64_t>(&bytes, first);
    CAROUSEL_RETURN_IF_ERROR(flush(kBufferBytes));
  }
  Put<int64_t>(&bytes, num_sequences);
  return flush(0);
}

absl::Status TokenFileWriter::Commit() {
  CAROUSEL_CHECK(!document_open_ && (labels_ == nullptr || meta_.task.has_value()));
  CAROUSEL_RETURN_IF_ERROR(Flush());
  CAROUSEL_RETURN_IF_ERROR(WriteIndex());
  meta_.bin_crc32c = bin_->crc();
  meta_.idx_crc32c = idx_->crc();
  if (labels_ != nullptr) meta_.task->labels_crc32c = labels_->crc();
  const std::string text = FormatTokenMeta(meta_);
  CAROUSEL_RETURN_IF_ERROR(metadata_->Write(text.data(), text.size()));
  for (OutputFile* file : Files()) CAROUSEL_RETURN_IF_ERROR(file->Close());
  // An old index goes first and the new one comes last: whatever happens between, no index describes other
  // tokens than its own. Old labels that nothing replaces go as well.
  std::vector<std::string> old = {idx_->path()};
  if (labels_ == nullptr) old.push_back(labels_path_);
  for (const std::string& path : old) {
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "replace", path);
  }
  for (OutputFile* file : Files()) CAROUSEL_RETURN_IF_ERROR(file->Rename());
  SyncFolder(idx_->path());
  return absl::OkStatus();
}
}  // namespace carousel
