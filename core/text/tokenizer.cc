#include "core/text/tokenizer.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/int_math.h"

namespace carousel {

int64_t Tokenizer::padded_size() const { return RoundUp(size(), 64); }

void ByteTokenizer::Encode(absl::string_view text, std::vector<int32_t>* ids) const {
  const size_t begin = ids->size();
  ids->resize(begin + text.size());
  int32_t* const out = ids->data() + begin;
  for (size_t i = 0; i < text.size(); ++i) out[i] = static_cast<unsigned char>(text[i]);
}

std::string ByteTokenizer::Decode(std::span<const int32_t> ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const int32_t id : ids) {
    if (id >= 0 && id < 256) text.push_back(static_cast<char>(id));
  }
  return text;
}

std::string ByteTokenizer::TokenName(int32_t id) const {
  if (id == kEod) return "<eod>";
  if (id == kPad) return "<pad>";
  if (id < 0 || id >= kSize) return absl::StrCat("<unused ", id, ">");
  if (id >= 0x20 && id < 0x7f) return absl::StrFormat("'%c'", static_cast<char>(id));
  return absl::StrFormat("0x%02x", id);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const std::string& name) {
  if (name == "bytes") return std::unique_ptr<Tokenizer>(std::make_unique<ByteTokenizer>());
  return absl::InvalidArgumentError(absl::StrCat("no tokenizer \"", name, "\"; known: bytes"));
}
}  // namespace carousel
