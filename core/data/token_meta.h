// TokenMeta: the sidecar PREFIX.meta of a token file, one small JSON object: which tokenizer wrote the ids
// and checksums of the files beside it. A file that `carousel data task` made also says which task it holds.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace carousel {

// TokenMeta::tokenizer of files whose ids are the symbols of a task and no text.
inline constexpr char kTaskTokenizer[] = "task";

// A task with a known answer (core/data/task.h), or text of known entropy.
struct TaskMeta {
  std::string name;          // "parity"
  std::string parameters;    // the options it was made with, for people
  int64_t num_problems = 0;  // 0: not made of problems
  // > 0: the stream is rows of so many tokens and one token more; a problem lies within its row.
  int64_t row_tokens = 0;
  // What the most frequent answer alone would score; 0: not known.
  double chance = 0;
  // Of the exact source that wrote the tokens, the least mean loss that any model can have; 0: not known.
  double entropy_nats_per_token = 0;
  // Of PREFIX.labels (label_file.h). None: there is no such file, every token is a target.
  std::optional<uint32_t> labels_crc32c = {};
  friend bool operator==(const TaskMeta&, const TaskMeta&) = default;
};

struct TokenMeta {
  std::string tokenizer;   // Tokenizer::name(), or kTaskTokenizer
  int64_t vocab_size = 0;  // Tokenizer::size()
  int32_t eod_id = 0;      // the last token of every document of text; the first of every problem of a task
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t text_bytes = 0;   // bytes of text behind the tokens (without ends of documents)
  uint32_t bin_crc32c = 0;  // of the whole file
  uint32_t idx_crc32c = 0;
  std::optional<TaskMeta> task = {};
};

std::string FormatTokenMeta(const TokenMeta& meta);
// DataLoss naming `path` and the field that is missing or not as it must be.
absl::StatusOr<TokenMeta> ParseTokenMeta(const std::string& text, const std::string& path);
}  // namespace carousel
