// TokenMeta: the sidecar PREFIX.meta of a token file, one small JSON object: which tokenizer wrote the ids
// and checksums of the files beside it.
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace carousel {

struct TokenMeta {
  std::string tokenizer;   // Tokenizer::name()
  int64_t vocab_size = 0;  // Tokenizer::size()
  int32_t eod_id = 0;      // the last token of every document
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t text_bytes = 0;   // bytes of text behind the tokens (without ends of documents)
  uint32_t bin_crc32c = 0;  // of the whole file
  uint32_t idx_crc32c = 0;
};

std::string FormatTokenMeta(const TokenMeta& meta);
// DataLoss naming `path` and the field that is missing or not as it must be.
absl::StatusOr<TokenMeta> ParseTokenMeta(const std::string& text, const std::string& path);
}  // namespace carousel
