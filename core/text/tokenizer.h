// Tokenizer: text to token ids and back. Today bytes; other kinds derive from the same class.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace carousel {

// Immutable after construction: every method may be called from several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // What token files and checkpoints record ("bytes"); files of another tokenizer are refused by this name.
  virtual std::string name() const = 0;
  // Number of ids that have a meaning: valid ids are [0, size()).
  virtual int64_t size() const = 0;
  // Ends every document; as an input it starts the next one (EOD, BOS and EOS are one id).
  virtual int32_t eod_id() const = 0;
  // Fills unused places of a batch; never a target.
  virtual int32_t pad_id() const = 0;
  // Appends the ids of `text` to *ids. Text never yields special ids.
  virtual void Encode(absl::string_view text, std::vector<int32_t>* ids) const = 0;
  // True if Encode(a + b) == Encode(a) + Encode(b) for every a, b: then a document may be encoded in pieces
  // of any length.
  virtual bool EncodesPieces() const = 0;
  // The bytes of the ids, concatenated. Special and unknown ids give no bytes. Decode(a + b) ==
  // Decode(a) + Decode(b), so tokens can be decoded as they are generated; a piece may end inside a UTF-8
  // character (Utf8Stream in utf8.h holds such an end back for a terminal).
  virtual std::string Decode(std::span<const int32_t> ids) const = 0;
  // For people: "'a'", "0x0a", "<eod>", "<unused 300>".
  virtual std::string TokenName(int32_t id) const = 0;

  // size() rounded up to a multiple of 64: rows of the embedding. Ids from size() on are never used.
  int64_t padded_size() const;
};

// 256 bytes, 256 = end of document (also begin and end of text), 257 = padding; 258 ids, 320 with padding.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kEod = 256, kPad = 257;
  static constexpr int64_t kSize = 258;

  std::string name() const override { return "bytes"; }
  int64_t size() const override { return kSize; }
  int32_t eod_id() const override { return kEod; }
  int32_t pad_id() const override { return kPad; }
  void Encode(absl::string_view text, std::vector<int32_t>* ids) const override;
  bool EncodesPieces() const override { return true; }
  std::string Decode(std::span<const int32_t> ids) const override;
  std::string TokenName(int32_t id) const override;
};

// The tokenizer of that name; InvalidArgument lists the known ones.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const std::string& name);
}  // namespace carousel
