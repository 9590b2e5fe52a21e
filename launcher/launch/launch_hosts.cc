#include "launcher/launch/launch_hosts.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr int64_t kMaxSlots = 1 << 16;
constexpr size_t kMaxHosts = 1 << 16;

bool ParseSlots(absl::string_view text, int64_t* slots) {
  return absl::SimpleAtoi(text, slots) && *slots >= 1 && *slots <= kMaxSlots;
}

// Adds to a host that is there already: every mention is more room.
void AddHost(const std::string& name, int64_t slots, std::vector<LaunchHost>* hosts) {
  for (LaunchHost& host : *hosts) {
    if (host.name != name) continue;
    host.slots += slots;
    return;
  }
  hosts->push_back({.name = name, .slots = slots});
}

// "node1" or "node1:8". An IPv6 address has more colons, and none of them begins a number of slots.
absl::Status SplitSlots(const std::string& word, std::string* name, int64_t* slots) {
  *name = word;
  const size_t colon = word.find(':');
  if (colon != std::string::npos && word.find(':', colon + 1) == std::string::npos) {
    *name = word.substr(0, colon);
    if (!ParseSlots(word.substr(colon + 1), slots)) {
      return absl::InvalidArgumentError(absl::StrCat("'", word.substr(colon + 1), "' behind ", *name,
                                                     ": is no number of slots; give 1 to ", kMaxSlots));
    }
  }
  if (!IsHostName(*name)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", *name, "' is no host name; letters, digits, '.', '-', '_' and ':' may stand in one"));
  }
  return absl::OkStatus();
}
}  // namespace

bool IsHostName(const std::string& name) {
  if (name.empty() || name.size() > 255 || name[0] == '-' || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_' || c == ':';
  });
}

absl::StatusOr<std::vector<LaunchHost>> ParseHostfile(const std::string& text, const std::string& path,
                                                      int64_t default_slots) {
  std::vector<LaunchHost> hosts;
  int64_t line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    line = line.substr(0, line.find('#'));
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) continue;
    const auto wrong = [&](const std::string& what) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", line_number, ": ", what,
                       "; a line of a hostfile is HOST slots=N, for example node1 slots=8"));
    };
    std::string name;
    int64_t slots = default_slots > 0 ? default_slots : 1;
    if (const absl::Status status = SplitSlots(words[0], &name, &slots); !status.ok()) {
      return wrong(std::string(status.message()));
    }
    for (size_t i = 1; i < words.size(); ++i) {
      const size_t equals = words[i].find('=');
      const std::string key = words[i].substr(0, equals);
      const std::string value = equals == std::string::npos ? "" : words[i].substr(equals + 1);
      if (key == "slots") {
        if (!ParseSlots(value, &slots)) return wrong(absl::StrCat("'", words[i], "' is no number of slots"));
      } else if (key != "max_slots" && key != "max-slots") {
        return wrong(absl::StrCat("'", words[i], "' is not understood"));
      }
    }
    AddHost(name, slots, &hosts);
    if (hosts.size() > kMaxHosts) return wrong("too many hosts");
  }
  if (hosts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " names no host; it holds one line HOST slots=N for each, for example node1 slots=8"));
  }
  return hosts;
}

absl::StatusOr<std::vector<LaunchHost>> ParseHostList(const std::string& text, int64_t default_slots) {
  std::vector<LaunchHost> hosts;
  for (const std::string& word : std::vector<std::string>(absl::StrSplit(text, ','))) {
    std::string name;
    int64_t slots = default_slots > 0 ? default_slots : 1;
    if (const absl::Status status = SplitSlots(word, &name, &slots); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--host ", text, ": ", std::string(status.message())));
    }
    AddHost(name, slots, &hosts);
  }
  return hosts;
}

absl::StatusOr<std::vector<std::string>> ExpandNodeList(const std::string& text) {
  const auto wrong = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("SLURM_JOB_NODELIST='", text, "' is no list of nodes such as node[01-04,7],login"));
  };
  std::vector<std::string> nodes;
  size_t at = 0;
  while (at < text.size()) {
    // One item: up to the next comma outside brackets.
    size_t end = at, open = std::string::npos, close = std::string::npos;
    for (bool inside = false; end < text.size() && (inside || text[end] != ','); ++end) {
      if (text[end] == '[') {
        if (open != std::string::npos) return wrong();
        open = end;
        inside = true;
      } else if (text[end] == ']') {
        if (!inside) return wrong();
        close = end;
        inside = false;
      }
    }
    if (end == at || (open != std::string::npos && close == std::string::npos)) return wrong();
    if (open == std::string::npos) {
      nodes.push_back(text.substr(at, end - at));
    } else {
      const std::string prefix = text.substr(at, open - at), suffix = text.substr(close + 1, end - close - 1);
      const std::vector<std::string> ranges = absl::StrSplit(text.substr(open + 1, close - open - 1), ',');
      for (const std::string& range : ranges) {
        const std::vector<std::string> ends = absl::StrSplit(range, '-');
        int64_t first = 0, last = 0;
        if (ends.size() > 2 || ends[0].empty() || !absl::SimpleAtoi(ends[0], &first) ||
            !absl::SimpleAtoi(ends.back(), &last) || first < 0 || last < first ||
            last - first >= static_cast<int64_t>(kMaxHosts)) {
          return wrong();
        }
        for (int64_t i = first; i <= last; ++i) {
          nodes.push_back(absl::StrFormat("%s%0*d%s", prefix, static_cast<int>(ends[0].size()), i, suffix));
        }
      }
    }
    if (nodes.size() > kMaxHosts) return wrong();
    at = end + 1;
    if (end < text.size() && at == text.size()) return wrong();  // a comma at the end
  }
  if (nodes.empty() || !std::all_of(nodes.begin(), nodes.end(), IsHostName)) return wrong();
  return nodes;
}

absl::StatusOr<std::vector<int64_t>> ExpandTaskCounts(const std::string& text) {
  std::vector<int64_t> counts;
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    int64_t count = 0, times = 1;
    const size_t open = item.find("(x");
    bool right = ParseSlots(item.substr(0, open), &count);
    if (open != absl::string_view::npos) {
      right = right && absl::EndsWith(item, ")") &&
              ParseSlots(item.substr(open + 2, item.size() - open - 3), &times);
    }
    if (!right || counts.size() + static_cast<size_t>(times) > kMaxHosts) {
      return absl::InvalidArgumentError(
          absl::StrCat("SLURM_TASKS_PER_NODE='", text, "' is no list of counts such as 2(x3),1"));
    }
    counts.insert(counts.end(), static_cast<size_t>(times), count);
  }
  return counts;
}

std::string FormatHostfile(const std::vector<LaunchHost>& hosts) {
  std::string text;
  for (const LaunchHost& host : hosts) absl::StrAppend(&text, host.name, " slots=", host.slots, "\n");
  return text;
}

int64_t TotalSlots(const std::vector<LaunchHost>& hosts) {
  int64_t slots = 0;
  for (const LaunchHost& host : hosts) slots += host.slots;
  return slots;
}
}  // namespace carousel
