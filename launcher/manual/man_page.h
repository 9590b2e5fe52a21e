// The manual page of the whole program, in the man macros of troff.
#pragma once
#include <string>

#include "launcher/manual/command_outline.h"

namespace carousel {

// `version` stands in the footer of the page. The program's own footer becomes the page's last sections:
// lines that end in a colon are their headings.
std::string ManPage(const CommandOutline& program, const std::string& version);
}  // namespace carousel
