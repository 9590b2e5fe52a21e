// Files and lines of metrics.jsonl for the tests of what reads and draws them.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "launcher/report/html_report.h"

namespace carousel::testing {

inline std::string Read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}
inline void Write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}
inline int Count(const std::string& text, const std::string& what) {
  int count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}
inline std::string StepLine(int64_t step, double loss, const std::string& more = "") {
  return absl::StrCat(
      "{\"step\":", step, ",\"tokens\":", 512 * step, ",\"loss\":", loss,
      ",\"grad_norm\":1.5,\"lr\":0.001,\"seconds\":0.25,\"wall_seconds\":", 0.25 * static_cast<double>(step),
      ",\"data_wait_seconds\":0.5", more, ",\"data_digest\":\"00\",\"skipped\":false}");
}
inline std::string Render(const RunHistory& history, ReportInput input = {.run_dir = "runs/x"}) {
  input.history = &history;
  return RenderReport(input);
}

// The page without its own script and style: every tag must be one that the report draws itself, and no
// attribute a handler. What comes from outside may only stand between tags or in quotes.
inline void ExpectOnlyOwnHtml(std::string page) {
  EXPECT_EQ(Count(page, "<script>"), 1);
  page = std::regex_replace(page, std::regex("<style>[^]*?</style>|<script>[^]*?</script>"), "");
  const std::regex tag("<(/?)([^ >]*)((?: [a-zA-Z-]+(?:=\"[^\"<>]*\")?)*)/?>");
  const std::set<std::string> known = {
      "!DOCTYPE", "html",       "head",    "meta", "link", "title",  "body",  "main",  "header",
      "h1",       "h2",         "small",   "span", "div",  "b",      "em",    "i",     "p",
      "figure",   "figcaption", "svg",     "path", "text", "circle", "table", "tr",    "th",
      "td",       "details",    "summary", "code", "pre",  "s",      "br",    "footer"};
  std::string rest;
  size_t at = 0;
  for (std::sregex_iterator match(page.begin(), page.end(), tag), end; match != end; ++match) {
    EXPECT_TRUE(known.count((*match)[2])) << match->str();
    EXPECT_FALSE(std::regex_search(match->str(3), std::regex(" on[a-z]+=", std::regex::icase)))
        << match->str();
    rest += page.substr(at, static_cast<size_t>(match->position()) - at);
    at = static_cast<size_t>(match->position() + match->length());
  }
  rest += page.substr(at);
  EXPECT_EQ(rest.find('<'), std::string::npos)
      << rest.substr(rest.find('<') > 80 ? rest.find('<') - 80 : 0, 300);
}
}  // namespace carousel::testing
