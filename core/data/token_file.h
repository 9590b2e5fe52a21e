// TokenFile: a corpus of token ids on disk, memory-mapped, in Megatron's format (NVIDIA/Megatron-LM,
// megatron/core/datasets/indexed_dataset.py). PREFIX.bin holds the ids of all sequences, one after the other;
// PREFIX.idx, all little-endian:
//   "MMIDIDX\0\0" | u64 version = 1 | u8 dtype code | u64 S sequences | u64 E document entries
//   i32 length[S] (tokens) | i64 pointer[S] (byte offset in .bin) | i64 document[E] (first sequence of
//   document d; the last entry is S) | optionally i8 mode[S]
// dtype codes: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16 (6 f64 and 7 f32 exist but hold no ids).
// PREFIX.meta, optional, is what that format lacks (token_meta.h). Files written by Megatron have none.
// PREFIX.labels says which tokens of a task are answers (label_file.h); PREFIX.meta names it.
//
// Every size, offset and count is checked before it is used; the errors name file, position, what was found
// and what was expected. The files must not shrink while they are open (the mapping would fault).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/data/label_file.h"
#include "core/data/mapped_file.h"
#include "core/data/token_meta.h"

namespace carousel {

enum class TokenDType : uint8_t { kU8 = 1, kI8 = 2, kI16 = 3, kI32 = 4, kI64 = 5, kU16 = 8 };
const char* NameOf(TokenDType dtype);  // "u16"
int64_t BytesPerToken(TokenDType dtype);
// The narrowest of u16 and i32 by Megatron's rule: u16 below 65500 ids.
TokenDType TokenDTypeFor(int64_t vocab_size);

// Immutable after Open: every method may be called from several threads.
class TokenFile {
 public:
  // Maps PREFIX.bin and PREFIX.idx and checks the whole index. NotFound, PermissionDenied, DataLoss (damaged
  // or mismatched files) or Unimplemented (a version or dtype we do not read).
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const std::string& prefix);

  const std::string& prefix() const { return prefix_; }
  TokenDType dtype() const { return dtype_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_sequences() const { return num_sequences_; }
  int64_t num_documents() const { return num_documents_; }
  const std::optional<TokenMeta>& meta() const { return meta_; }
  // The task that the file holds; null for text.
  const TaskMeta* task() const {
    return meta_.has_value() && meta_->task.has_value() ? &*meta_->task : nullptr;
  }
  // True if the ids are the symbols of a task and no text.
  bool HoldsTaskSymbols() const { return task() != nullptr && meta_->tokenizer == kTaskTokenizer; }
  // Which tokens are answers; null where every token is a target.
  const LabelFile* labels() const { return labels_.has_value() ? &*labels_ : nullptr; }

  // Tokens of document d, 0 <= d < num_documents().
  int64_t DocumentLength(int64_t d) const;
  // Position in the token stream where document d begins.
  int64_t DocumentBegin(int64_t d) const;

  // Copies tokens [begin, begin + out.size()) of the stream of all sequences in file order. REQUIRES: inside
  // [0, num_tokens()]. Ids are not checked here: see CheckTokenIds.
  void Read(int64_t begin, std::span<int32_t> out) const;

  // InvalidArgument if the sidecar says that another tokenizer wrote the file; OK if there is no sidecar.
  absl::Status CheckTokenizer(const std::string& tokenizer_name) const;
  // Scans every id on `num_threads` threads. The first one outside [0, vocab_size) is an OutOfRange error
  // that names file, position and id.
  absl::Status CheckTokenIds(int64_t vocab_size, int num_threads) const;
  // InvalidArgument unless windows of `T` inputs hold whole rows of the task: a problem must not be cut. OK
  // for a file without rows. `field` is the setting that T comes from, for the message.
  absl::Status CheckRows(int64_t T, const std::string& field) const;
  // Compares the CRC-32C of .bin, .idx and .labels with the sidecar's: DataLoss if they differ,
  // FailedPrecondition if there is no sidecar.
  absl::Status VerifyChecksums() const;

 private:
  TokenFile() = default;
  absl::Status CheckIndex();
  absl::Status CheckMeta();
  absl::Status OpenLabels();
  int64_t SequencePointer(int64_t sequence) const;  // bytes; REQUIRES: 0 <= sequence <= num_sequences_
  int64_t DocumentEntry(int64_t entry) const;

  std::string prefix_;
  MappedFile bin_, idx_;
  std::optional<TokenMeta> meta_;
  std::optional<LabelFile> labels_;
  TokenDType dtype_ = TokenDType::kU16;
  int64_t num_tokens_ = 0, num_sequences_ = 0, num_documents_ = 0;
  int64_t pointers_offset_ = 0, documents_offset_ = 0;  // bytes in .idx
};
}  // namespace carousel
