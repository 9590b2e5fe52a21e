#include "core/data/builder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/data/json_lines.h"
#include "core/data/mapped_file.h"
#include "core/data/token_writer.h"

namespace carousel {
namespace {
constexpr size_t kPieceBytes = 1 << 18;  // small enough that text and ids stay in the cache

bool IsUtf8Continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

struct Input {
  std::string path;
  TextFormat format = TextFormat::kPlain;
};

absl::StatusOr<TextFormat> FormatOf(const std::string& path, TextFormat wanted) {
  if (wanted != TextFormat::kByExtension) return wanted;
  for (const char* suffix : {".txt", ".text", ".md"}) {
    if (absl::EndsWithIgnoreCase(path, suffix)) return TextFormat::kPlain;
  }
  for (const char* suffix : {".jsonl", ".ndjson"}) {
    if (absl::EndsWithIgnoreCase(path, suffix)) return TextFormat::kJsonLines;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the name of ", path,
                   " does not tell its format (.txt, .text, .md: plain; .jsonl, .ndjson: "
                   "JSON lines); say --format txt or --format jsonl. A compressed file must be unpacked: "
                   "zcat FILE.gz | carousel data build --input /dev/stdin --format jsonl ..."));
}

// A file read in pieces; may be a pipe.
class InputFile {
 public:
  ~InputFile() {
    if (fd_ >= 0) close(fd_);
  }
  absl::Status Open(const std::string& path) {
    path_ = path;
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) return ErrnoStatus(errno, "open", path);
    buffer_.resize(kPieceBytes);
    return absl::OkStatus();
  }
  // The next bytes, valid until the next call; empty at the end.
  absl::StatusOr<absl::string_view> Read() {
    ssize_t n;
    do {
      n = read(fd_, buffer_.data(), buffer_.size());
    } while (n < 0 && errno == EINTR);
    if (n < 0) return ErrnoStatus(errno, "read", path_);
    return absl::string_view(buffer_.data(), static_cast<size_t>(n));
  }

 private:
  std::string path_, buffer_;
  int fd_ = -1;
};

// Text of documents in, tokens in one of two files out.
class DocumentSink {
 public:
  DocumentSink(const Tokenizer& tokenizer, TokenFileWriter* train, TokenFileWriter* validation)
      : tokenizer_(tokenizer), train_(train), validation_(validation) {}

  void Begin(bool validation) {
    writer_ = validation ? validation_ : train_;
    bytes_ = 0;
  }
  absl::Status Text(absl::string_view text) {
    if (text.empty()) return absl::OkStatus();
    bytes_ += static_cast<int64_t>(text.size());
    if (tokenizer_.EncodesPieces()) return Encode(text);
    whole_.append(text.data(), text.size());
    return absl::OkStatus();
  }
  // Returns whether there was any text; a document without is not written.
  absl::StatusOr<bool> End() {
    if (bytes_ == 0) return false;
    if (!whole_.empty()) CAROUSEL_RETURN_IF_ERROR(Encode(whole_));
    whole_.clear();
    CAROUSEL_RETURN_IF_ERROR(writer_->EndDocument());
    return true;
  }

 private:
  absl::Status Encode(absl::string_view text) {
    ids_.clear();
    tokenizer_.Encode(text, &ids_);
    return writer_->Append(ids_, static_cast<int64_t>(text.size()));
  }
  const Tokenizer& tokenizer_;
  TokenFileWriter *const train_, *const validation_, *writer_ = nullptr;
  int64_t bytes_ = 0;  // of the open document
  std::string whole_;  // its text, for a tokenizer that cannot encode pieces
  std::vector<int32_t> ids_;
};

// One run over all inputs.
class Builder {
 public:
  Builder(const BuildSpec& spec, DocumentSink* sink, int64_t total_bytes, int64_t cut)
      : spec_(spec), sink_(*sink), total_bytes_(total_bytes), cut_(cut) {}

  absl::Status Add(const Input& input) {
    InputFile file;
    CAROUSEL_RETURN_IF_ERROR(file.Open(input.path));
    if (input.format == TextFormat::kJsonLines) return AddLines(input.path, file);
    if (spec_.document_separator.empty()) return AddWhole(file);
    return AddSeparated(file);
  }
  int64_t num_empty_documents() const { return num_empty_documents_; }
  int64_t done_bytes() const { return done_bytes_; }

