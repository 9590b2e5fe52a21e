// From text files to token files: what `carousel data build` does.
//
// Documents: a .txt file is one document, or several between occurrences of a separator; each non-empty line
// of a .jsonl file is an object whose text field is one document. Empty documents are skipped. Each document
// is followed by the tokenizer's EOD. Bytes are taken as they are: no normalisation, no newline translation.
//
// Validation: of the inputs laid end to end, the last part of the bytes. A plain text file is cut exactly
// there (moved forward past a UTF-8 character); with a separator or JSON lines the cut is the first document
// that begins at or after that byte.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/text/tokenizer.h"

namespace carousel {

enum class TextFormat { kByExtension, kPlain, kJsonLines };

struct BuildSpec {
  std::vector<std::string> inputs = {};
  std::string output = {};                       // PREFIX; with validation PREFIX_train and PREFIX_valid
  TextFormat format = TextFormat::kByExtension;  // .txt, .text, .md: plain; .jsonl, .ndjson: JSON lines
  std::string text_field = "text";               // JSON lines
  std::string document_separator = {};           // plain text; empty: one document per file
  double validation_fraction = 0;                // in [0, 1)
  bool overwrite = false;
  // Called now and then with the bytes read so far and in total.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress = {};
};

struct BuiltFile {
  std::string prefix;
  int64_t num_tokens = 0, num_documents = 0, text_bytes = 0;
};
struct BuildResult {
  std::vector<BuiltFile> files;  // one, or train and validation
  int64_t input_bytes = 0;
  int64_t num_empty_documents = 0;  // skipped
};

// On error nothing is left under the output's names that was not there before.
absl::StatusOr<BuildResult> BuildTokenFiles(const BuildSpec& spec, const Tokenizer& tokenizer);
}  // namespace carousel
