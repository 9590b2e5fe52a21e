#include "launcher/launch/launch_output.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace carousel {
namespace {
constexpr size_t kMaxLine = 8192;
constexpr size_t kMaxParagraph = 64 << 10;
constexpr size_t kDashes = 60;  // Open MPI's rows have 74

// "[12:30:59 I] ": our log (core/base/log.cc), as it looks where no terminal is.
constexpr size_t kLogPrefix = 13;
bool IsLogLine(const std::string& line) {
  return line.size() >= kLogPrefix && line[0] == '[' && line[3] == ':' && line[6] == ':' && line[9] == ' ' &&
         line[11] == ']' && line[12] == ' ';
}
bool IsRow(const std::string& line) {
  const std::string text(absl::StripAsciiWhitespace(line));
  return text.size() >= kDashes && text.find_first_not_of('-') == std::string::npos;
}
}  // namespace

std::vector<std::string> LineCutter::Add(const std::string& text) {
  std::vector<std::string> lines;
  for (const char c : text) {
    if (c == '\n') {
      while (!open_.empty() && open_.back() == '\r') open_.pop_back();
      lines.push_back(std::move(open_));
      open_.clear();
      continue;
    }
    open_ += c;
    if (open_.size() < kMaxLine) continue;
    lines.push_back(std::move(open_));
    open_.clear();
  }
  return lines;
}

std::string LineCutter::Rest() {
  std::string rest = std::move(open_);
  open_.clear();
  return rest;
}

bool IsErrorLine(const std::string& line) {
  if (IsLogLine(line)) return line[10] == 'E' || line[10] == 'C';
  return !absl::StripAsciiWhitespace(line).empty();
}

std::string PrefixedLine(const std::string& line, const std::string& host, int64_t rank) {
  const std::string prefix = absl::StrCat("[", host, " rank ", rank, "] ");
  if (!IsLogLine(line)) return prefix + line;
  std::string rest = line.substr(kLogPrefix);
  const std::string own = absl::StrCat("[rank ", rank, "] ");
  if (absl::StartsWith(rest, own)) rest.erase(0, own.size());
  return absl::StrCat(line.substr(0, kLogPrefix), prefix, rest);
}

std::string BannerFilter::Pass(const std::string& text) {
  std::string passed;
  for (const char c : text) {
    line_ += c;
    // A line that cannot become a row any more goes on at once: a progress line has no end.
    if (!inside_ && c != '\n' && (line_passed_ || line_.find_first_not_of("-\r") != std::string::npos)) {
      passed += line_;
      line_.clear();
      line_passed_ = true;
      continue;
    }
    if (c != '\n') continue;
    const bool row = !line_passed_ && IsRow(line_);
    if (inside_) {
      paragraph_ += line_;
      if (row || paragraph_.size() > kMaxParagraph) {
        if (!row) passed += paragraph_;
        paragraph_.clear();
        inside_ = false;
      }
    } else if (row) {
      paragraph_ = line_;
      inside_ = true;
    } else {
      passed += line_;
    }
    line_.clear();
    line_passed_ = false;
  }
  return passed;
}

std::string BannerFilter::Rest() {
  std::string rest = paragraph_ + line_;
  paragraph_.clear();
  line_.clear();
  inside_ = line_passed_ = false;
  return rest;
}

std::string LastLines(const std::string& text, size_t count) {
  size_t end = text.find_last_not_of(" \t\r\n");
  if (end == std::string::npos) return "";
  ++end;
  size_t begin = end;
  for (size_t lines = 0; begin > 0; --begin) {
    if (text[begin - 1] == '\n' && ++lines == count) break;
  }
  return text.substr(begin, end - begin);
}
}  // namespace carousel
