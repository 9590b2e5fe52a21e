#include "launcher/config_leaves.h"

#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace carousel {

std::vector<std::pair<std::string, std::string>> ConfigLeaves(const std::string& text) {
  std::vector<std::pair<std::string, std::string>> leaves;
  std::vector<std::string> path;
  std::map<std::string, int> count, index;
  for (const absl::string_view raw : absl::StrSplit(text, '\n')) {
    const absl::string_view line = absl::StripAsciiWhitespace(raw);
    if (line.empty() || line[0] == '#') continue;
    if (line == "}") {
      if (!path.empty()) path.pop_back();
      continue;
    }
    if (line.back() == '{') {
      path.emplace_back(absl::StripAsciiWhitespace(line.substr(0, line.size() - 1)));
      if (path.back().ends_with(':')) path.back().pop_back();
      continue;
    }
    const size_t colon = line.find(':');
    if (colon == absl::string_view::npos) continue;
    const absl::string_view name = line.substr(0, colon);
    std::string value(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
      std::string unescaped;
      if (absl::CUnescape(value.substr(1, value.size() - 2), &unescaped)) value = unescaped;
    }
    std::string full = path.empty() ? std::string(name) : absl::StrCat(absl::StrJoin(path, "."), ".", name);
    ++count[full];
    leaves.emplace_back(std::move(full), std::move(value));
  }
  for (auto& [name, value] : leaves) {
    if (count[name] > 1) {
      const std::string plain = name;
      absl::StrAppend(&name, "[", index[plain]++, "]");
    }
  }
  return leaves;
}
}  // namespace carousel
