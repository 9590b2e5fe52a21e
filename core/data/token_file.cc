#include "core/data/token_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/int_math.h"
#include "core/base/status_macros.h"
#include "core/data/crc32c.h"

namespace carousel {
namespace {
static_assert(std::endian::native == std::endian::little);

constexpr char kMagic[] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr int64_t kHeaderBytes = 34;
constexpr int64_t kMaxMetaBytes = 1 << 20;
constexpr char kRebuild[] = "; copy it again or make it again with `carousel data build` (or `data task`)";

// A little-endian number at an offset that was checked; the index is not aligned.
template <class T>
T Load(const unsigned char* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

// Calls function.operator()<T>() with the C++ type of the ids.
template <class Function>
auto DispatchTokens(TokenDType dtype, Function&& function) {
  switch (dtype) {
    case TokenDType::kU8:
      return function.template operator()<uint8_t>();
    case TokenDType::kI8:
      return function.template operator()<int8_t>();
    case TokenDType::kI16:
      return function.template operator()<int16_t>();
    case TokenDType::kI32:
      return function.template operator()<int32_t>();
    case TokenDType::kI64:
      return function.template operator()<int64_t>();
    case TokenDType::kU16:
      return function.template operator()<uint16_t>();
  }
  CheckFailed(__FILE__, __LINE__, "not a TokenDType");
}

// Position of the first id of [begin, end) outside [0, vocab_size), or end.
template <class T>
int64_t FindBadId(const T* ids, int64_t begin, int64_t end, int64_t vocab_size) {
  constexpr int64_t kBlock = 1 << 14;  // short enough to stay in the cache for the second look
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = std::min(first + kBlock, end);
    T smallest = 0, largest = 0;
    for (int64_t i = first; i < last; ++i) {
      smallest = std::min(smallest, ids[i]);
      largest = std::max(largest, ids[i]);
    }
    if (smallest >= 0 && static_cast<int64_t>(largest) < vocab_size) continue;
    for (int64_t i = first; i < last; ++i) {
      if (ids[i] < 0 || static_cast<int64_t>(ids[i]) >= vocab_size) return i;
    }
  }
  return end;
}
}  // namespace

const char* NameOf(TokenDType dtype) {
  switch (dtype) {
    case TokenDType::kU8:
      return "u8";
    case TokenDType::kI8:
      return "i8";
    case TokenDType::kI16:
      return "i16";
    case TokenDType::kI32:
      return "i32";
    case TokenDType::kI64:
      return "i64";
    case TokenDType::kU16:
      return "u16";
  }
  return "?";
}

int64_t BytesPerToken(TokenDType dtype) {
  return DispatchTokens(dtype, []<class T>() { return static_cast<int64_t>(sizeof(T)); });
}

TokenDType TokenDTypeFor(int64_t vocab_size) {
  return vocab_size < 65500 ? TokenDType::kU16 : TokenDType::kI32;
}

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& prefix) {
  std::unique_ptr<TokenFile> file(new TokenFile());
  file->prefix_ = prefix;
  for (const bool index : {true, false}) {
    const std::string path = absl::StrCat(prefix, index ? ".idx" : ".bin");
    absl::StatusOr<MappedFile> mapped = MappedFile::Open(path);
    if (absl::IsNotFound(mapped.status())) {
      const bool has_suffix = absl::EndsWith(prefix, ".bin") || absl::EndsWith(prefix, ".idx");
      return absl::NotFoundError(absl::StrCat(
          mapped.status().message(), "; ",
          has_suffix ? absl::StrCat("leave the suffix out: \"", prefix.substr(0, prefix.size() - 4), "\"")
                     : "a data path is the common PREFIX of PREFIX.bin and PREFIX.idx, made by "
                       "`carousel data build --input TEXT --output PREFIX`"));
    }
    CAROUSEL_RETURN_IF_ERROR(mapped.status());
    (index ? file->idx_ : file->bin_) = std::move(mapped).value();
  }
  CAROUSEL_RETURN_IF_ERROR(file->CheckIndex());
  CAROUSEL_RETURN_IF_ERROR(file->CheckMeta());
  CAROUSEL_RETURN_IF_ERROR(file->OpenLabels());
  return file;
}

