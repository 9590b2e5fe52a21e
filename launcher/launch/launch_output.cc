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

// "mpirun: Forwarding signal 12 to job", with the name under which mpirun was started.
constexpr char kForwarding[] = ": Forwarding signal ", kToJob[] = " to job";
constexpr size_t kMaxForwardingLine = 96;
bool IsForwarding(std::string line) {
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  const size_t at = line.find(kForwarding);
  if (at == std::string::npos || !absl::EndsWith(line, kToJob)) return false;
  const size_t number = at + sizeof(kForwarding) - 1, end = line.size() - (sizeof(kToJob) - 1);
  const std::string name = line.substr(0, at);
  return number < end && name.find_first_of(" \t") == std::string::npos && absl::EndsWith(name, "run") &&
         std::all_of(line.begin() + static_cast<ptrdiff_t>(number),
                     line.begin() + static_cast<ptrdiff_t>(end),
                     [](unsigned char c) { return absl::ascii_isdigit(c); });
}
// Whether a line that begins like this may become one.
bool MayBecomeForwarding(const std::string& begin) {
  const size_t name_end = begin.find(':');
  if (begin.size() > kMaxForwardingLine) return false;
  if (name_end == std::string::npos)
    return absl::StartsWith("mpirun", begin) || absl::StartsWith("orterun", begin);
  const absl::string_view rest = absl::string_view(begin).substr(name_end);
  const size_t length = std::min(rest.size(), sizeof(kForwarding) - 1);
  return absl::EndsWith(begin.substr(0, name_end), "run") &&
         rest.substr(0, length) == absl::string_view(kForwarding, length);
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
    if (!inside_ && c != '\n' &&
        (line_passed_ ||
         (line_.find_first_not_of("-\r") != std::string::npos && !MayBecomeForwarding(line_)))) {
      passed += line_;
      line_.clear();
      line_passed_ = true;
      continue;
    }
    if (inside_ && paragraph_.size() + line_.size() > kMaxParagraph) {
      passed += paragraph_ + line_;
      line_passed_ = c != '\n';
      paragraph_.clear();
      line_.clear();
      inside_ = false;
      continue;
    }
    if (c != '\n') continue;
    const bool row = !line_passed_ && IsRow(line_);
    if (inside_) {
      paragraph_ += line_;
      if (row) {
        paragraph_.clear();
        inside_ = false;
      }
    } else if (row) {
      paragraph_ = line_;
      inside_ = true;
    } else if (line_passed_ || !IsForwarding(line_)) {
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