 private:
  // Reads the next piece and counts it; *begin is the position of its first byte in all inputs.
  absl::StatusOr<absl::string_view> Next(InputFile& file, int64_t* begin) {
    *begin = done_bytes_;
    CAROUSEL_ASSIGN_OR_RETURN(const absl::string_view piece, file.Read());
    done_bytes_ += static_cast<int64_t>(piece.size());
    if (spec_.progress) spec_.progress(done_bytes_, total_bytes_);
    return piece;
  }
  absl::Status EndDocument() {
    CAROUSEL_ASSIGN_OR_RETURN(const bool written, sink_.End());
    num_empty_documents_ += !written;
    return absl::OkStatus();
  }

  // A file is a document; where the cut falls inside, two.
  absl::Status AddWhole(InputFile& file) {
    int64_t begin = 0;
    bool validation = done_bytes_ >= cut_;
    int moved = 0;  // bytes of a character that stood at the cut
    sink_.Begin(validation);
    while (true) {
      CAROUSEL_ASSIGN_OR_RETURN(absl::string_view piece, Next(file, &begin));
      if (piece.empty()) return EndDocument();
      if (!validation && done_bytes_ > cut_) {
        size_t split = static_cast<size_t>(std::max<int64_t>(cut_ - begin, 0));
        for (; split < piece.size() && moved < 3 && IsUtf8Continuation(piece[split]); ++split) ++moved;
        CAROUSEL_RETURN_IF_ERROR(sink_.Text(piece.substr(0, split)));
        piece.remove_prefix(split);
        if (!piece.empty()) {
          CAROUSEL_RETURN_IF_ERROR(EndDocument());
          validation = true;
          sink_.Begin(validation);
        }
      }
      CAROUSEL_RETURN_IF_ERROR(sink_.Text(piece));
    }
  }

  absl::Status AddSeparated(InputFile& file) {
    const std::string& separator = spec_.document_separator;
    std::string pending;                  // read and not yet given out
    int64_t pending_begin = done_bytes_;  // its position in all inputs
    int64_t begin = 0;
    sink_.Begin(pending_begin >= cut_);
    while (true) {
      CAROUSEL_ASSIGN_OR_RETURN(const absl::string_view piece, Next(file, &begin));
      if (piece.empty()) break;
      pending.append(piece.data(), piece.size());
      size_t consumed = 0;
      for (size_t at; (at = pending.find(separator, consumed)) != std::string::npos;) {
        CAROUSEL_RETURN_IF_ERROR(sink_.Text(absl::string_view(pending).substr(consumed, at - consumed)));
        CAROUSEL_RETURN_IF_ERROR(EndDocument());
        consumed = at + separator.size();
        sink_.Begin(pending_begin + static_cast<int64_t>(consumed) >= cut_);
      }
      // The end may be the beginning of a separator.
      const size_t keep = std::min(separator.size() - 1, pending.size() - consumed);
      const size_t give = pending.size() - consumed - keep;
      CAROUSEL_RETURN_IF_ERROR(sink_.Text(absl::string_view(pending).substr(consumed, give)));
      pending.erase(0, consumed + give);
      pending_begin += static_cast<int64_t>(consumed + give);
    }
    CAROUSEL_RETURN_IF_ERROR(sink_.Text(pending));
    // Nothing after the last separator is no document.
    CAROUSEL_RETURN_IF_ERROR(sink_.End().status());
    return absl::OkStatus();
  }

  absl::Status AddLines(const std::string& path, InputFile& file) {
    std::string pending;  // the beginning of a line whose end has not been read
    int64_t line_begin = done_bytes_, line_number = 0, begin = 0;
    const auto add_line = [&](absl::string_view line) -> absl::Status {
      const bool validation = line_begin >= cut_;
      line_begin += static_cast<int64_t>(line.size()) + 1;
      ++line_number;
      if (line.find_first_not_of(" \t\r") == absl::string_view::npos) return absl::OkStatus();
      const absl::Status status = ReadJsonTextField(line, spec_.text_field, &text_);
      if (!status.ok()) {
        return absl::InvalidArgumentError(absl::StrCat(path, ":", line_number, ": ", status.message()));
      }
      sink_.Begin(validation);
      CAROUSEL_RETURN_IF_ERROR(sink_.Text(text_));
      return EndDocument();
    };
    while (true) {
      CAROUSEL_ASSIGN_OR_RETURN(absl::string_view piece, Next(file, &begin));
      if (piece.empty()) break;
      for (size_t end; (end = piece.find('\n')) != absl::string_view::npos; piece.remove_prefix(end + 1)) {
        if (pending.empty()) {
          CAROUSEL_RETURN_IF_ERROR(add_line(piece.substr(0, end)));
        } else {
          pending.append(piece.data(), end);
          CAROUSEL_RETURN_IF_ERROR(add_line(pending));
          pending.clear();
        }
      }
      pending.append(piece.data(), piece.size());
    }
    return pending.empty() ? absl::OkStatus() : add_line(pending);
  }

