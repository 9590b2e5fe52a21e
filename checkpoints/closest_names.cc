#include "checkpoints/closest_names.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace carousel {
namespace {

// Letters to change, insert or delete to get from a to b (Levenshtein).
int64_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<int64_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int64_t>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}
}  // namespace

std::string ClosestNames(const std::string& name, const std::vector<std::string>& names) {
  constexpr size_t kMaxLength = 256, kMaxNames = 10000;  // this is for messages: no long work
  std::vector<std::pair<int64_t, std::string>> closest;
  if (name.size() > kMaxLength || names.size() > kMaxNames) return "";
  for (const std::string& other : names) {
    if (other.size() <= kMaxLength) closest.emplace_back(EditDistance(name, other), other);
  }
  std::sort(closest.begin(), closest.end());
  closest.erase(std::unique(closest.begin(), closest.end()), closest.end());
  std::vector<std::string> shown;
  for (size_t i = 0; i < closest.size() && i < 3; ++i) shown.push_back(closest[i].second);
  if (shown.empty()) return "";
  return absl::StrCat("; the closest ", shown.size() == 1 ? "is " : "are ", absl::StrJoin(shown, ", "));
}
}  // namespace carousel
