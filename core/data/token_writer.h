// TokenFileWriter: writes PREFIX.bin, PREFIX.idx and PREFIX.meta as a stream. Nothing half-written ever
// stands under the final names: the files grow as PREFIX.bin.tmp.<pid> and so on, are synced, and are renamed
// by Commit, the index last. Destroying the writer without Commit removes them.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/data/token_file.h"
#include "core/text/tokenizer.h"

namespace carousel {

class TokenFileWriter {
 public:
  struct Options {
    bool overwrite = false;  // replace existing files; otherwise they are an AlreadyExists error
    // Megatron counts a sequence's tokens in 31 bits; a longer document becomes several sequences.
    int64_t max_sequence_tokens = int64_t{1} << 30;
  };
  static absl::StatusOr<std::unique_ptr<TokenFileWriter>> Create(const std::string& prefix,
                                                                 const Tokenizer& tokenizer,
                                                                 const Options& options);
  ~TokenFileWriter();
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  // Adds tokens to the open document, which they open if there is none. `text_bytes`: how much text they
  // stand for. REQUIRES: 0 <= id < tokenizer.size().
  absl::Status Append(std::span<const int32_t> ids, int64_t text_bytes);
  // Adds EOD and closes the document. REQUIRES: a document is open.
  absl::Status EndDocument();
  // Finishes, syncs and renames. REQUIRES: no document is open; called once.
  absl::Status Commit();

  int64_t num_tokens() const { return meta_.num_tokens; }
  int64_t num_documents() const { return meta_.num_documents; }
  int64_t text_bytes() const { return meta_.text_bytes; }
  bool document_open() const { return document_open_; }

 private:
  TokenFileWriter() = default;
  absl::Status Flush();
  absl::Status WriteIndex();
  void CloseSequence();

  class OutputFile;
  std::unique_ptr<OutputFile> bin_, idx_, metadata_;
  Options options_;
  TokenDType dtype_ = TokenDType::kU16;
  TokenMeta meta_;
  std::vector<unsigned char> buffer_;     // tokens in the file's dtype, not yet written
  std::vector<int32_t> sequence_tokens_;  // lengths of the closed sequences
  std::vector<int64_t> document_first_;   // first sequence of each document
  int64_t open_sequence_tokens_ = 0;
  bool document_open_ = false;
};
}  // namespace carousel
