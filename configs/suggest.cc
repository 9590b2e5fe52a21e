#include "configs/suggest.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace carousel {
namespace {
constexpr size_t kMaxWord = 64;    // longer words are compared by their beginnings
constexpr size_t kMaxListed = 30;  // names shown when nothing is near

std::string Normalize(const std::string& word) {
  std::string result = word.substr(0, kMaxWord);
  for (char& c : result) c = c == '-' ? '_' : absl::ascii_tolower(static_cast<unsigned char>(c));
  return result;
}
}  // namespace

int64_t EditDistance(const std::string& a_raw, const std::string& b_raw) {
  const std::string a = Normalize(a_raw), b = Normalize(b_raw);
  // Three rows of the table of distances between beginnings: of a's first i - 2, i - 1 and i letters.
  std::vector<int64_t> before(b.size() + 1), previous(b.size() + 1), current(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) previous[j] = static_cast<int64_t>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    current[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t replace = previous[j - 1] + (a[i - 1] != b[j - 1]);
      current[j] = std::min({replace, previous[j] + 1, current[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        current[j] = std::min(current[j], before[j - 2] + 1);
      }
    }
    before.swap(previous);
    previous.swap(current);
  }
  return previous[b.size()];
}

std::string Nearest(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string w = Normalize(word);
  std::string best;
  int64_t best_distance = 0;
  for (const std::string& candidate : candidates) {
    const std::string c = Normalize(candidate);
    if (c.empty() || w.empty()) continue;
    int64_t distance = EditDistance(w, c);
    const int64_t longest = static_cast<int64_t>(std::max(w.size(), c.size()));
    // "lr" for peak_lr, "num" for num_heads: a part of the name is as good as two wrong letters.
    const bool part = absl::StrContains("_" + c + "_", "_" + w + "_");
    const bool beginning =
        std::min(w.size(), c.size()) >= 2 && (absl::StartsWith(c, w) || absl::StartsWith(w, c));
    const bool related = w.size() >= 2 && (part || beginning);
    if (related) distance = std::min<int64_t>(distance, 2);
    if (!related && distance > std::max<int64_t>(1, longest / 3)) continue;
    if (best.empty() || distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string DidYouMean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string nearest = Nearest(word, candidates);
  if (!nearest.empty()) return absl::StrCat("; did you mean \"", nearest, "\"?");
  if (candidates.empty()) return "";
  const std::vector<std::string> shown(candidates.begin(),
                                       candidates.begin() + std::min(candidates.size(), kMaxListed));
  return absl::StrCat("; valid: ", absl::StrJoin(shown, ", "), candidates.size() > kMaxListed ? ", ..." : "");
}
}  // namespace carousel