absl::Status TokenFile::CheckIndex() {
  const std::string& path = idx_.path();
  const unsigned char* const p = idx_.data();
  // The header.
  if (idx_.size_bytes() < kHeaderBytes) {
    return absl::DataLossError(absl::StrCat(path, " holds ", idx_.size_bytes(),
                                            " bytes, fewer than the header's ", kHeaderBytes, kRebuild));
  }
  if (std::memcmp(p, kMagic, sizeof(kMagic)) != 0) {
    return absl::DataLossError(
        absl::StrCat(path, " is not an index of tokens: it does not begin with \"MMIDIDX\"", kRebuild));
  }
  const uint64_t version = Load<uint64_t>(p + 9);
  if (version != 1) {
    return absl::UnimplementedError(
        absl::StrCat(path, " has version ", version, "; this program reads version 1"));
  }
  const int code = p[17];
  if (code == 6 || code == 7) {
    return absl::UnimplementedError(
        absl::StrCat(path, " holds floating-point numbers (dtype code ", code, "), not token ids"));
  }
  if (code < 1 || code > 8) {
    return absl::DataLossError(
        absl::StrCat(path, " has dtype code ", code, "; valid are 1 to 5 and 8", kRebuild));
  }
  dtype_ = static_cast<TokenDType>(code);

  // The counts against the size of the file.
  const uint64_t sequences = Load<uint64_t>(p + 18), entries = Load<uint64_t>(p + 26);
  const uint64_t body = static_cast<uint64_t>(idx_.size_bytes() - kHeaderBytes);
  const bool fits = sequences <= body / 12 && entries <= (body - 12 * sequences) / 8;
  const uint64_t used = fits ? 12 * sequences + 8 * entries : 0;
  if (!fits || (body != used && body != used + sequences)) {
    return absl::DataLossError(absl::StrCat(
        path, " holds ", idx_.size_bytes(), " bytes, but its header announces ", sequences, " sequences and ",
        entries, " document entries",
        fits ? absl::StrCat(" (", kHeaderBytes + static_cast<int64_t>(used), " bytes)") : "", kRebuild));
  }
  num_sequences_ = static_cast<int64_t>(sequences);
  pointers_offset_ = kHeaderBytes + 4 * num_sequences_;
  documents_offset_ = pointers_offset_ + 8 * num_sequences_;

  // Sequences lie one after the other in .bin. Stopping at its end keeps the sum from overflowing.
  const int64_t token_bytes = BytesPerToken(dtype_);
  int64_t bytes = 0;
  for (int64_t s = 0; s < num_sequences_; ++s) {
    const int64_t length = Load<int32_t>(p + kHeaderBytes + 4 * s);
    const int64_t pointer = Load<int64_t>(p + pointers_offset_ + 8 * s);
    if (length < 0 || pointer != bytes) {
      return absl::DataLossError(absl::StrCat(path, ": sequence ", s, " has ", length, " tokens at byte ",
                                              pointer, "; expected at least 0 at byte ", bytes, kRebuild));
    }
    bytes += length * token_bytes;
    if (bytes > bin_.size_bytes()) break;
  }
  if (bytes != bin_.size_bytes()) {
    return absl::DataLossError(absl::StrCat(bin_.path(), " holds ", bin_.size_bytes(), " bytes, but ", path,
                                            " describes ", bytes > bin_.size_bytes() ? "at least " : "",
                                            bytes, ": it was cut off or belongs to another index", kRebuild));
  }
  num_tokens_ = bytes / token_bytes;

  // Documents: a rising list of sequences from 0 to all.
  num_documents_ = static_cast<int64_t>(entries) - 1;
  if (num_documents_ < 0) {
    return absl::DataLossError(absl::StrCat(path, " has no document entries; expected at least 1", kRebuild));
  }
  for (int64_t d = 0; d <= num_documents_; ++d) {
    const int64_t entry = DocumentEntry(d);
    const int64_t low = d == 0 ? 0 : DocumentEntry(d - 1);
    const int64_t high = d == 0 ? 0 : num_sequences_;
    if (entry < low || entry > high || (d == num_documents_ && entry != num_sequences_)) {
      return absl::DataLossError(absl::StrCat(path, ": document entry ", d, " is sequence ", entry, " of ",
                                              num_sequences_, "; entries must rise from 0 to all", kRebuild));
    }
  }
  return absl::OkStatus();
}

