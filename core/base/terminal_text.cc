#include "core/base/terminal_text.h"

#include <cstdint>

namespace carousel {

size_t ControlLength(const std::string& text, size_t i) {
  const auto c = static_cast<uint8_t>(text[i]);
  if ((c < 32 && c != '\n' && c != '\t') || c == 127) return 1;
  if (c != 0xC2 || i + 1 >= text.size()) return 0;
  const auto next = static_cast<uint8_t>(text[i + 1]);
  return next >= 0x80 && next < 0xA0 ? 2 : 0;
}

std::string EscapeControls(const std::string& text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t length = ControlLength(text, i);
    if (length == 0) {
      result += text[i++];
    } else if (text[i] == '\r') {
      result += "\\r";
      ++i;
    } else {
      for (; length > 0; --length, ++i) {
        const auto c = static_cast<uint8_t>(text[i]);
        result += {'\\', 'x', kHex[c >> 4], kHex[c & 15]};
      }
    }
  }
  return result;
}
}  // namespace carousel
