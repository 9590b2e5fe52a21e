// Collects everything that is wrong with a config, and where each field got its value.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace carousel {

// Canonical field path ("data.train[0].path") -> where its value was written ("demo.textproto:14:3",
// "--set data.train[0].path=x"). Fields that nobody wrote are not in it.
using Origins = std::map<std::string, std::string>;

class Problems {
 public:
  // A problem of the field at `path`, told after the place where it was written. For an element of a list,
  // that is where the list was if nothing is known of the element.
  void Add(const Origins& origins, const std::string& path, const std::string& message) {
    auto origin = origins.find(path);
    if (origin == origins.end() && path.back() == ']') origin = origins.find(path.substr(0, path.rfind('[')));
    Add(origin == origins.end() ? message : absl::StrCat(origin->second, ": ", message));
  }
  void Add(std::string line) { lines_.push_back(std::move(line)); }
  bool empty() const { return lines_.empty(); }
  size_t size() const { return lines_.size(); }

  // All of them, one per line, as one InvalidArgument; OK if there are none.
  absl::Status ToStatus(const std::string& name) const {
    if (lines_.empty()) return absl::OkStatus();
    if (lines_.size() == 1) return absl::InvalidArgumentError(lines_.front());
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", lines_.size(), " problems:\n  ", absl::StrJoin(lines_, "\n  ")));
  }

 private:
  std::vector<std::string> lines_;
};
}  // namespace carousel