absl::Status TokenFile::CheckMeta() {
  const std::string path = prefix_ + ".meta";
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (absl::IsNotFound(file.status())) return absl::OkStatus();
  CAROUSEL_RETURN_IF_ERROR(file.status());
  if (file->size_bytes() > kMaxMetaBytes) {
    return absl::DataLossError(
        absl::StrCat(path, " holds ", file->size_bytes(), " bytes; expected at most ", kMaxMetaBytes));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const TokenMeta meta, ParseTokenMeta(std::string(file->text()), path));
  if (meta.num_tokens != num_tokens_ || meta.num_documents != num_documents_) {
    return absl::DataLossError(absl::StrCat(path, " describes ", meta.num_tokens, " tokens in ",
                                            meta.num_documents, " documents, but ", idx_.path(), " has ",
                                            num_tokens_, " in ", num_documents_, kRebuild));
  }
  if (meta.eod_id >= meta.vocab_size) {
    return absl::DataLossError(
        absl::StrCat(path, ": eod_id ", meta.eod_id, " is >= vocab_size ", meta.vocab_size, kRebuild));
  }
  const int64_t row_tokens = meta.task.has_value() ? meta.task->row_tokens : 0;
  if (row_tokens > 0 && (num_tokens_ < 1 || (num_tokens_ - 1) % row_tokens != 0)) {
    return absl::DataLossError(absl::StrCat(path, ": row_tokens is ", row_tokens, ", but ", num_tokens_,
                                            " tokens are not whole rows and one token more", kRebuild));
  }
  meta_ = meta;
  return absl::OkStatus();
}

absl::Status TokenFile::OpenLabels() {
  const bool named = task() != nullptr && task()->labels_crc32c.has_value();
  absl::StatusOr<LabelFile> labels =
      LabelFile::Open(prefix_, num_tokens_, task() != nullptr ? task()->row_tokens : 0);
  if (named && absl::IsNotFound(labels.status())) {
    return absl::DataLossError(
        absl::StrCat(labels.status().message(), ", but ", prefix_, ".meta names it", kRebuild));
  }
  if (!named && absl::IsNotFound(labels.status())) return absl::OkStatus();
  if (!named) {
    return absl::DataLossError(
        absl::StrCat(LabelFile::PathOf(prefix_), " exists, but ", prefix_,
                     ".meta does not name it: the files do not belong together; move or remove ",
                     LabelFile::PathOf(prefix_)));
  }
  CAROUSEL_RETURN_IF_ERROR(labels.status());
  labels_ = std::move(labels).value();
  return absl::OkStatus();
}

absl::Status TokenFile::CheckRows(int64_t T, const std::string& field) const {
  const int64_t row_tokens = task() != nullptr ? task()->row_tokens : 0;
  if (row_tokens == 0 || T % row_tokens == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(prefix_, " holds problems in rows of ", row_tokens, " tokens, so ", field, "=", T,
                   " would cut problems in two; use a multiple of ", row_tokens, ", for example ", field, "=",
                   CeilDiv(T, row_tokens) * row_tokens));
}

int64_t TokenFile::SequencePointer(int64_t sequence) const {
  CAROUSEL_CHECK(sequence >= 0 && sequence <= num_sequences_);
  if (sequence == num_sequences_) return bin_.size_bytes();
  return Load<int64_t>(idx_.data() + pointers_offset_ + 8 * sequence);
}

int64_t TokenFile::DocumentEntry(int64_t entry) const {
  CAROUSEL_CHECK(entry >= 0 && entry <= num_documents_);
  return Load<int64_t>(idx_.data() + documents_offset_ + 8 * entry);
}

int64_t TokenFile::DocumentBegin(int64_t d) const {
  return SequencePointer(DocumentEntry(d)) / BytesPerToken(dtype_);
}

int64_t TokenFile::DocumentLength(int64_t d) const {
  CAROUSEL_CHECK(d >= 0 && d < num_documents_);
  return DocumentBegin(d + 1) - DocumentBegin(d);
}

void TokenFile::Read(int64_t begin, std::span<int32_t> out) const {
  const int64_t count = static_cast<int64_t>(out.size());
  CAROUSEL_CHECK(begin >= 0 && begin <= num_tokens_ && count <= num_tokens_ - begin);
  DispatchTokens(dtype_, [&]<class T>() {
    const T* const ids = reinterpret_cast<const T*>(bin_.data()) + begin;
    for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = static_cast<int32_t>(ids[i]);
  });
}