  const BuildSpec& spec_;
  DocumentSink& sink_;
  const int64_t total_bytes_, cut_;  // the first byte of validation, in all inputs
  int64_t done_bytes_ = 0, num_empty_documents_ = 0;
  std::string text_;
};

// Formats of all inputs and *total_bytes, or -1 if one is a pipe. Everything that is wrong at once.
absl::StatusOr<std::vector<Input>> CheckInputs(const BuildSpec& spec, int64_t* total_bytes) {
  std::vector<std::string> problems;
  std::vector<Input> inputs;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  *total_bytes = 0;
  for (const std::string& path : spec.inputs) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) {
      const absl::Status status = ErrnoStatus(errno, "open", path);
      problems.push_back(absl::StrCat(status.message(), "; give --input the path of a text file"));
      code = status.code();
      continue;
    }
    if (S_ISDIR(info.st_mode)) {
      problems.push_back(absl::StrCat(path, " is a folder; name its files, e.g. ", path, "/*.txt"));
      continue;
    }
    absl::StatusOr<TextFormat> format = FormatOf(path, spec.format);
    if (!format.ok()) {
      problems.emplace_back(format.status().message());
      continue;
    }
    if (*format == TextFormat::kJsonLines && !spec.document_separator.empty()) {
      problems.push_back(absl::StrCat(path,
                                      " is JSON lines, where each line is a document; a document separator "
                                      "is for plain text only"));
    }
    inputs.push_back({path, *format});
    const bool regular = S_ISREG(info.st_mode);
    if (!regular && spec.validation_fraction > 0) {
      problems.push_back(absl::StrCat(path,
                                      " is not a regular file, so its size is not known beforehand and no "
                                      "validation fraction can be cut off; save it first, or build "
                                      "training and validation files apart"));
    }
    *total_bytes = regular && *total_bytes >= 0 ? *total_bytes + info.st_size : -1;
  }
  if (!problems.empty()) return absl::Status(code, absl::StrJoin(problems, "\n"));
  return inputs;
}
}  // namespace

absl::StatusOr<BuildResult> BuildTokenFiles(const BuildSpec& spec, const Tokenizer& tokenizer) {
  if (spec.inputs.empty()) return absl::InvalidArgumentError("no input; name at least one text file");
  if (!(spec.validation_fraction >= 0 && spec.validation_fraction < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("validation_fraction ", spec.validation_fraction, " is not in [0, 1); use e.g. 0.1"));
  }
  int64_t total_bytes = 0;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<Input> inputs, CheckInputs(spec, &total_bytes));
  if (total_bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no text in ", absl::StrJoin(spec.inputs, ", "), ": all inputs are empty"));
  }
  const bool split = spec.validation_fraction > 0;
  const int64_t cut =
      split ? static_cast<int64_t>(static_cast<double>(total_bytes) * (1 - spec.validation_fraction))
            : INT64_MAX;

  std::vector<std::string> prefixes = {spec.output};
  if (split) prefixes = {spec.output + "_train", spec.output + "_valid"};
  std::vector<std::unique_ptr<TokenFileWriter>> writers;
  for (const std::string& prefix : prefixes) {
    TokenFileWriter::Options options;
    options.overwrite = spec.overwrite;
    CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<TokenFileWriter> writer,
                              TokenFileWriter::Create(prefix, tokenizer, options));
    writers.push_back(std::move(writer));
  }
  DocumentSink sink(tokenizer, writers.front().get(), writers.back().get());
  Builder builder(spec, &sink, total_bytes, cut);
  for (const Input& input : inputs) CAROUSEL_RETURN_IF_ERROR(builder.Add(input));

  BuildResult result;
  result.input_bytes = builder.done_bytes();
  result.num_empty_documents = builder.num_empty_documents();
  for (size_t i = 0; i < writers.size(); ++i) {
    const TokenFileWriter& writer = *writers[i];
    if (writer.num_documents() == 0) {
      return absl::InvalidArgumentError(
          split
              ? absl::StrCat("no document falls into the ", i == 0 ? "training" : "validation",
                             " part with validation_fraction ", spec.validation_fraction, " of ", total_bytes,
                             " bytes; use another fraction, more documents, or no document separator")
              : absl::StrCat("there is no text in ", absl::StrJoin(spec.inputs, ", "),
                             ": every document is empty"));
    }
    result.files.push_back({.prefix = prefixes[i],
                            .num_tokens = writer.num_tokens(),
                            .num_documents = writer.num_documents(),
                            .text_bytes = writer.text_bytes()});
  }
  for (const auto& writer : writers) CAROUSEL_RETURN_IF_ERROR(writer->Commit());
  return result;
}
}  // namespace carousel
