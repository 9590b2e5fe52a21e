#include "core/text/utf8.h"

#include <cstdint>

namespace carousel {
namespace {
constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

// What a character's first byte says of it (Unicode standard, table 3-7, well-formed byte sequences).
struct Lead {
  int length = 0;                                // bytes; 0: no character begins with this byte
  uint8_t second_min = 0x80, second_max = 0xBF;  // the others are 80..BF
};
Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}
}  // namespace

std::string Utf8Stream::Push(absl::string_view bytes) {
  const std::string input = held_ + std::string(bytes);
  held_.clear();
  std::string out;
  out.reserve(input.size());
  for (size_t i = 0; i < input.size();) {
    const Lead lead = LeadOf(static_cast<uint8_t>(input[i]));
    size_t length = 1;  // of the longest prefix of a character that stands here
    while (lead.length > static_cast<int>(length) && i + length < input.size()) {
      const uint8_t next = static_cast<uint8_t>(input[i + length]);
      const uint8_t min = length == 1 ? lead.second_min : 0x80, max = length == 1 ? lead.second_max : 0xBF;
      if (next < min || next > max) break;
      ++length;
    }
    if (lead.length == static_cast<int>(length)) {
      out.append(input, i, length);
    } else if (lead.length != 0 && i + length == input.size()) {
      held_ = input.substr(i);  // may still be completed
      break;
    } else {
      out += kReplacement;
    }
    i += length;
  }
  return out;
}

std::string Utf8Stream::Finish() {
  const bool incomplete = !held_.empty();
  held_.clear();
  return incomplete ? kReplacement : "";
}

std::string ValidUtf8(absl::string_view text) {
  Utf8Stream stream;
  std::string valid = stream.Push(text);
  valid += stream.Finish();
  return valid;
}
}  // namespace carousel
