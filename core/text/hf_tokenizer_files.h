// The byte tokenizer as Hugging Face tokenizer files: a byte-level BPE with the 256 byte characters and no
// merges, two special tokens, and a post-processor that puts <|endoftext|> before every text, as training
// does.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace carousel {

// (file name, content) of tokenizer.json, tokenizer_config.json and special_tokens_map.json.
std::vector<std::pair<std::string, std::string>> ByteTokenizerFiles();

// OK if the text of a tokenizer.json describes the byte tokenizer: id b for byte b, no merges, 256 =
// beginning and end of a document. Otherwise FailedPrecondition naming what differs.
absl::Status CheckIsByteTokenizer(const std::string& tokenizer_json);

// The character that stands for a byte in byte-level BPE files (GPT-2's table), in UTF-8.
std::string ByteCharacter(int byte);
}  // namespace carousel