absl::Status TokenFile::CheckTokenizer(const std::string& tokenizer_name) const {
  if (!meta_.has_value() || meta_->tokenizer == tokenizer_name) {
    if (meta_.has_value() || tokenizer_name != kTaskTokenizer) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(prefix_,
                     ".meta does not exist, so the file holds no task; make one with `carousel data "
                     "task`, or set data.tokenizer to what wrote the tokens"));
  }
  const std::string run = absl::StrCat("the run uses \"", tokenizer_name, "\"");
  if (meta_->tokenizer == kTaskTokenizer) {
    return absl::InvalidArgumentError(absl::StrCat(prefix_, " holds the task ", task()->name,
                                                   ", not text, and ", run, "; set data.tokenizer: TASK"));
  }
  if (tokenizer_name == kTaskTokenizer) {
    return absl::InvalidArgumentError(absl::StrCat(
        prefix_, " was written with the tokenizer \"", meta_->tokenizer, "\" and holds no task, ", run,
        "; name a file of `carousel data task`, or set data.tokenizer to the file's"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      prefix_, " was written with the tokenizer \"", meta_->tokenizer, "\", ", run,
      "; rebuild it with `carousel data build --tokenizer ", tokenizer_name, "` or set data.tokenizer"));
}

absl::Status TokenFile::CheckTokenIds(int64_t vocab_size, int num_threads) const {
  CAROUSEL_CHECK(vocab_size >= 1 && num_threads >= 1);
  const int64_t bad = DispatchTokens(dtype_, [&]<class T>() {
    const T* const ids = reinterpret_cast<const T*>(bin_.data());
    const int64_t part = CeilDiv(num_tokens_, num_threads);
    std::vector<int64_t> found(static_cast<size_t>(num_threads), num_tokens_);
    const auto scan = [&](int64_t k) {
      const int64_t begin = std::min(k * part, num_tokens_), end = std::min(begin + part, num_tokens_);
      const int64_t position = FindBadId(ids, begin, end, vocab_size);
      if (position < end) found[static_cast<size_t>(k)] = position;
    };
    std::vector<std::thread> threads;
    for (int64_t k = 1; k < num_threads; ++k) threads.emplace_back(scan, k);
    scan(0);
    for (std::thread& thread : threads) thread.join();
    return *std::min_element(found.begin(), found.end());
  });
  if (bad == num_tokens_) return absl::OkStatus();
  const int64_t id = DispatchTokens(
      dtype_, [&]<class T>() { return static_cast<int64_t>(reinterpret_cast<const T*>(bin_.data())[bad]); });
  return absl::OutOfRangeError(absl::StrCat(
      bin_.path(), ": token id ", id, " at position ", bad, " (byte ", bad * BytesPerToken(dtype_), ") ",
      id < 0 ? "is negative" : absl::StrCat("is >= the vocabulary of ", vocab_size),
      "; rebuild the file with the run's tokenizer, or raise model.vocab_size if the file is right"));
}

absl::Status TokenFile::VerifyChecksums() const {
  if (!meta_.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat(prefix_,
                     ".meta does not exist, so there is no checksum to compare with; only files "
                     "written by `carousel data build` have one"));
  }
  const auto compare = [&](const std::string& path, uint32_t actual, uint32_t expected) -> absl::Status {
    if (actual == expected) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(path, " has CRC-32C ", absl::Hex(actual, absl::kZeroPad8),
                                            ", but ", prefix_, ".meta says ",
                                            absl::Hex(expected, absl::kZeroPad8), ": damaged", kRebuild));
  };
  for (const bool index : {true, false}) {
    const MappedFile& file = index ? idx_ : bin_;
    CAROUSEL_RETURN_IF_ERROR(compare(file.path(), ExtendCrc32c(0, file.data(), file.size_bytes()),
                                     index ? meta_->idx_crc32c : meta_->bin_crc32c));
  }
  if (!labels_.has_value()) return absl::OkStatus();
  return compare(LabelFile::PathOf(prefix_), labels_->Checksum(), *task()->labels_crc32c);
}
}  // namespace carousel
