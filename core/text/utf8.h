// Utf8Stream: bytes that arrive in pieces, given out as whole UTF-8 characters. For a terminal that shows
// text while it is generated token by token.
#pragma once
#include <string>

#include "absl/strings/string_view.h"

namespace carousel {

class Utf8Stream {
 public:
  // Takes `bytes` and returns what is complete by now. A character that may still be completed by the next
  // bytes is held back (at most 3 bytes). Every maximal ill-formed part becomes U+FFFD, as the Unicode
  // standard recommends (section 3.9, "substitution of maximal subparts").
  std::string Push(absl::string_view bytes);
  // What was held back, as U+FFFD; the stream is empty afterwards.
  std::string Finish();

 private:
  std::string held_;
};

// The whole text with every ill-formed part replaced by U+FFFD.
std::string ValidUtf8(absl::string_view text);
}  // namespace carousel
