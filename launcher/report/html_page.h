// The frame of the report's page: style, the one script, and the policy that allows nothing else.
#pragma once
#include <string>

namespace carousel {

// The whole document. title is text, body is HTML. refresh_seconds: the page loads itself again; 0: never.
std::string HtmlPage(const std::string& title, const std::string& body, int64_t refresh_seconds);
}  // namespace carousel
