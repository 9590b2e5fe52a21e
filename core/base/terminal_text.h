// Text for people that others had a hand in: names of files, words of a command line, what a model wrote. Its
// control characters must not move the cursor of the terminal, change its colours, or end a line too early.
#pragma once
#include <cstddef>
#include <string>

namespace carousel {
// Bytes of the control character that begins at text[i]: 1 for U+0000 to U+001F and U+007F, 2 for U+0080 to
// U+009F in UTF-8, 0 if none does. Line breaks and tabs count as text. REQUIRES: i < text.size().
size_t ControlLength(const std::string& text, size_t i);
// Every control character as people would write it in a shell's $'...': "\r", "\x1b", "\xc2\x9b". All else,
// bytes that are no UTF-8 among it, stays as it is.
std::string EscapeControls(const std::string& text);
}  // namespace carousel
