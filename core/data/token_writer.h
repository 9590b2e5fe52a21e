// TokenFileWriter: writes PREFIX.bin, PREFIX.idx, PREFIX.meta and, for a task, PREFIX.labels as a stream.
// Nothing half-written ever stands under the final names: the files grow as PREFIX.bin.tmp.<pid> and so on,
// are synced, and are renamed by Commit, the index last. Destroying the writer without Commit removes them.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/data/token_file.h"
#include "core/data/token_meta.h"
#include "core/text/tokenizer.h"

namespace carousel {

class TokenFileWriter {
 public:
  struct Options {
    bool overwrite = false;  // replace existing files; otherwise they are an AlreadyExists error
    // Megatron counts a sequence's tokens in 31 bits; a longer document becomes several sequences.
    int64_t max_sequence_tokens = int64_t{1} << 30;
    // A file with labels (label_file.h): every token is then added by AppendLabelled.
    bool labels = false;
  };
  // What the ids are: the first fields of TokenMeta.
  struct Ids {
    std::string tokenizer;
    int64_t vocab_size = 0;
    int32_t eod_id = 0;
  };
  static absl::StatusOr<std::unique_ptr<TokenFileWriter>> Create(const std::string& prefix, const Ids& ids,
                                                                 const Options& options);
  static absl::StatusOr<std::unique_ptr<TokenFileWriter>> Create(const std::string& prefix,
                                                                 const Tokenizer& tokenizer,
                                                                 const Options& options);
  ~TokenFileWriter();
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  // Adds tokens to the open document, which they open if there is none. `text_bytes`: how much text they
  // stand for. REQUIRES: 0 <= id < tokenizer.size().
  absl::Status Append(std::span<const int32_t> ids, int64_t text_bytes);
  // The same with a label for each token. REQUIRES: equal lengths; Options::labels.
  absl::Status AppendLabelled(std::span<const int32_t> ids, std::span<const uint16_t> labels);
  // Adds EOD and closes the document. REQUIRES: a document is open.
  absl::Status EndDocument();
  // Closes the document without adding anything. REQUIRES: a document is open.
  void CloseDocument();
  // What the tokens are, beside text. The checksum of the labels is filled in by Commit.
  void SetTask(const TaskMeta& task) { meta_.task = task; }
  // Finishes, syncs and renames. REQUIRES: no document is open; a task was set if there are labels; called
  // once.
  absl::Status Commit();

  int64_t num_tokens() const { return meta_.num_tokens; }
  int64_t num_documents() const { return meta_.num_documents; }
  int64_t text_bytes() const { return meta_.text_bytes; }
  bool document_open() const { return document_open_; }

 private:
  TokenFileWriter() = default;
  absl::Status AppendIds(std::span<const int32_t> ids);
  absl::Status Flush();
  absl::Status WriteIndex();
  void CloseSequence();

  class OutputFile;
  std::vector<OutputFile*> Files() const;                      // in the order in which they are renamed
  std::unique_ptr<OutputFile> bin_, labels_, metadata_, idx_;  // labels_: null without
  std::string labels_path_;
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
